"""Which channel of a map is the largest in each voxel of another grid, without making the map there.

Linear resampling mixes the values around a new voxel. So a channel that is below another one in all voxels of a tile, or below the mean of
some others, can win nowhere within it and need not be resampled: of a hundred classes a few are left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.geometry import Shape
from medseg.imaging.resample import axis_matrix

BAND = 2**25  # values of consecutive source rows that are held (128 MiB)
ROWS = 8  # source rows that are held; with more, products are so large that each would start threads of its own
TILE = 24  # new voxels along each axis but the first: more would let more channels win somewhere, fewer would cost more calls
ROUNDING = {False: 1e-5, True: 2**-9}  # of the largest value: in float32, or in 16 bits, sums of products may be as close without a winner

Float = NDArray[np.float32]
Channels = NDArray[np.uint16]
Tile = tuple[tuple[slice, slice], ...]
"""For each axis but the first: new samples, and the old samples that they are made of."""


def strongest_slabs(
    slabs: Iterator[tuple[slice, Float]], source: Shape, shape: Shape, apart: int | None = None, half: bool = False
) -> Iterator[tuple[slice, Channels]]:
    """The strongest channel of a map `(C, *source)` that is resampled to `(C, *shape)` as by `resample_slabs`, slab by slab.

    Tiles are shared by as many threads as torch has.

    Args:
        slabs: consecutive `(rows, values)` along the first spatial axis that cover all rows once.
        source: spatial shape of the map.
        shape: spatial shape of the result.
        apart: the axis that takes its nearest neighbour instead.
        half: resampled values are rounded to 16 bits before they are compared; of equal ones the first channel wins.

    Yields:
        Consecutive rows of the first axis, and `(rows, ...)` channels.
    """
    # Of a tile, the matrix of an axis is small: dense products are quicker than sparse ones.
    axes: list[Float] = [axis_matrix(a, b, 0 if k == apart else 1).toarray() for k, (a, b) in enumerate(zip(source, shape, strict=True))]
    tiles = list(itertools.product(*(list(_tiles(matrix)) for matrix in axes[1:])))
    needed = [_columns(row) for row in axes[0]]
    held: list[Float] = []
    first = done = available = 0
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for rows, values in slabs:
            held.append(values)
            most = min(ROWS, BAND // math.prod(values.shape[:1] + source[1:]))
            available = rows.stop
            if available < source[0] and (available - first < most or needed[done].stop > available):
                continue
            band = np.concatenate(held, axis=1) if len(held) > 1 else held[0]
            stop = done
            while stop < shape[0] and needed[stop].stop <= available:
                stop += 1
            result: Channels = np.empty((stop - done, *shape[1:]), np.uint16)
            elect = partial(_elect, result, band, (axes[0][done:stop, first:available], *axes[1:]), half)
            list(pool.map(partial(elect, band.min(1), band.max(1)), tiles))
            yield slice(done, stop), result
            done = stop
            if done == shape[0]:
                break
            keep = max(first, min(needed[done].start, available))
            held, first = [band[:, keep - first :].copy()], keep  # a view would hold the whole band


def _tiles(matrix: Float) -> Iterator[tuple[slice, slice]]:
    for start in range(0, len(matrix), TILE):
        part = slice(start, min(start + TILE, len(matrix)))
        yield part, _columns(np.asarray(matrix[part].any(0)))


def _columns(row: NDArray[Any]) -> slice:
    found = np.flatnonzero(row)
    return slice(int(found[0]), int(found[-1]) + 1)


def _elect(result: Channels, band: Float, axes: tuple[Float, ...], half: bool, lowest: Float, highest: Float, tile: Tile) -> None:
    """Enter the strongest channels of one tile of a band `(C, source rows, ...)` into `result` `(rows, ...)`."""
    new, old = tuple(part for part, _ in tile), (slice(None), *(part for _, part in tile))
    low, high = (bound[old].reshape(len(band), -1) for bound in (lowest, highest))
    close = ROUNDING[half] * max(abs(float(low.min())), abs(float(high.max())))
    able = np.flatnonzero(high.max(1) >= low.min(1).max() - close)
    if len(able) > 1:
        values = band[(slice(None), *old)][able]
        winners = np.unique(_first(values))
        kept = (values - values[winners].mean(0)).reshape(len(able), -1).max(1) >= -close
        able, values = able[kept], values[kept]
    place = (slice(None), *new)
    if len(able) == 1:
        result[place] = able[0]
        return
    for axis in reversed(range(len(axes))):
        values = _along(values, axis + 1, axes[axis] if axis == 0 else axes[axis][new[axis - 1], old[axis]])
    result[place] = able.astype(np.uint16)[_first(values, half)]


def _along(values: Float, axis: int, matrix: Float) -> Float:
    lead, trail = values.shape[:axis], values.shape[axis + 1 :]
    if not trail:
        return np.asarray(values @ matrix.T)
    return np.asarray(matrix @ values.reshape(-1, values.shape[axis], math.prod(trail))).reshape(*lead, len(matrix), *trail)


def _first(values: Float, half: bool = False) -> Channels:
    """As `values.argmax(0)`, the first of equal ones, but quick along an axis that is not the last; `half` rounds to 16 bits before."""
    best, channel = np.full(values.shape[1:], -np.inf, np.float32), np.zeros(values.shape[1:], np.uint16)
    for k, one in enumerate(values):
        compared = torch.from_numpy(one).half().float().numpy() if half else one  # numpy's rounding takes ten times as long
        np.copyto(channel, np.uint16(k), where=compared > best)
        np.maximum(best, compared, out=best)
    return channel
