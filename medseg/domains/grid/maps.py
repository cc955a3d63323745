"""Maps over a case that may be larger than memory. What needs torch is imported where it is used: processes that read cases do without."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import Shape
from medseg.imaging.resample import SLAB, resample_slabs
from medseg.prediction import DenseMap
from medseg.scratch import release


@dataclass(frozen=True)
class BlendedMap(DenseMap):
    """Weighted sums of windows `(C, *shape)` (in memory or in a temporary file), divided by the sum of weights as they are read."""

    total: NDArray[np.float32]
    weights: tuple[NDArray[np.float64], ...]

    @property
    def shape(self) -> Shape:
        """`(C, *spatial)`."""
        return self.total.shape

    def slabs(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """See `DenseMap.slabs`."""
        rest = reduce(np.multiply.outer, self.weights[1:])
        step = max(1, SLAB // max(1, self.shape[0] * rest.size))
        for start in range(0, self.shape[1], step):
            rows = slice(start, min(start + step, self.shape[1]))
            weight = np.multiply.outer(self.weights[0][rows], rest)
            values = (self.total[:, rows] / weight).astype(np.float32)
            release(self.total)
            yield rows, values


@dataclass(frozen=True)
class HalfMap(DenseMap):
    """A blended map `(C, *shape)` of 16-bit numbers (in memory or in a temporary file)."""

    values: NDArray[np.float16]

    @property
    def shape(self) -> Shape:
        """`(C, *spatial)`."""
        return self.values.shape

    def slabs(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """See `DenseMap.slabs`."""
        import torch

        step = max(1, SLAB // max(1, self.shape[0] * math.prod(self.shape[2:])))
        for start in range(0, self.shape[1], step):
            rows = slice(start, min(start + step, self.shape[1]))
            values: NDArray[np.float32] = torch.from_numpy(self.values[:, rows]).float().numpy()  # numpy takes ten times as long
            release(self.values)
            yield rows, values


@dataclass(frozen=True)
class MeanMap(DenseMap):
    """The mean of maps of one shape, added up in 16 bits as nnU-Net does; computed as it is read."""

    parts: tuple[DenseMap, ...]

    @property
    def shape(self) -> Shape:
        """`(C, *spatial)`."""
        return self.parts[0].shape

    def slabs(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """See `DenseMap.slabs`."""
        for pieces in zip(*(part.slabs() for part in self.parts), strict=True):
            total = reduce(np.add, (values.astype(np.float16) for _, values in pieces))
            yield pieces[0][0], (total / np.float16(len(pieces))).astype(np.float32)


@dataclass(frozen=True)
class ResampledMap(DenseMap):
    """A map on another grid of the same extent, computed as it is read: linearly, along the axis `thick` by nearest neighbour.

    With `half` it is rounded to 16 bits, as nnU-Net keeps it: where classes are close that makes ties, which the first one wins.
    """

    source: DenseMap
    spatial: Shape
    thick: int | None = None
    half: bool = False

    @property
    def shape(self) -> Shape:
        """`(C, *spatial)`."""
        return (self.source.shape[0], *self.spatial)

    def slabs(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """See `DenseMap.slabs`."""
        import torch

        for rows, values in resample_slabs(self.source.slabs(), self.source.shape[1:], self.spatial, self.thick):
            yield rows, torch.from_numpy(values).half().float().numpy() if self.half else values

    def strongest(self) -> Iterator[tuple[slice, NDArray[np.integer[Any]]]]:
        """See `DenseMap.strongest`; resamples only the channels that can win somewhere in a tile."""
        from medseg.imaging.election import strongest_slabs

        return strongest_slabs(self.source.slabs(), self.source.shape[1:], self.spatial, self.thick, self.half)


@dataclass(frozen=True)
class VectorMap(DenseMap):
    """Displacements `(d, *shape)` along the last d axes on another grid of the same extent, in its voxels: those of the nearest voxel."""

    source: DenseMap
    spatial: Shape

    @property
    def shape(self) -> Shape:
        """`(C, *spatial)`."""
        return (self.source.shape[0], *self.spatial)

    def slabs(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """See `DenseMap.slabs`."""
        before = self.source.shape[1:]
        nearest = [np.minimum(((np.arange(n) + 0.5) * (m / n)).astype(np.intp), m - 1) for n, m in zip(self.spatial, before, strict=True)]
        factors = np.array([n / m for n, m in zip(self.spatial, before, strict=True)][-self.source.shape[0] :], np.float32)
        for rows, values in self.source.slabs():
            first, last = np.searchsorted(nearest[0], [rows.start, rows.stop])
            if first == last:
                continue
            chosen = values[np.ix_(np.arange(len(values)), nearest[0][first:last] - rows.start, *nearest[1:])]
            yield slice(int(first), int(last)), chosen * factors.reshape(-1, *(1,) * len(self.spatial))
