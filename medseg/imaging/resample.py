"""Resampling between grids of the same extent: outer voxel edges stay aligned (see `medseg.geometry.Resample`).

Resampling is linear and acts on each axis alone, so an axis is one matrix product. The matrices are those of `scipy.ndimage.zoom`
with `grid_mode=True, mode='nearest'`, which equal `skimage.transform.resize(mode='edge', anti_aliasing=False)`, the operator of nnU-Net
(Isensee et al. 2021); matrix products give the same values many times faster.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import Shape
from medseg.scratch import IN_MEMORY, Scratch, release, row_slabs

if TYPE_CHECKING:
    from scipy import sparse

ANISOTROPY = 3.0  # spacing ratio from which nnU-Net treats the coarse axis apart
SAME_SPACING = 1e-5  # relative: spacings of oblique images come out of a square root
SLAB = 2**22  # voxels of one float32 buffer (16 MiB)
VOTERS = 2**13  # voxels that are decided at a time: their numbers stay in the processor's cache
OUTSIDE = -1  # stands for background that is told apart; no label file holds it
Float = NDArray[np.float32]


@lru_cache(maxsize=64)
def axis_matrix(source: int, target: int, order: int) -> sparse.csr_array:
    """`(target, source)` weights that take `source` samples of an axis to `target` samples; every row sums to 1."""
    from scipy import ndimage, sparse

    if source == target:
        return sparse.csr_array(sparse.eye_array(source, dtype=np.float32))
    if order == 3 and source > 1:
        columns = []
        for start in range(0, source, 256):
            basis = np.zeros((source, min(256, source - start)))
            basis[np.arange(start, start + basis.shape[1]), np.arange(basis.shape[1])] = 1
            spline = ndimage.spline_filter1d(np.pad(basis, ((24, 24), (0, 0)), mode="edge"), 3, axis=0, mode="mirror")
            columns.append(_cubic(source, target) @ spline)
        dense = np.hstack(columns)
        dense[np.abs(dense) < 1e-6] = 0  # B-spline coefficients decay by 0.27 per sample: 1e-6 is 11 samples away
        return sparse.csr_array((dense / dense.sum(axis=1, keepdims=True)).astype(np.float32))
    if order == 0:
        centres = source / target * (np.arange(target) + 0.5) - 0.5  # in nnU-Net's order of operations, which decides ties
        nearest = np.clip(np.floor(centres + 0.5).astype(int), 0, source - 1)
        return sparse.csr_array((np.ones(target, np.float32), (np.arange(target), nearest)), shape=(target, source))
    position = (np.arange(target) + 0.5) * source / target - 0.5
    position = np.clip(position, 0, source - 1)
    low = np.minimum(np.floor(position).astype(int), max(source - 2, 0))
    high = np.minimum(low + 1, source - 1)
    weight = position - low
    rows = np.concatenate([np.arange(target)] * 2)
    values = np.concatenate([1 - weight, weight]).astype(np.float32)
    return sparse.csr_array((values, (rows, np.concatenate([low, high]))), shape=(target, source))


def _cubic(source: int, target: int) -> sparse.csr_array:
    """Cubic B-spline weights of the coefficients of an axis padded by 24 samples on both sides."""
    from scipy import sparse

    position = (np.arange(target) + 0.5) * source / target - 0.5 + 24
    first = np.floor(position).astype(int) - 1
    t = position - np.floor(position)
    taps = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    rows = np.repeat(np.arange(target), 4)
    return sparse.csr_array((taps.ravel(), (rows, (first[:, None] + np.arange(4)).ravel())), shape=(target, source + 48))


def along(array: Float, axis: int, matrix: sparse.csr_array) -> Float:
    """Apply an axis matrix to one axis of an array."""
    moved = np.moveaxis(array, axis, 0)
    flat = matrix @ np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
    return np.moveaxis(np.asarray(flat, dtype=np.float32).reshape(matrix.shape[0], *moved.shape[1:]), 0, axis)


def coarse_axis(spacing: tuple[float, ...]) -> int | None:
    """The axis whose spacing is more than 3 times that of every other axis, else None."""
    axis = int(np.argmax(spacing))
    others = [s for a, s in enumerate(spacing) if a != axis]
    return axis if len(spacing) > 2 and spacing[axis] > ANISOTROPY * max(others) else None


def thick_axis(*spacings: tuple[float, ...]) -> int | None:
    """The axis that nnU-Net takes apart: of the first spacing with a ratio above 3 the one axis that is largest, None where two are.

    Source: nnU-Net 2.8.1, `determine_do_sep_z_and_axis`. It resamples an image by its old spacing, then its new one, and maps the other way.
    """
    for spacing in spacings:
        if len(spacing) > 2 and max(spacing) / min(spacing) > ANISOTROPY:
            largest = [axis for axis, s in enumerate(spacing) if s >= max(spacing) * (1 - SAME_SPACING)]
            return largest[0] if len(largest) == 1 else None
    return None


def resample_image(
    image: NDArray[Any],
    shape: Shape,
    apart: int | None = None,
    order: int = 3,
    scratch: Scratch = IN_MEMORY,
    clip: bool = False,
) -> Float:
    """An image `(C, *source)` on `(C, *shape)`, cubic; along the axis `apart` by nearest neighbour, because cubic interpolation
    between thick slices invents structures (nnU-Net). float32, slab by slab of the first axis: both images may lie in files.

    Args:
        clip: keep within the range that a channel (with `apart`: each of its slices) had, where splines overshoot.
    """
    result: Float = scratch.zeros((image.shape[0], *shape), np.float32)
    source = image.shape[1:]
    matrices = [axis_matrix(a, b, 0 if axis == apart else order) for axis, (a, b) in enumerate(zip(source, shape, strict=True))]
    # Shrinking axes first keeps the intermediate arrays small.
    axes = sorted((a for a in range(len(shape)) if source[a] != shape[a]), key=lambda a: shape[a] / source[a])
    most, most_source = (max(1, SLAB // max(1, int(np.prod(s[1:])))) for s in (shape, source))
    for channel, out in zip(image, result, strict=True):
        bounds = _bounds(channel, apart, matrices) if clip else None
        for rows, first, last in _slabs(matrices[0], most, most_source):
            values = np.asarray(channel[first:last], dtype=np.float32)
            for axis in axes:
                values = along(values, axis, matrices[0][rows, first:last] if axis == 0 else matrices[axis])
            if bounds is not None:
                low, high = (bound[rows] if apart == 0 else bound for bound in bounds)
                values = np.clip(values, low, high)
            out[rows] = values
            release(image)
            release(result)
    return result


def _bounds(channel: NDArray[Any], apart: int | None, matrices: list[sparse.csr_array]) -> tuple[Float, Float]:
    """Lowest and highest value of a channel, or of the slice that each new slice along `apart` is made from; they broadcast."""
    bounds: list[Float] = []
    for extreme in (np.minimum, np.maximum):
        if apart is None:
            parts = [extreme.reduce(channel[rows], axis=None) for rows in row_slabs(channel.shape)]
            bounds.append(np.asarray(extreme.reduce(np.array(parts)), dtype=np.float32))
        elif apart == 0:
            parts = [extreme.reduce(plane, axis=None) for plane in channel]
            bounds.append(_spread(parts, 0, matrices))
        else:
            others = tuple(a for a in range(channel.ndim) if a != apart)
            parts = [extreme.reduce(channel[rows], axis=others) for rows in row_slabs(channel.shape)]
            bounds.append(_spread(extreme.reduce(np.array(parts), axis=0), apart, matrices))
        release(channel)
    return bounds[0], bounds[1]


def _spread(values: Any, axis: int, matrices: list[sparse.csr_array]) -> Float:
    """One value per old slice along an axis to one per new slice, with all axes."""
    new = along(np.asarray(values, dtype=np.float32), 0, matrices[axis])
    return new.reshape(tuple(-1 if a == axis else 1 for a in range(len(matrices))))


def resample_label(label: NDArray[Any], shape: Shape, apart: int | None = None, body: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """A label map `(*source)` on `shape`: every value as a 0/1 map, resampled linearly, and the largest wins. Keeps the dtype.

    Where several win, the value of the nearest voxel does if it is one of them, else the smallest. Equal to nnU-Net 2.8.1 with batchgenerators
    0.25.5 to the voxel, ties within rounding included. Slab by slab; only voxels between different values cost time.

    Args:
        label: integers.
        shape: to resample to.
        apart: the axis along which each new slice is its nearest neighbour.
        body: background outside of it counts as a value of its own, and becomes background afterwards.
    """
    source = label.shape
    if source == shape:
        return label.copy()
    axes = [_neighbours(a, b, axis == apart) for axis, (a, b) in enumerate(zip(source, shape, strict=True))]
    result = np.empty(shape, dtype=label.dtype)
    signed = np.dtype(np.int64) if label.dtype == np.uint64 else np.result_type(label.dtype, np.int8)  # numpy would take floats for uint64
    # A voxel between different values takes some hundred bytes.
    most, most_source = (max(1, SLAB // 4 // max(1, int(np.prod(s[1:])))) for s in (shape, source))
    step = max(1, min(most, most_source * shape[0] // source[0]))
    for start in range(0, shape[0], step):
        rows = axes[0].part(slice(start, start + step))
        needed = slice(int(rows.low[0]), int(rows.high[-1]) + 1)
        part = label[needed]
        if body is not None:
            part = np.where((part == 0) & ~body[needed], signed.type(OUTSIDE), part.astype(signed, copy=False))
        elected = _elected(part, [rows.shifted(-needed.start), *axes[1:]])
        result[start : start + step] = elected if body is None else np.where(elected == OUTSIDE, 0, elected)
    return result


@dataclass(frozen=True)
class _Neighbours:
    """For each new sample of an axis the old samples around it, the nearest one, and the weight of the lower one."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    near: NDArray[np.intp]
    weight: NDArray[np.float64]

    def part(self, rows: slice) -> _Neighbours:
        """Some of the new samples."""
        return _Neighbours(self.low[rows], self.high[rows], self.near[rows], self.weight[rows])

    def shifted(self, by: int) -> _Neighbours:
        """The same, with old samples counted otherwise."""
        return _Neighbours(self.low + by, self.high + by, self.near + by, self.weight)


def _neighbours(source: int, target: int, apart: bool) -> _Neighbours:
    # In scipy's order of operations, which decides ties; beyond the edge a sample is mixed from twice the same.
    position = (np.arange(target) + 0.5) * (source / target) - 0.5
    low, near = (np.floor(p).astype(np.intp) for p in (position, position + 0.5))
    ends = (0, source - 1)
    if apart:
        return _Neighbours(near.clip(*ends), near.clip(*ends), near.clip(*ends), np.ones(target))
    return _Neighbours(low.clip(*ends), (low + 1).clip(*ends), near.clip(*ends), 1 - (position - low))


def _elected(label: NDArray[Any], axes: list[_Neighbours]) -> NDArray[Any]:
    """The value with the largest sum of weights among the neighbours of each new voxel."""
    elected: NDArray[Any] = label[np.ix_(*(axis.near for axis in axes))]
    mixed = _mixed(label, [i for i, axis in enumerate(axes) if (axis.low != axis.high).any()])
    between = np.nonzero(mixed[np.ix_(*(axis.low for axis in axes))])
    if not len(between[0]):
        return elected
    values = np.unique(label)[:, None]
    for start in range(0, len(between[0]), VOTERS):
        at = tuple(places[start : start + VOTERS] for places in between)
        elected[at] = _vote(label, axes, at, values, elected[at])
    return elected


def _vote(label: NDArray[Any], axes: list[_Neighbours], at: tuple[NDArray[np.intp], ...], values: NDArray[Any], near: NDArray[Any]) -> Any:
    """The winners at some new voxels, of which the nearest old ones hold `near`; `values` `(n, 1)` are all that there are."""
    sides = [((axis.low[i], axis.weight[i]), (axis.high[i], 1 - axis.weight[i])) for axis, i in zip(axes, at, strict=True)]
    corners = list(itertools.product(*sides))
    voters = np.stack([label[tuple(index for index, _ in corner)] for corner in corners])
    weights = np.stack([reduce(np.multiply, (weight for _, weight in corner)) for corner in corners])
    candidates = values if len(values) < len(voters) else voters
    # In scipy's order: a sum in another order rounds otherwise.
    votes = np.stack([reduce(np.add, np.where(voters == candidate, weights, 0)) for candidate in candidates])
    best = votes == votes.max(0)
    smallest = np.where(best, candidates, np.iinfo(label.dtype).max).min(0)
    return np.where((best & (candidates == near)).any(0), near, smallest)


def _mixed(label: NDArray[Any], axes: list[int]) -> NDArray[np.bool_]:
    """Whether a voxel and those after it along some axes hold different values."""
    low, high = label, label
    for axis in axes:
        here, after = (tuple(part if a == axis else slice(None) for a in range(label.ndim)) for part in (slice(-1), slice(1, None)))
        low, high = low.copy(), high.copy()
        low[here], high[here] = np.minimum(low[here], low[after]), np.maximum(high[here], high[after])
    return np.asarray(low != high)


def _slabs(matrix: sparse.csr_array, most: int, most_source: int) -> Iterator[tuple[slice, int, int]]:
    """Target rows in slabs of at most `most` rows, with the range of source rows that each needs (about `most_source` at most)."""
    target, source = matrix.shape
    step = max(1, min(most, int(max(1, most_source) * target / source)))
    for start in range(0, target, step):
        rows = slice(start, min(start + step, target))
        columns = matrix[rows].indices
        yield rows, int(columns.min()), int(columns.max()) + 1


def resample_slabs(
    slabs: Iterator[tuple[slice, Float]], source: Shape, shape: Shape, apart: int | None = None
) -> Iterator[tuple[slice, Float]]:
    """Slabs of a map `(C, *source)` to slabs of the map on `(C, *shape)`, linear; holds no more than a few slabs.

    Args:
        slabs: consecutive `(rows, values)` along the first spatial axis that cover all rows once.
        apart: the axis that takes its nearest neighbour instead.
    """
    matrices = [axis_matrix(a, b, 0 if axis == apart else 1) for axis, (a, b) in enumerate(zip(source, shape, strict=True))]
    held: Float | None = None  # source rows first .. first + held.shape[1], already resampled along the other axes
    first = 0
    done = 0
    for rows, values in slabs:
        part = np.asarray(values, dtype=np.float32)
        for axis in range(1, len(shape)):
            if source[axis] != shape[axis]:
                part = along(part, axis + 1, matrices[axis])
        held = part if held is None else np.concatenate([held, part], axis=1)
        available = rows.stop
        most = max(1, SLAB // max(1, held.shape[0] * int(np.prod(shape[1:]))))
        while done < shape[0]:
            stop = done
            while stop < shape[0] and stop - done < most and matrices[0][[stop]].indices.max() < available:
                stop += 1
            if stop == done:
                break
            target = slice(done, stop)
            yield target, along(held, 1, matrices[0][target, first:available])
            done = stop
        if done < shape[0]:
            keep = min(int(matrices[0][[done]].indices.min()), available)
            if keep > first:
                held, first = held[:, keep - first :], keep
