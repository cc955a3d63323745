"""Windows over an array: where they lie, how they are cut, and how they are blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import Shape

SIGMA = 1 / 8  # of the window: nnU-Net's importance map


def window_starts(size: int, window: int, overlap: float) -> tuple[int, ...]:
    """First samples of evenly spaced windows that cover an axis, neighbours overlapping by at least `overlap` of a window.

    An axis smaller than the window gets one window that is centred on it, so its start is zero or negative.
    """
    if size <= window:
        return (-((window - size) // 2),)
    step = max(1.0, window * (1 - overlap))
    count = math.ceil((size - window) / step) + 1
    return tuple(round((size - window) / (count - 1) * i) for i in range(count))


def gaussian_weights(window: int, centred: bool = True) -> NDArray[np.float64]:
    """Importance of each sample of a window along one axis: 1 in the middle, never 0, because windows are worst at their rims.

    The middle of a window of even size lies between two samples; where it is not `centred`, the latter of them is the peak (nnU-Net).
    """
    middle = (window - 1) / 2 if centred else window // 2
    offset = (np.arange(window) - middle) / max(window * SIGMA, 1e-9)
    return np.asarray(np.exp(-0.5 * offset**2))


def coverage(size: int, window: int, starts: tuple[int, ...]) -> NDArray[np.float64]:
    """Sum of the weights of all windows along one axis `(size,)`. Windows lie on a product grid, so sums of axes multiply."""
    total = np.zeros(size)
    weights = gaussian_weights(window)
    for start in starts:
        inside, part = overlap_slices(start, window, size)
        total[inside] += weights[part]
    return total


def overlap_slices(start: int, window: int, size: int) -> tuple[slice, slice]:
    """The part of an axis that a window at `start` covers, in the axis' and in the window's coordinates (maybe empty)."""
    low, high = min(max(start, 0), size), max(min(start + window, size), 0)
    high = max(low, high)
    return slice(low, high), slice(low - start, high - start)


def cut(array: NDArray[Any], start: tuple[int, ...], window: Shape, dtype: Any) -> NDArray[Any]:
    """The window `(..., *window)` of an array `(..., *shape)`; samples outside the array are 0. Reads only what it needs."""
    lead = array.shape[: array.ndim - len(window)]
    pairs = [overlap_slices(s, w, n) for s, w, n in zip(start, window, array.shape[len(lead) :], strict=True)]
    source: tuple[Any, ...] = (..., *(p[0] for p in pairs))
    if all(p[1] == slice(0, w) for p, w in zip(pairs, window, strict=True)):
        return np.array(array[source], dtype=dtype)
    result = np.zeros((*lead, *window), dtype=dtype)
    target: tuple[Any, ...] = (..., *(p[1] for p in pairs))
    result[target] = array[source]
    return result


def outer(vectors: list[NDArray[np.float64]]) -> NDArray[np.float32]:
    """The product of one vector per axis as an array."""
    return np.asarray(reduce(np.multiply.outer, vectors), dtype=np.float32)


def positions(starts: tuple[tuple[int, ...], ...]) -> Iterator[tuple[int, ...]]:
    """All windows of a product grid, the first axis slowest."""
    return itertools.product(*starts)
