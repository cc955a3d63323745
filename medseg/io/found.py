"""What was found in a prediction: objects of things, and each class of stuff as one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import Labels
from medseg.io.exports import Result
from medseg.io.rle import Rle
from medseg.scratch import row_slabs

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Found:
    """An object, or all voxels of a class without objects.

    Attributes:
        places: of its voxel values, in `Findings.values`.
        index: of its class in `Labels.classes`.
        number: of the object within its case; 0 of what has none.
        box: the smallest that holds it.
        voxels: how many there are.
        score: confidence from 0 to 1, None where nobody said it.
    """

    places: tuple[int, ...]
    index: int
    number: int
    box: Box
    voxels: int
    score: float | None


@dataclass(frozen=True)
class Findings:
    """All that was found in one case.

    Attributes:
        labels: what values mean.
        values: `(n,)` the voxel values that occur, sorted.
        map: `(*shape)` int32 place of each voxel's value in `values`.
        found: things by number; classes without objects after them, in their order.
    """

    labels: Labels
    values: NDArray[np.integer]
    map: NDArray[np.int32]
    found: tuple[Found, ...]

    @classmethod
    def of(cls, result: Result) -> Findings:
        """What a prediction shows; voxels are looked at slab by slab."""
        from scipy import ndimage

        array, labels = result.prediction.labels, result.labels
        parts = [np.unique(array[rows]) for rows in row_slabs(array.shape)]
        values = np.unique(np.concatenate(parts)) if parts else np.zeros(0, array.dtype)
        places = result.scratch.zeros(array.shape, np.int32)
        counts = np.zeros(len(values), np.int64)
        for rows in row_slabs(array.shape):
            places[rows] = np.searchsorted(values, array[rows])
            counts += np.bincount(places[rows].ravel(), minlength=len(values))
        # What is asked of a label map leaves 0 out: the first value is the background, or it is looked for apart.
        first = int(len(values) > 0 and values[0] != 0)
        boxes = dict(enumerate(ndimage.find_objects(places + 1 if first else places), 1 - first))
        scores = result.prediction.objects
        found: list[Found] = []
        for index, number, owned in _owners(labels, values):
            box = _around([boxes[place] for place in owned])
            score = None if scores is None or not number else scores.get(int(values[owned[0]]))
            found.append(Found(owned, index, number, box, int(counts[list(owned)].sum()), score))
        return cls(labels, values, places, tuple(found))

    def mask(self, one: Found) -> NDArray[np.bool_]:
        """Its voxels within its box."""
        inside = self.map[one.box]
        return np.asarray(inside == one.places[0] if len(one.places) == 1 else np.isin(inside, one.places))

    def centre(self, one: Found) -> NDArray[np.float64]:
        """`(d,)` mean index of its voxels."""
        return np.array([axis.start + at.mean() for axis, at in zip(one.box, np.nonzero(self.mask(one)), strict=True)])

    def rle(self, one: Found) -> Rle:
        """Its run lengths, of the whole image."""
        parts = [self._order[slice(*np.searchsorted(self._sorted, [place, place + 1]))] for place in one.places]
        positions = parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))
        return Rle.of_positions(positions, self.map.shape)

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """Voxels in the order of their values, and of one value in that of run lengths."""
        return np.argsort(self.map.ravel(order="F"), kind="stable")

    @cached_property
    def _sorted(self) -> NDArray[np.int32]:
        return np.asarray(self.map.ravel(order="F")[self._order])


def _owners(labels: Labels, values: NDArray[np.integer]) -> list[tuple[int, int, tuple[int, ...]]]:
    """Class, number and places of values of each finding: things by number, then classes without objects."""
    semantic = labels.semantic(values)
    numbers = labels.numbers(values) if labels.things else np.zeros_like(values)
    things, stuff = [], []
    for index, one in enumerate(labels.classes):
        owned = np.flatnonzero(np.isin(semantic, one.values))
        if one.name in labels.things:
            things += [(index, int(numbers[place]), (int(place),)) for place in owned if numbers[place]]
            owned = owned[numbers[owned] == 0]
        if len(owned):
            stuff.append((index, 0, tuple(int(place) for place in owned)))
    return sorted(things, key=lambda one: (one[1], one[0])) + stuff


def _around(boxes: list[Box]) -> Box:
    return tuple(slice(min(one.start for one in axis), max(one.stop for one in axis)) for axis in zip(*boxes, strict=True))
