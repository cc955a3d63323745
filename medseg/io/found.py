"""What was found in a prediction: objects of things, and each class of stuff as one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import Labels
from medseg.io.exports import Result
from medseg.io.rle import Rle
from medseg.scratch import release, row_slabs

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
        array, labels = result.prediction.labels, result.labels
        parts = [np.unique(array[rows]) for rows in row_slabs(array.shape)]
        values = np.unique(np.concatenate(parts)) if parts else np.zeros(0, array.dtype)
        places = result.scratch.zeros(array.shape, np.int32)
        counts = np.zeros(len(values), np.int64)
        boxes = np.zeros((2, len(values), array.ndim), np.int64)  # first voxels, and those after the last
        boxes[0] = array.shape
        for rows in row_slabs(array.shape):
            some = np.searchsorted(values, array[rows])
            times = np.bincount(some.ravel(), minlength=len(values))
            here, counts = np.flatnonzero(times), counts + times
            low, high = _boxes(some, here, len(values))
            low[:, 0], high[:, 0] = low[:, 0] + rows.start, high[:, 0] + rows.start
            boxes[:, here] = np.minimum(boxes[0, here], low), np.maximum(boxes[1, here], high)
            places[rows] = some
            release(places)
            release(array)
        scores = result.prediction.objects
        found: list[Found] = []
        for index, number, owned in _owners(labels, values):
            box = tuple(slice(int(a), int(b)) for a, b in zip(boxes[0, owned].min(0), boxes[1, owned].max(0), strict=True))
            score = None if scores is None or not number else scores.get(int(values[owned[0]]))
            found.append(Found(owned, index, number, box, int(counts[list(owned)].sum()), score))
        return cls(labels, values, places, tuple(found))

    def mask(self, one: Found) -> NDArray[np.bool_]:
        """Its voxels within its box."""
        inside = self.map[one.box]
        return np.asarray(inside == one.places[0] if len(one.places) == 1 else np.isin(inside, one.places))

    def centre(self, one: Found) -> NDArray[np.float64]:
        """`(d,)` mean index of its voxels."""
        mask = self.mask(one)
        axes = range(mask.ndim)
        lines = [np.count_nonzero(mask, axis=tuple(other for other in axes if other != axis)) for axis in axes]
        return np.array([axis.start + np.average(np.arange(len(line)), weights=line) for axis, line in zip(one.box, lines, strict=True)])

    def rle(self, one: Found) -> Rle:
        """Its run lengths, of the whole image; the work is that of its box."""
        return Rle.of_part(self.mask(one), tuple(axis.start for axis in one.box), self.map.shape)


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


def _boxes(places: NDArray[np.int64], wanted: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`(2, n, d)` first voxels of some places, of `count`, and those after the last."""
    from scipy import ndimage

    numbers = np.zeros(count, np.int32)
    numbers[wanted] = np.arange(1, len(wanted) + 1)
    found = ndimage.find_objects(numbers[places])
    return np.array([[(axis.start, axis.stop) for axis in box] for box in found], np.int64).reshape(-1, places.ndim, 2).transpose(2, 0, 1)
