"""Masks of objects, which are grids of cells over a box, brought to the voxels of that box."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
INSIDE = 0.5
"""Probability from which on a voxel belongs to an object."""


def voxel_ranges(boxes: Floats) -> tuple[Integers, Integers]:
    """First voxels and those after the last, `(n, d)` each, of those whose centres lie in the boxes `(n, 2 d)`.

    A box between two centres stands for the voxel that it lies in: no object is lost because it is small.
    """
    lower, upper = np.split(np.asarray(boxes, np.float64), 2, axis=1)
    first, last = np.ceil(lower - 0.5), np.ceil(upper - 0.5)
    thin = last <= first
    first = np.where(thin, np.floor((lower + upper) / 2), first)
    return first.astype(np.int64), np.where(thin, first + 1, last).astype(np.int64)


def rasterised(
    cells: NDArray[Any], box: Floats, first: tuple[int, ...], last: tuple[int, ...], thick: int | None = None
) -> NDArray[np.float32]:
    """A mask's values in the centres of some voxels: linear between centres of cells, along `thick` the nearest cell's.

    Beyond the centres of the outermost cells their values go on.

    Args:
        cells: `(*cells)` values of equal cells of the box.
        box: `(2 d,)` lower and upper corner in voxels.
        first: first voxel along each axis.
        last: the one after the last along each axis.
    """
    values = np.asarray(cells, np.float32)
    for axis, count in enumerate(cells.shape):
        lower, upper = box[axis], box[axis + cells.ndim]
        if upper - lower == count and lower == int(lower):
            low, high = first[axis] - int(lower), last[axis] - int(lower)
            if low >= 0 and high <= count:  # cells are voxels
                values = values[(slice(None),) * axis + (slice(low, high),)]
                continue
        scale = count / max(upper - lower, 1e-9)
        places = np.arange(first[axis], last[axis]) * scale
        places += (0.5 - lower) * scale - 0.5
        np.maximum(places, 0, out=places)
        np.minimum(places, count - 1, out=places)
        if axis == thick or count == 1:
            values = values.take(np.rint(places).astype(np.intp), axis)
            continue
        cell = np.minimum(places.astype(np.intp), count - 2)
        share = (places - cell).astype(np.float32).reshape(-1, *(1,) * (cells.ndim - axis - 1))
        low_values = values.take(cell, axis)
        values = values.take(cell + 1, axis)
        values -= low_values
        values *= share
        values += low_values
    return values
