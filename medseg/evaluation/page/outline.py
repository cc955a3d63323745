"""Masks to SVG paths along pixel edges: sharp at any size, and the truth about where a mask ends."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]


def outline(mask: NDArray[np.bool_], corner: Point = (0, 0)) -> str:
    """The closed outlines of a 2D mask in pixel units (x right, y down); holes run the other way, so any fill rule works.

    `corner` is where the mask's first pixel lies.
    """
    return "".join(_path([(x + corner[0], y + corner[1]) for x, y in loop]) for loop in loops(mask))


def loops(mask: NDArray[np.bool_]) -> list[list[Point]]:
    """Corner points `(x, y)` of each closed outline; pixels that only touch at a corner belong to different outlines."""
    padded = np.pad(mask, 1).astype(np.int8)
    # Directed edges with the inside on their right hand: top edges run right, right edges down, bottom edges left, left edges up.
    following: dict[Point, list[Point]] = {}
    for dy, dx, start, step in ((-1, 0, (0, 0), (1, 0)), (0, 1, (1, 0), (0, 1)), (1, 0, (1, 1), (-1, 0)), (0, -1, (0, 1), (0, -1))):
        border = (padded == 1) & (np.roll(padded, (-dy, -dx), (0, 1)) == 0)
        for y, x in np.argwhere(border):
            a = (int(x) - 1 + start[0], int(y) - 1 + start[1])
            following.setdefault(a, []).append((a[0] + step[0], a[1] + step[1]))
    found = []
    while following:
        first = next(iter(following))
        loop, here, direction = [first], first, (0, 0)
        while True:
            # Where two outlines touch, turning right keeps the pixels apart.
            choices = following[here]
            right = (-direction[1], direction[0])
            there = next((p for p in choices if (p[0] - here[0], p[1] - here[1]) == right), choices[0])
            choices.remove(there)
            if not choices:
                del following[here]
            direction, here = (there[0] - here[0], there[1] - here[1]), there
            if here == first:
                break
            loop.append(here)
        found.append(_corners(loop))
    return found


def _corners(loop: list[Point]) -> list[Point]:
    """Without the points in the middle of straight lines."""
    return [
        point
        for before, point, after in zip([loop[-1], *loop[:-1]], loop, [*loop[1:], loop[0]], strict=True)
        if (point[0] - before[0]) * (after[1] - point[1]) != (point[1] - before[1]) * (after[0] - point[0])
    ]


def _path(corners: list[Point]) -> str:
    moves = [f"H{x}" if y == before else f"V{y}" for (_, before), (x, y) in pairwise(corners)]
    return f"M{corners[0][0]} {corners[0][1]}{''.join(moves)}Z"
