"""What windows over a case say of objects, from slots of a network to objects of the case."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medseg.cells import voxel_ranges
from medseg.geometry import Shape
from medseg.imaging.detections import Detection, detections
from medseg.imaging.gathering import Gatherer, SliceLinker
from medseg.imaging.merging import FLOOR, Merger
from medseg.imaging.rasters import meeting
from medseg.imaging.windows import positions
from medseg.models.base import ObjectHead
from medseg.prediction import FoundObjects
from medseg.scratch import Scratch

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger(__name__)
LIKELY = 0.5  # confidence of the faintest object of a full window, from which on there are probably more
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
        self._crowded = False
        self._gatherer = Gatherer(memory)
        self._linker = SliceLinker(self._gatherer) if head.axes < len(shape) else None
        keep = self._gatherer.add if self._linker is None else self._linker.add
        self._merger = Merger(shape, full, starts, keep, Scratch(max(memory * SHARE_OF_SUMS, SMALL)))

    def add(self, start: tuple[int, ...], packed: Tensor) -> None:
        """One window's slots `(views, slots, channels)`; as many views for each window. Warns once where likely objects fill all slots of a view."""
        from medseg.models.slots import Slots

        head, lead = self._head, len(self._shape) - self._head.axes
        if packed.ndim != 3 or packed.shape[1] > head.slots:
            raise ValueError(f"'{head.name}' has at most {head.slots} slots for each view of a window, got {tuple(packed.shape)}")
        kept = (packed[..., 1] >= 0.5) & (packed[..., 0] >= FLOOR)
        likely = kept & (packed[..., 0] >= LIKELY)
        if not self._crowded and int(likely.sum(1).max()) == head.slots:
            self._crowded = True
            LOG.warning(
                "all %d places for objects of a window are taken by likely ones: more may be there, and are left out; "
                "a plan with more places (target.head.slots) finds them",
                head.slots,
            )
        slots = Slots.unpack(packed[kept][None], head.axes, head.mask)
        view = kept.nonzero()[:, 0].numpy()
        # An object of a slice has a box one voxel thick.
        corner = np.zeros((len(view), lead))
        lower, upper = np.split(slots.boxes[0].numpy().astype(np.float64), 2, axis=1)
        boxes = np.concatenate([corner, lower, corner + 1, upper], 1) + np.tile(start, 2)
        masks = slots.masks[0].numpy().reshape(len(view), *(1,) * lead, *(head.mask,) * head.axes)
        scores, kinds = slots.scores[0].numpy(), slots.classes[0].numpy()
        first = [max(s, 0) for s in start]
        last = [min(s + w, n) for s, w, n in zip(start, self._full, self._shape, strict=True)]
        views: list[list[Detection]] = []
        for k in range(len(packed)):
            own = np.flatnonzero(view == k)
            views.append(detections(boxes[own], masks[own], scores[own], kinds[own], first, last))
        self._merger.add(start, views)

    def found(self) -> FoundObjects:
        """The objects, after all windows."""
        self._merger.finish()
        if self._linker is not None:
            self._linker.finish()
        return self._gatherer.found(self._shape)


def mean_objects(parts: Sequence[FoundObjects], memory: float) -> FoundObjects:
    """What several networks have found in one case, as if they were views of one window.

    Objects whose boxes meet, directly or by way of others, are merged together, and only their masks are held as they are merged.

    Args:
        memory: bytes that masks may take in memory.
    """
    shape = parts[0].shape
    nowhere = (0,) * len(shape)
    gatherer, scratch = Gatherer(memory), Scratch(max(memory * SHARE_OF_SUMS, SMALL))
    starts = tuple((0,) for _ in shape)
    (start,) = positions(starts)
    boxes = np.concatenate([one.boxes for one in parts])
    network = np.repeat(np.arange(len(parts)), [len(one) for one in parts])
    place = np.concatenate([np.arange(len(one)) for one in parts])
    for group in _neighbourhoods(boxes, shape):
        merger = Merger(shape, shape, starts, gatherer.add, scratch)
        views: list[list[Detection]] = []
        for k, one in enumerate(parts):
            own = place[group[network[group] == k]]
            masks = [one.masks[n] for n in own.tolist()]
            views.append(detections(one.boxes[own], masks, one.scores[own], one.classes[own], nowhere, shape, 255))
        merger.add(start, views)
        merger.finish()
    return gatherer.found(shape)


def _neighbourhoods(boxes: NDArray[np.float64], shape: Shape) -> list[NDArray[np.int64]]:
    """Boxes `(n, 2 d)` by groups, as indices in order: none of a group meets one of another, in voxels of the case."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(boxes):
        return []
    lower, upper = voxel_ranges(np.clip(boxes, -1, np.tile(shape, 2) + 1))
    voxels = np.concatenate([lower, upper], 1)
    pairs = list(meeting(voxels, voxels))
    one, other = (np.concatenate([pair[k] for pair in pairs]) for k in range(2))
    graph = coo_matrix((np.ones(len(one), np.int8), (one, other)), shape=(len(boxes), len(boxes)))
    groups = connected_components(graph, directed=False)[1]
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
