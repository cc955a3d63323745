"""Masks to SVG paths along pixel edges: sharp at any size, and the truth about where a mask ends."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]
TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT = 1, 2, 4, 8  # of the four pixels about a point


def outline(mask: NDArray[np.bool_], corner: Point = (0, 0)) -> str:
    """The closed outlines of a 2D mask in pixel units (x right, y down); holes run the other way, so any fill rule works.

    `corner` is where the mask's first pixel lies.
    """
    return "".join(_path([(x + corner[0], y + corner[1]) for x, y in loop]) for loop in loops(mask))


def loops(mask: NDArray[np.bool_]) -> list[list[Point]]:
    """Corner points `(x, y)` of each closed outline; pixels that only touch at a corner belong to different outlines.

    Each corner ends one horizontal and one vertical line, so along a row or column of points corners belong together two by two, and an outline
    goes from corner to corner, horizontally and vertically in turn. A point where two pixels touch is two corners.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    around = TOP_LEFT * padded[:-1, :-1] + TOP_RIGHT * padded[:-1, 1:] + BOTTOM_LEFT * padded[1:, :-1] + BOTTOM_RIGHT * padded[1:, 1:]
    # One pixel that is unlike the three others makes a corner; its lines go where it is.
    ys, xs, right, down = (
        np.concatenate(parts)
        for parts in zip(
            *(
                (
                    *found,
                    np.full(len(found[0]), pixel in (TOP_RIGHT, BOTTOM_RIGHT)),
                    np.full(len(found[0]), pixel in (BOTTOM_LEFT, BOTTOM_RIGHT)),
                )
                for pixel in (TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT)
                for found in (np.nonzero((around == pixel) | (around == 15 - pixel) | (around == pixel + _opposite(pixel))),)
            ),
            strict=True,
        )
    )
    across, along = _partners(np.lexsort((right, xs, ys))), _partners(np.lexsort((down, ys, xs)))
    # Lines run with the inside on their right hand: to the right where it is below.
    below = (np.where(right, BOTTOM_RIGHT, BOTTOM_LEFT) & around[ys, xs]) > 0
    order = np.lexsort((right, xs, ys))
    points = list(zip(xs.tolist(), ys.tolist(), strict=True))
    free = [True] * len(points)
    found = []
    for first in order[(right & below)[order]].tolist():
        loop, here = [], first
        while free[here]:
            there = across[here]
            free[here] = free[there] = False
            loop += [points[here], points[there]]
            here = along[there]
        if loop:
            found.append(loop)
    return found


def _opposite(pixel: int) -> int:
    return {TOP_LEFT: BOTTOM_RIGHT, BOTTOM_RIGHT: TOP_LEFT, TOP_RIGHT: BOTTOM_LEFT, BOTTOM_LEFT: TOP_RIGHT}[pixel]


def _partners(order: NDArray[np.intp]) -> list[int]:
    """Of each corner the one at the other end of its line, from all corners in the order of lines."""
    partners = np.empty(len(order), np.intp)
    partners[order[::2]], partners[order[1::2]] = order[1::2], order[::2]
    found: list[int] = partners.tolist()
    return found


def _path(corners: list[Point]) -> str:
    moves = [f"H{x}" if y == before else f"V{y}" for (_, before), (x, y) in pairwise(corners)]
    return f"M{corners[0][0]} {corners[0][1]}{''.join(moves)}Z"
