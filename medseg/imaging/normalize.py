"""Intensities to the range a network learns well from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.scratch import release, row_slabs

Image = NDArray[np.float32]
SMALLEST_STD = 1e-6
PERCENTILES, SPREAD = (1, 50, 99.8), 4.0
MOST_VALUES = 2**22  # that percentiles are taken of; more would not change them


def standardise(
    channel: NDArray[Any], mean: float, std: float, low: float | None = None, high: float | None = None, out: Image | None = None
) -> Image:
    """`(clip(channel, low, high) - mean) / std` with numbers known beforehand, equal for every case.

    Returns float32, a new array or `out`. Works slab by slab: both arrays may lie in files.
    """
    result = np.empty(channel.shape, dtype=np.float32) if out is None else out
    for rows in row_slabs(channel.shape):
        part = np.array(channel[rows], dtype=np.float32)
        if low is not None or high is not None:
            np.clip(part, low, high, out=part)
        part -= np.float32(mean)
        part /= np.float32(max(std, SMALLEST_STD))
        result[rows] = part
        release(result)
        release(channel)
    return result


def zscore(
    channel: NDArray[Any], mask: NDArray[np.bool_] | None = None, out: Image | None = None, measured: NDArray[np.bool_] | None = None
) -> Image:
    """Subtract the mean and divide by the standard deviation of this channel (float32, a new array or `out`).

    With a `mask` both are taken inside it and everything outside becomes 0. Voxels that were not `measured` count in neither. A constant
    channel becomes 0. Works slab by slab.
    """
    result = np.empty(channel.shape, dtype=np.float32) if out is None else out
    counted = measured if mask is None else mask if measured is None else mask & measured
    mean, std = moments(channel, counted if counted is not None and counted.any() else None)
    if std < SMALLEST_STD:
        result[...] = 0
        return result
    standardise(channel, mean, std, out=result)
    if mask is not None:
        for rows in row_slabs(channel.shape):
            result[rows][~mask[rows]] = 0
            release(result)
    return result


def to_range(channel: NDArray[Any], out: Image | None = None) -> Image:
    """The lowest value of this channel to 0 and its highest to 1 (float32, a new array or `out`). Works slab by slab."""
    low, high = math.inf, -math.inf
    for rows in row_slabs(channel.shape):
        low, high = min(low, float(channel[rows].min())), max(high, float(channel[rows].max()))
        release(channel)
    return standardise(channel, low, high - low, out=out)


def to_spread(channel: NDArray[Any], out: Image | None = None, measured: NDArray[np.bool_] | None = None) -> Image:
    """The median of this channel to 0, and its 1st and 99.8th percentile `SPREAD` apart (float32, a new array or `out`).

    The median of a micrograph or photograph is its background, dark or bright, whatever the objects in it, and what is seen beyond its border
    is 0. Voxels that were not `measured` do not count. Where both percentiles are equal it is `zscore`. Works slab by slab.
    """
    values = channel.reshape(-1) if measured is None or not measured.any() else channel[measured]
    low, middle, high = (float(v) for v in np.percentile(values[:: max(1, values.size // MOST_VALUES)], PERCENTILES))
    if high - low < SMALLEST_STD:
        return zscore(channel, out=out, measured=measured)
    return standardise(channel, middle, (high - low) / SPREAD, out=out)


def moments(channel: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """Mean and standard deviation (inside `mask`), in float64 and slab by slab."""
    count, total, squares = 0, 0.0, 0.0
    for rows in row_slabs(channel.shape):
        values = channel[rows] if mask is None else channel[rows][mask[rows]]
        count += values.size
        total += float(values.sum(dtype=np.float64))
        release(channel)
    mean = total / count
    for rows in row_slabs(channel.shape):
        values = channel[rows] if mask is None else channel[rows][mask[rows]]
        squares += float(np.square(values.astype(np.float64) - mean).sum())
        release(channel)
    return mean, math.sqrt(squares / count)


def body_mask(nonzero: NDArray[np.bool_], flat_is_slice: bool = False) -> NDArray[np.bool_]:
    """Nonzero voxels and the holes within them: zeros inside the body are data, not background (Isensee et al. 2021).

    Args:
        flat_is_slice: an image of two axes is a volume of one slice, which is open on both sides and encloses nothing (as in nnU-Net).
    """
    if flat_is_slice and nonzero.ndim == 2:
        return nonzero.copy()
    from scipy import ndimage

    return np.asarray(ndimage.binary_fill_holes(nonzero))
