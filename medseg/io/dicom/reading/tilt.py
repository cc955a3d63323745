"""Slices sheared by a tilted gantry: onto an orthogonal grid for a network, and label maps back onto the slices for writers."""

from __future__ import annotations

import numpy as np

from medseg.geometry import Array, Grid
from medseg.io.dicom.volume import Volume

ROUNDING = 1e-6  # of a pixel


def level(values: Array, acquired: Grid, grid: Grid, out: Array) -> None:
    """Shift every slice within its plane onto the orthogonal grid, linearly between pixels.

    Slices stay where they are along the normal, so nothing is mixed between them. The outer halves of the outer pixels have the values
    of their centres; beyond stands the smallest value.

    Args:
        values: `(*acquired.shape)`.
        acquired: the sheared grid.
        grid: the orthogonal one, see `Volume.grid`.
        out: `(*grid.shape)`; integers are rounded.
    """
    from scipy import ndimage

    lowest = values.min()
    for z in range(len(values)):
        start = _start(acquired, grid, z)
        moved = ndimage.affine_transform(
            values[z].astype(np.float64), np.eye(2), start, output_shape=grid.shape[1:], order=1, mode="nearest", prefilter=False
        )
        out[z] = lowest
        rows, columns = (_within(offset, n, count) for offset, n, count in zip(start, acquired.shape[1:], grid.shape[1:], strict=True))
        out[z, rows, columns] = np.rint(moved[rows, columns]) if out.dtype.kind in "iu" else moved[rows, columns]


def _within(offset: float, pixels: int, count: int) -> slice:
    """Which of `count` pixels that begin at `offset` lie within the outer edges of an image of so many pixels."""
    first = max(0, int(np.ceil(-0.5 - ROUNDING - offset)))
    return slice(first, max(first, min(count, int(np.floor(pixels - 0.5 + ROUNDING - offset)) + 1)))


def to_acquired(volume: Volume, labels: Array) -> Array:
    """A label map on the grid of a volume, brought onto the slices as they were acquired, by nearest neighbour.

    Args:
        volume: with or without a tilt; without one the labels are returned as they are.
        labels: `(*volume.grid.shape)`.

    Returns:
        `(*volume.tilted.shape)`, so that `labels[z]` belongs to `volume.frames[0][z]`, pixel by pixel.
    """
    if volume.tilted is None:
        return labels
    from scipy import ndimage

    acquired = volume.tilted
    result = np.zeros(acquired.shape, labels.dtype)
    for z in range(acquired.shape[0]):
        start = [-value for value in _start(acquired, volume.grid, z)]
        ndimage.affine_transform(
            labels[z], np.eye(2), start, output_shape=acquired.shape[1:], output=result[z], order=0, mode="nearest", prefilter=False
        )
    return result


def _start(acquired: Grid, grid: Grid, z: int) -> list[float]:
    """Where, in pixels of the acquired slice, the first pixel of the slice in the orthogonal grid lies."""
    inverse = np.linalg.inv(acquired.affine)
    index = inverse @ np.append(grid.world((z, 0, 0)), 1.0)
    return [float(index[1]), float(index[2])]
