"""What a task makes of a network's output for one case, and what it is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medseg.cells import INSIDE, rasterised, voxel_ranges
from medseg.geometry import Array, Crop, Reorient, Shape

SURE = 255
"""In masks of `FoundObjects`, what stands for certainty."""

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
class FoundObjects:
    """Objects of one case, each of them once, however many windows, views and networks have seen it: n objects on a grid of d axes.

    Attributes:
        shape: of the grid.
        boxes: `(n, 2 d)` float64 lower corner, then upper corner, in voxels of the grid; voxel i covers [i, i + 1].
        scores: `(n,)` float32 confidence, 0..1.
        classes: `(n,)` int32, 1..K.
        masks: of each object, `(*cells)` uint8 probability (255 is 1) in the centres of equal cells of its box.
        thick: the axis along which a voxel takes the nearest cell, if any; along all others cells are interpolated.
    """

    shape: Shape
    boxes: NDArray[np.float64]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32]
    masks: tuple[NDArray[np.uint8], ...]
    thick: int | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def resized(self, shape: Shape, thick: int | None = None) -> FoundObjects:
        """The same objects on another grid of the same extent."""
        factors = np.array(shape, np.float64) / np.array(self.shape, np.float64)
        return replace(self, shape=shape, boxes=self.boxes * np.tile(factors, 2), thick=self.thick if thick is None else thick)

    def moved(self, step: Crop) -> FoundObjects:
        """The same objects on the grid from which this one was cropped."""
        return replace(self, shape=step.source, boxes=self.boxes + np.tile(step.start, 2))

    def turned(self, step: Reorient) -> FoundObjects:
        """The same objects on the grid from which this one came by permuting and flipping axes."""
        axes = np.argsort(step.axes)
        lower, upper = np.split(self.boxes, 2, axis=1)
        flips, size = np.array(step.flips), np.array(self.shape, np.float64)
        low, high = np.where(flips, size - upper, lower), np.where(flips, size - lower, upper)
        return replace(
            self,
            shape=tuple(self.shape[a] for a in axes),
            boxes=np.concatenate([low[:, axes], high[:, axes]], axis=1),
            masks=tuple(step.undo(mask) for mask in self.masks),
            thick=None if self.thick is None else step.axes[self.thick],
        )

    def mask(self, k: int) -> tuple[tuple[int, ...], NDArray[np.bool_]] | None:
        """The first voxel of an object's box, and which voxels of the box belong to it; None where none of the grid does."""
        first, last = voxel_ranges(self.boxes[k : k + 1])
        lower = tuple(np.maximum(first[0], 0).tolist())
        upper = tuple(np.minimum(last[0], self.shape).tolist())
        if any(a >= b for a, b in zip(lower, upper, strict=True)):
            return None
        inside = np.rint(rasterised(self.masks[k], self.boxes[k], lower, upper, self.thick)) >= SURE * INSIDE
        return (lower, inside) if inside.any() else None


Stitched: TypeAlias = Any
"""What a domain makes of one head's outputs over a case: `FoundObjects` of an `ObjectHead`, a `DenseMap` of any other head. So which of them
it is follows from the head."""


@dataclass(frozen=True)
class Prediction:
    """A decoded prediction.

    Attributes:
        id: case id.
        labels: `(*shape)` voxel values as they are written.
        probabilities: `(K, *shape)` float16, one per class (with background first where classes exclude each other), or None. The most probable class
            need not be that of `labels`, which may be decided otherwise.
        uncertainty: mean normalised entropy (0 sure, 1 ignorant) over predicted foreground, or None.
        objects: confidence (0..1) of each object by its code in `labels`; None where the task has no scores of objects.
        found: all that was found, also what is not confident enough for `labels` or hidden there, each object with a mask of its own; classes
            are those of the task's labels, the first of them 1. None where `labels` show all there is.
    """

    id: str
    labels: Array
    probabilities: NDArray[np.float16] | None = None
    uncertainty: float | None = None
    objects: Mapping[int, float] | None = None
    found: FoundObjects | None = None
