"""What a task makes of a network's output for one case, and what it is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import Array, Shape

Scores = dict[str, dict[str, float]]
"""Class name -> metric name -> value; NaN where a metric is undefined (see `medseg.metrics` for the rule)."""


class DenseMap(Protocol):
    """A `(C, *shape)` float map that may be larger than memory: read it slab by slab along its first spatial axis."""

    @property
    def shape(self) -> Shape:
        """`(C, *spatial)`."""

    def slabs(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """`(rows, values)`: consecutive rows of the first spatial axis with `values` `(C, rows, ...)`, covering all rows once."""

    def strongest(self) -> Iterator[tuple[slice, NDArray[np.integer[Any]]]]:
        """`(rows, channels)`: which channel is the largest in each voxel `(rows, ...)`, the first of equal ones; covers all rows once.

        A map that need not compute all its values to know this does not.
        """
        for rows, values in self.slabs():
            yield rows, values.argmax(0)


@dataclass(frozen=True)
class Prediction:
    """A decoded prediction.

    Attributes:
        id: case id.
        labels: `(*shape)` voxel values as they are written.
        probabilities: `(K, *shape)` float16, one per class (with background first where classes exclude each other), or None.
        uncertainty: mean normalised entropy (0 sure, 1 ignorant) over predicted foreground, or None.
    """

    id: str
    labels: Array
    probabilities: NDArray[np.float16] | None = None
    uncertainty: float | None = None
