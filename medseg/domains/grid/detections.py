"""What windows over a case say of objects, from slots of a network to objects of the case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medseg.geometry import Shape
from medseg.imaging.detections import Detection, detections
from medseg.imaging.gathering import Gatherer, SliceLinker
from medseg.imaging.merging import FLOOR, Merger
from medseg.imaging.windows import positions
from medseg.models.base import ObjectHead
from medseg.prediction import FoundObjects
from medseg.scratch import Scratch

if TYPE_CHECKING:
    from torch import Tensor

SHARE_OF_SUMS = 1 / 8  # of the memory, for each sum of one open object; larger ones live in temporary files
SMALL = 2**20  # bytes of sums that are no matter: there are thousands of them, and files are not


class Collector:
    """Merges objects while windows come, in the order of `imaging.windows.positions`. Windows with fewer axes than the case see its slices,
    and objects of neighbouring slices are linked."""

    def __init__(self, head: ObjectHead, shape: Shape, full: Shape, starts: tuple[tuple[int, ...], ...], memory: float) -> None:
        """Nothing seen yet.

        Args:
            head: the output that windows are about to give.
            shape: of the case.
            full: the window with all axes of the case.
            starts: of windows along each axis.
            memory: bytes that masks may take in memory.
        """
        self._head, self._shape, self._full = head, shape, full
        self._gatherer = Gatherer(memory)
        self._linker = SliceLinker(self._gatherer) if head.axes < len(shape) else None
        keep = self._gatherer.add if self._linker is None else self._linker.add
        self._merger = Merger(shape, full, starts, keep, Scratch(max(memory * SHARE_OF_SUMS, SMALL)))

    def add(self, start: tuple[int, ...], packed: Tensor) -> None:
        """One window's slots `(views * slots, channels)`, as many for each of its views."""
        from medseg.models.slots import Slots

        head, lead = self._head, len(self._shape) - self._head.axes
        if len(packed) % head.slots:
            raise ValueError(f"'{head.name}' has {head.slots} slots for each view of a window, got {len(packed)} in all")
        kept = (packed[:, 1] >= 0.5) & (packed[:, 0] >= FLOOR)
        slots = Slots.unpack(packed[kept][None], head.axes, head.mask)
        view = kept.nonzero()[:, 0].numpy() // head.slots
        # An object of a slice has a box one voxel thick.
        corner = np.zeros((len(view), lead))
        lower, upper = np.split(slots.boxes[0].numpy().astype(np.float64), 2, axis=1)
        boxes = np.concatenate([corner, lower, corner + 1, upper], 1) + np.tile(start, 2)
        masks = slots.masks[0].numpy().reshape(len(view), *(1,) * lead, *(head.mask,) * head.axes)
        scores, kinds = slots.scores[0].numpy(), slots.classes[0].numpy()
        first = [max(s, 0) for s in start]
        last = [min(s + w, n) for s, w, n in zip(start, self._full, self._shape, strict=True)]
        views: list[list[Detection]] = []
        for k in range(len(packed) // head.slots):
            own = np.flatnonzero(view == k)
            views.append(detections(boxes[own], masks[own], scores[own], kinds[own], first, last))
        self._merger.add(start, views)

    def found(self) -> FoundObjects:
        """The objects, after all windows."""
        self._merger.finish()
        if self._linker is not None:
            self._linker.finish()
        return self._gatherer.found(self._shape)


def mean_objects(parts: Sequence[FoundObjects], memory: float = math.inf) -> FoundObjects:
    """What several networks have found in one case, as if they were views of one window."""
    shape = parts[0].shape
    nowhere = (0,) * len(shape)
    gatherer = Gatherer(memory)
    starts = tuple((0,) for _ in shape)
    merger = Merger(shape, shape, starts, gatherer.add)
    (start,) = positions(starts)
    merger.add(start, [detections(one.boxes, one.masks, one.scores, one.classes, nowhere, shape, 255) for one in parts])
    merger.finish()
    return gatherer.found(shape)
