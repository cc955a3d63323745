"""Merged objects of a case as one record: as they come, or slice by slice put together to objects of a volume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import Shape
from medseg.imaging.detections import INSIDE
from medseg.imaging.linking import alike, successors
from medseg.imaging.merging import Merged
from medseg.imaging.rasters import Index, meeting, within
from medseg.prediction import FoundObjects
from medseg.scratch import Scratch, release

PORTION = 2**24  # bytes of masks that are kept together


class Gatherer:
    """Takes merged objects; masks beyond `memory` bytes live in temporary files.

    Masks are copied one behind the other: thousands of small arrays that stay, among large ones that come and go, would leave gaps in memory.
    """

    def __init__(self, memory: float = math.inf) -> None:
        self._memory = memory
        self._boxes: list[tuple[int, ...]] = []
        self._scores: list[float] = []
        self._kinds: list[int] = []
        self._masks: list[NDArray[np.uint8]] = []
        self._portion = np.zeros(0, np.uint8)
        self._filled = 0

    def add(self, one: Merged) -> None:
        """One more."""
        self._boxes.append((*one.lower, *one.upper))
        self._scores.append(one.score)
        self._kinds.append(strongest(one.votes))
        self._masks.append(self._kept(one.mask))

    def found(self, shape: Shape) -> FoundObjects:
        """All that were added, on a grid of this shape."""
        boxes = np.array(self._boxes, np.float64).reshape(-1, 2 * len(shape))
        return FoundObjects(shape, boxes, np.array(self._scores, np.float32), np.array(self._kinds, np.int32), tuple(self._masks))

    def _kept(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        end = self._filled + mask.size
        if end > len(self._portion):
            release(self._portion)
            size = max(PORTION, mask.size)
            self._portion, end = np.asarray(Scratch(self._memory).zeros((size,), np.uint8)), mask.size
            self._memory -= size
        kept = self._portion[end - mask.size : end].reshape(mask.shape)
        kept[...] = mask
        self._filled = end
        return kept


@dataclass(eq=False)
class _Stack:
    """An object of a volume so far: its parts, one per slice, in order."""

    parts: list[Merged]


class SliceLinker:
    """Takes objects of single slices (one voxel along the first axis), slice by slice, and gives objects of the volume to a gatherer.

    Which objects of neighbouring slices are one is said by `linking.successors`; what is surely of different classes is not. The object's class
    is that with the most votes. Confidence is the mean of its slices, weighted by voxels.
    """

    def __init__(self, gatherer: Gatherer) -> None:
        self._gatherer = gatherer
        self._slice = -1
        self._earlier: list[_Stack] = []  # objects that reach the slice before
        self._parts: list[Merged] = []  # of the slice

    def add(self, part: Merged) -> None:
        """One more object of a slice; slices come in order."""
        if part.lower[0] != self._slice:
            self._link()
            if part.lower[0] != self._slice + 1:
                self._end()
            self._slice = part.lower[0]
        self._parts.append(part)

    def finish(self) -> None:
        """Nothing will follow."""
        self._link()
        self._end()

    def _end(self) -> None:
        for stack in self._earlier:
            self._gatherer.add(_stacked(stack.parts))
        self._earlier = []

    def _link(self) -> None:
        """Let the objects of the slice follow those of the slice before, which end where none does."""
        above, parts = [stack.parts[-1] for stack in self._earlier], self._parts
        follows: dict[int, int] = {}
        if above and parts:
            met = [(i, j) for rows, columns in meeting(_flat_boxes(above), _flat_boxes(parts)) for i, j in zip(rows, columns, strict=True)]
            one, other = np.array(met, np.int64).reshape(-1, 2).T
            shared = np.array([_shared(above[i], parts[j]) for i, j in met], np.int64)
            sizes = [np.array([part.voxels for part in some], np.int64) for some in (above, parts)]
            kinds = sorted({kind for part in (*above, *parts) for kind in part.votes})
            able = alike(_shares(above, kinds)[:, one], _shares(parts, kinds)[:, other])
            kept = successors(one, other, shared, (sizes[0][one], sizes[1][other]), able)
            follows = dict(zip(other[kept].tolist(), one[kept].tolist(), strict=True))
        continued = set(follows.values())
        for i, stack in enumerate(self._earlier):
            if i not in continued:
                self._gatherer.add(_stacked(stack.parts))
        stacks = []
        for j, part in enumerate(parts):
            stack = self._earlier[follows[j]] if j in follows else _Stack([])
            stack.parts.append(part)
            stacks.append(stack)
        self._earlier, self._parts = stacks, []


def strongest(votes: dict[int, float]) -> int:
    """The class with the highest sum of scores, of equal ones the first."""
    return min(votes, key=lambda kind: (-votes[kind], kind))


def _shares(parts: list[Merged], kinds: list[int]) -> NDArray[np.float64]:
    """`(K, n)` shares of classes in the votes of each."""
    votes = np.array([[part.votes.get(kind, 0.0) for part in parts] for kind in kinds])
    return np.asarray(votes / votes.sum(0))


def _flat_boxes(parts: list[Merged]) -> NDArray[Any]:
    return np.array([(*one.lower[1:], *one.upper[1:]) for one in parts], np.int64)


def _shared(one: Merged, other: Merged) -> int:
    """Voxels of both, one upon the other."""
    lower: Index = (0, *map(max, one.lower[1:], other.lower[1:]))
    upper: Index = (1, *map(min, one.upper[1:], other.upper[1:]))
    first, second = (part.mask[within(lower, upper, (0, *part.lower[1:]))] >= 255 * INSIDE for part in (one, other))
    return int(np.count_nonzero(first & second))


def _stacked(parts: list[Merged]) -> Merged:
    if len(parts) == 1:
        return parts[0]
    lower: Index = tuple(map(min, *(part.lower for part in parts)))
    upper: Index = tuple(map(max, *(part.upper for part in parts)))
    mask = np.zeros([b - a for a, b in zip(lower, upper, strict=True)], np.uint8)
    votes: dict[int, float] = {}
    for part in parts:
        mask[within(part.lower, part.upper, lower)] = part.mask
        for kind, vote in part.votes.items():
            votes[kind] = votes.get(kind, 0.0) + vote * part.voxels
    count = sum(part.voxels for part in parts)
    return Merged(lower, upper, mask, count, sum(part.score * part.voxels for part in parts) / count, votes)
