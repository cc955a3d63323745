"""Stitched maps that are read in slabs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from medseg.prediction import DenseMap


class Slabs(DenseMap):
    """A map in memory, read two rows at a time."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def slabs(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        for start in range(0, self.shape[1], 2):
            rows = slice(start, min(start + 2, self.shape[1]))
            yield rows, self.values[:, rows]
