"""Polygons to voxels and back, in the plane of a slice.

Points are `(y, x)` in voxels, as array indices: voxel `(y, x)` has its centre there and reaches half a voxel to all sides.

A voxel belongs to the region of some polygons if its centre lies within an odd number of them (the even-odd rule: an inner polygon is a hole,
and so is the inside of a keyhole), or on one of them: "points in space lying along the path defined by the contour are considered to be
part of the ROI" (DICOM PS3.3, C.8.8.6.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Mask = NDArray[np.bool_]

ON = 1e-6  # voxels: what is nearer to a polygon than this lies on it; far above rounding, far below what a contour means to say


def fill(polygons: Sequence[Points], shape: tuple[int, int]) -> Mask:
    """The voxels in the region of closed polygons `(N, 2)`, as `(Y, X)`; what lies beyond `shape` is cut off.

    Every row's centre line is cut by every edge; each cut turns inside to outside for all voxels to the right of it. Exact at any precision
    of the points, in time proportional to the length of the polygons.
    """
    mask = np.zeros(shape, dtype=bool)
    lines = [np.asarray(p, dtype=np.float64) for p in polygons if len(p)]
    if not lines:
        return mask
    begin = np.concatenate(lines)
    end = np.concatenate([np.roll(p, -1, axis=0) for p in lines])
    low = np.maximum(np.floor(begin.min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(begin.max(axis=0)) + 1, shape).astype(int)
    if (low >= high).any():
        return mask
    mask[low[0] : high[0], low[1] : high[1]] = _fill(begin - low, end - low, high - low)
    return mask


def _fill(begin: Points, end: Points, shape: NDArray[np.int_]) -> Mask:
    height, width = int(shape[0]), int(shape[1])
    down = begin[:, 0] <= end[:, 0]
    top, bottom = np.where(down[:, None], begin, end), np.where(down[:, None], end, begin)
    # A row belongs to an edge from its upper end to before its lower end, so that a corner on a row is counted once.
    rows, columns, _ = _cuts(top, bottom, np.ceil(top[:, 0]), np.ceil(bottom[:, 0]) - 1, height)
    first = np.clip(np.ceil(columns), 0, width).astype(int)
    turns = np.bincount(rows * (width + 1) + first, minlength=height * (width + 1)).reshape(height, width + 1)
    inside = np.cumsum(turns[:, :width], axis=1) % 2 == 1
    _mark_edges(inside, top, bottom)
    return np.asarray(inside, dtype=bool)


def _cuts(
    top: Points, bottom: Points, first: NDArray[np.float64], last: NDArray[np.float64], height: int
) -> tuple[NDArray[np.int_], NDArray[np.float64], NDArray[np.int_]]:
    """Where edges cut the rows `first` to `last` of each: rows, columns, and the edge that each cut is of."""
    first, last = np.clip(first, 0, height).astype(int), np.clip(last, -1, height - 1).astype(int)
    counts = np.maximum(last - first + 1, 0)
    edge = np.repeat(np.arange(len(top)), counts)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    rise = bottom[:, 0] - top[:, 0]
    share = np.divide(rows - top[edge, 0], rise[edge], out=np.zeros(len(edge)), where=rise[edge] > 0)
    return rows, top[edge, 1] + np.clip(share, 0, 1) * (bottom[edge, 1] - top[edge, 1]), edge


def _mark_edges(inside: Mask, top: Points, bottom: Points) -> None:
    """Add the voxels whose centres lie on edges."""
    height, width = inside.shape
    rows, columns, _ = _cuts(top, bottom, np.ceil(top[:, 0] - ON), np.floor(bottom[:, 0] + ON), height)
    near = np.rint(columns)
    on = (np.abs(columns - near) <= ON) & (near >= 0) & (near < width)
    inside[rows[on], near[on].astype(int)] = True
    for (y, x), (other, z) in zip(*(points[(bottom[:, 0] - top[:, 0] <= ON)] for points in (top, bottom)), strict=True):
        row, left, right = round(y), int(np.ceil(min(x, z) - ON)), int(np.floor(max(x, z) + ON))
        if max(abs(y - row), abs(other - row)) <= ON and 0 <= row < height:
            inside[row, max(left, 0) : max(right + 1, 0)] = True


def outlines(mask: Mask) -> list[Points]:
    """Closed polygons `(N, 2)` around the regions of a mask, such that `fill` gives the mask back.

    They run halfway between the centres of voxels inside and outside (marching squares), a third of a voxel or more from any
    centre. Regions that touch at corners only are apart. A region with holes is one polygon: narrow channels (keyholes) join
    the holes to its outer line. Outer lines turn clockwise on the screen.
    """
    loops = _trace(mask)
    outer = [i for i, loop in enumerate(loops) if _area(loop) > 0]
    merged = {i: loops[i] for i in outer}
    _join(loops, merged)
    return list(merged.values())


def _area(loop: Points) -> float:
    """Positive for loops that turn clockwise on a screen, whose y points down."""
    y, x = loop[:, 0] - loop[0, 0], loop[:, 1] - loop[0, 1]
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2


# For each pattern of 2x2 voxels (bit 0: upper left, 1: upper right, 2: lower left, 3: lower right), the pieces of outline within the
# square of their centres, as (from side, to side), sides being 0 top, 1 right, 2 bottom, 3 left; the inside is to the right of the way.
PIECES: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((0, 3),), 2: ((1, 0),), 3: ((1, 3),), 4: ((3, 2),), 5: ((0, 2),), 6: ((1, 0), (3, 2)), 7: ((1, 2),), 8: ((2, 1),),
    9: ((0, 3), (2, 1)), 10: ((2, 0),), 11: ((2, 3),), 12: ((3, 1),), 13: ((0, 1),), 14: ((3, 0),),
}  # fmt: skip
SIDES = ((0.0, 0.5), (0.5, 1.0), (1.0, 0.5), (0.5, 0.0))  # (y, x) of the sides' middles, from the upper left voxel


def _trace(mask: Mask) -> list[Points]:
    """The closed outlines of a mask, corners only."""
    where = np.argwhere(mask)
    if not len(where):
        return []
    low, high = where.min(axis=0), where.max(axis=0) + 1
    padded = np.pad(mask[low[0] : high[0], low[1] : high[1]], 1).astype(np.uint8)
    code = padded[:-1, :-1] | padded[:-1, 1:] << 1 | padded[1:, :-1] << 2 | padded[1:, 1:] << 3
    begins, ends = [], []
    for pattern, pieces in PIECES.items():
        squares = np.argwhere(code == pattern)
        for start, stop in pieces:
            begins.append(2 * squares + np.array(SIDES[start]) * 2)
            ends.append(2 * squares + np.array(SIDES[stop]) * 2)
    width = 2 * padded.shape[1]
    begin, end = (np.rint(np.concatenate(points)).astype(int) for points in (begins, ends))
    keys, follow = begin[:, 0] * width + begin[:, 1], end[:, 0] * width + end[:, 1]
    order = np.argsort(keys)
    following = order[np.searchsorted(keys[order], follow)].tolist()
    done = bytearray(len(following))
    loops = []
    for first in range(len(following)):
        chain = []
        at = first
        while not done[at]:
            done[at] = 1
            chain.append(at)
            at = following[at]
        if chain:
            points = begin[chain] / 2
            before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
            turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
            loops.append(points[turns] + low - 1)
    return loops


def _join(loops: Sequence[Points], merged: dict[int, Points]) -> None:
    """Put every hole into the polygon that it is in: `merged` holds the outer lines, by their place in `loops`.

    A narrow channel goes from the leftmost end of a hole to what is left of it: holes come from left to right, so that is the outer line, or
    a hole that has been joined to it. It runs a quarter of a voxel beside the centres of a row, for no reader's rounding to decide about
    voxels on it.
    """
    holes = sorted(set(range(len(loops))) - merged.keys(), key=lambda i: float(loops[i][:, 1].min()))
    if not holes:
        return
    begin, end = np.concatenate(loops), np.concatenate([np.roll(loop, -1, axis=0) for loop in loops])
    owner = np.repeat(np.arange(len(loops)), [len(loop) for loop in loops])
    home = {i: i for i in merged}
    for i in holes:
        hole = loops[i]
        left = int(np.lexsort((hole[:, 0], hole[:, 1]))[0])
        ways = [np.sign(hole[j % len(hole)] - hole[left]) for j in (left - 1, left + 1)]
        before = bool(ways[0].all())  # the line before the corner is a slanted one, not one along the columns
        tip = hole[left] + (ways[0] if before else ways[1]) / 4
        ring = np.roll(hole, -left if before else -left - 1, axis=0)  # begins after the tip
        edges, x = _left_of(begin, end, tip)
        x[owner[edges] == i] = -np.inf
        home[i] = home[int(owner[edges[x.argmax()]])]
        polygon = merged[home[i]]
        edges, x = _left_of(polygon, np.roll(polygon, -1, axis=0), tip)
        door = np.array([[tip[0], x.max()]])
        inner = np.concatenate([door, tip[None], ring, tip[None], door])
        merged[home[i]] = np.insert(polygon, int(edges[x.argmax()]) + 1, inner, axis=0)


def _left_of(begin: Points, end: Points, point: Points) -> tuple[NDArray[np.int_], NDArray[np.float64]]:
    """The edges that cross the row of a point, and where; minus infinity for those to its right."""
    edges = np.flatnonzero((begin[:, 0] < point[0]) != (end[:, 0] < point[0]))
    share = (point[0] - begin[edges, 0]) / (end[edges, 0] - begin[edges, 0])
    x = begin[edges, 1] + share * (end[edges, 1] - begin[edges, 1])
    return edges, np.where(x < point[1], x, -np.inf)
