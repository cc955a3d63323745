"""How large something is: volume, diameters, intensities of one mask.

Surfaces lie half way between a voxel that is inside and one that is not, as those of a mesh of the mask do, so one voxel is as long as it is.
Diameters are those of the Image Biomarker Standardisation Initiative (code L0JK) and of RECIST 1.1 (long axis in a slice, and the longest
line in that slice perpendicular to it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import Array, Grid

Points = NDArray[np.float64]
PAIRS = 4000  # points whose distances are measured at once


@dataclass(frozen=True)
class Size:
    """The size of a mask, in millimetres; diameters are 0 where it is empty.

    Attributes:
        voxels: how many.
        content: mm3, or mm2 of an image in 2D.
        long_axis: largest diameter within one slice.
        short_axis: largest extent perpendicular to it, in the same slice.
        diameter: largest in space; in 2D that of the long axis.
        intensity: mean, least and largest value; None where there is no voxel, or values were not asked for.
    """

    voxels: int
    content: float
    long_axis: float
    short_axis: float
    diameter: float
    intensity: tuple[float, float, float] | None = None


def size_of(mask: NDArray[np.bool_], grid: Grid, values: Array | None = None) -> Size:
    """Measure a mask `(Z, Y, X)` or `(Y, X)` on its grid; `values` have the same shape."""
    count = int(np.count_nonzero(mask))
    voxel = abs(float(np.linalg.det(grid.affine[: grid.ndim, : grid.ndim])))
    if not count:
        return Size(0, 0.0, 0.0, 0.0, 0.0)
    box = tuple(slice(int(found[0]), int(found[-1]) + 1) for found in map(np.flatnonzero, _shadows(mask)))
    inner = mask[box]
    intensity = None
    if values is not None:
        inside = values[box][inner].astype(np.float64)
        intensity = float(inside.mean()), float(inside.min()), float(inside.max())
    spacing = grid.spacing
    solid = inner if inner.ndim == 3 else inner[None]
    long_axis = short_axis = 0.0
    for one in solid:
        if one.any():
            across, down = _in_slice(_surface(one) * np.asarray(spacing[-2:]))
            if across > long_axis:
                long_axis, short_axis = across, down
    diameter = long_axis if inner.ndim == 2 else _widest(_corners(_surface(inner) @ grid.affine[:3, :3].T))[0]
    return Size(count, count * voxel, long_axis, short_axis, diameter, intensity)


def _shadows(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    axes = range(mask.ndim)
    return [np.asarray(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]


def _surface(mask: NDArray[np.bool_]) -> Points:
    """`(n, d)` in index units: half way between neighbours of which one is inside."""
    padded = np.pad(mask, 1)
    points = []
    for axis in range(mask.ndim):
        found = np.argwhere(np.diff(padded.view(np.int8), axis=axis)).astype(np.float64)
        found[:, axis] += 0.5
        points.append(found - 1)
    return np.concatenate(points)


def _corners(points: Points) -> Points:
    """Those of the convex hull; all of them where they lie in one line or plane, or are few."""
    from scipy.spatial import ConvexHull, QhullError

    if len(points) <= points.shape[1] + 1:
        return points
    try:
        return np.asarray(points[ConvexHull(points).vertices])
    except QhullError:
        return points


def _widest(points: Points) -> tuple[float, Points, Points]:
    """The largest distance of two points, and the two."""
    best, ends = -1.0, (0, 0)
    for start in range(0, len(points), PAIRS):
        part = points[start : start + PAIRS]
        squares = (part**2).sum(axis=1)[:, None] + (points**2).sum(axis=1)[None] - 2 * part @ points.T
        flat = int(squares.argmax())
        row, column = divmod(flat, len(points))
        if squares[row, column] > best:
            best, ends = float(squares[row, column]), (start + row, column)
    first, second = points[ends[0]], points[ends[1]]
    return float(np.linalg.norm(second - first)), first, second


def _in_slice(points: Points) -> tuple[float, float]:
    """Long axis, and the longest chord of the hull perpendicular to it; `points` are `(n, 2)` in millimetres."""
    corners = _corners(points)
    length, first, second = _widest(corners)
    along = (second - first) / length
    t, height = corners @ along, corners @ np.array([-along[1], along[0]])
    best = 0.0
    following = np.roll(np.arange(len(corners)), -1)  # corners of a hull in 2D go round
    low, high = np.minimum(t, t[following]), np.maximum(t, t[following])
    for here in t:
        crossed = (low <= here + 1e-9) & (high >= here - 1e-9)
        rise = np.divide(here - t, t[following] - t, out=np.zeros_like(t), where=np.abs(t[following] - t) > 1e-9)
        heights = (height + np.clip(rise, 0, 1) * (height[following] - height))[crossed]
        flat = height[following][crossed & (np.abs(t[following] - t) <= 1e-9)]
        every = np.concatenate([heights, flat])
        best = max(best, float(every.max() - every.min()))
    return length, best
