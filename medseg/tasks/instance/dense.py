"""The dense head of instance segmentation: a class for every voxel, and the way to the centre of its object.

Centres as in Neven et al. 2019 (CVPR, arXiv:1906.11109) and Cheng et al. 2020 (Panoptic-DeepLab, arXiv:1911.10194); votes are grouped otherwise
(`voting`). Classes that are not things have no objects: they come out as they are, with number 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.case import Batch
from medseg.dataset import NUMBER_BITS, Labels
from medseg.errors import PlanError
from medseg.fingerprint import Fingerprint
from medseg.geometry import Shape
from medseg.imaging.painting import check_count
from medseg.losses.blobs import number_blobs
from medseg.losses.centres import centre_offsets, offset_loss
from medseg.losses.dice import exclusive_loss
from medseg.losses.levels import at_size, shares
from medseg.models.base import Head, Outputs
from medseg.prediction import Prediction, Stitched
from medseg.scratch import IN_MEMORY, Scratch, release, row_slabs
from medseg.tasks.base import Frame
from medseg.tasks.instance.fitting import dense_settings
from medseg.tasks.instance.head import BACKGROUND, CLASSES, ObjectFinder, Planned
from medseg.tasks.instance.settings import DenseSettings
from medseg.tasks.instance.voting import group_voxels

OFFSETS = "offsets"


class Dense(ObjectFinder):
    """Two heads: `classes`, `1 + K` logits with background first, and `offsets`, the way to the object's centre along each axis of a window."""

    settings: DenseSettings

    @staticmethod
    def planned(fingerprint: Fingerprint, labels: Labels, frame: Frame) -> Planned:
        """See `fitting.dense_settings`."""
        return dense_settings(fingerprint, labels, frame)

    def __init__(self, settings: DenseSettings, labels: Labels, axes: int, levels: Sequence[Shape]) -> None:
        """See `ObjectFinder`.

        Raises:
            PlanError: the scale is not one of these axes.
        """
        super().__init__(settings, labels, axes, levels)
        if len(settings.scale) != axes:
            raise PlanError.of(
                "the scale of offsets is not one of a window's axes",
                where="target.head.scale",
                found=str(list(settings.scale)),
                expected=f"{axes} numbers",
            )

    @property
    def radius(self) -> float:
        """Of the typical object, as one number: distances in scales times this are as many voxels, whatever the axis."""
        return math.prod(self.settings.scale) ** (1 / self.axes)

    @property
    def heads(self) -> tuple[Head, ...]:
        """See `Task.heads`."""
        odds = tuple(math.log(f) for f in self.settings.frequencies)
        names = (BACKGROUND, *self.labels.names)
        return Head(CLASSES, len(names), odds, names), Head(OFFSETS, self.axes, vector=True)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """`classes` `(N, *window)` int64 with `IGNORED`; `offsets` `(N, d, *window)` in units of `scale`; `sizes` `(N, *window)` voxels of the
        object as far as it lies in the window, 0 where there is none."""
        if batch.label is None:
            raise ValueError("targets need labels")
        classes = self.class_targets(batch.label)
        found = centre_offsets(self.objects(batch.label), self.settings.scale)
        scale = torch.tensor(self.settings.scale, device=found.device).view(-1, *(1,) * self.axes)
        targets = {"classes": classes, "offsets": found[:, :-2] / scale, "sizes": found[:, -2], "near": found[:, -1]}
        return targets | {"blobs": number_blobs(classes)} if self.settings.blob else targets

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`dice`, `cross_entropy` and perhaps `blob` of the classes, `offset` of the centres; each over all supervised resolutions (nnU-Net's weights)."""
        settings, radius = self.settings, self.radius
        sums: dict[str, Tensor] = {}
        pairs = zip(outputs[CLASSES], outputs[OFFSETS], shares(len(outputs[CLASSES])), strict=True)
        for logits, offsets, share in pairs:
            truth = {name: at_size(target, logits.shape[2:]) for name, target in targets.items()}
            terms = exclusive_loss(logits, truth["classes"], blobs=truth.get("blobs")) | {
                "offset": offset_loss(offsets.float() * radius, truth["offsets"] * radius, truth["sizes"], truth["near"])
            }
            for name in terms:
                term = terms[name] * (getattr(settings, name) * share)
                sums[name] = sums[name] + term if name in sums else term
        return sums

    def oracle(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of the true classes, and the offsets."""
        return {CLASSES: self.perfect_classes(targets["classes"]), OFFSETS: targets["offsets"]}

    def decode(
        self,
        outputs: Mapping[str, Stitched],
        case_id: str,
        probabilities: bool = False,
        scratch: Scratch = IN_MEMORY,
        uncertainty: bool = False,
    ) -> Prediction:
        """The most probable class per voxel, and the objects that their votes make of things (`voting`), as codes (`Labels`).

        Probabilities are those of the classes, background first.
        """
        dense, ways = outputs[CLASSES], outputs[OFFSETS]
        count = dense.shape[0]
        maps = scratch.zeros((count + ways.shape[0], *dense.shape[1:]), np.float16)
        for rows, logits in dense.slabs():
            powers = np.exp(logits - logits.max(0))
            maps[:count, rows] = powers / powers.sum(0)
            release(maps)
        for rows, values in ways.slabs():
            maps[count:, rows] = values
            release(maps)
        return self._decided(maps, case_id, probabilities, scratch, uncertainty)

    def _decided(self, maps: NDArray[np.float16], case_id: str, probabilities: bool, scratch: Scratch, uncertainty: bool) -> Prediction:
        """A prediction from class probabilities and offsets `(1 + K + d, *shape)`."""
        labels, settings, count = self.labels, self.settings, len(self.labels.classes) + 1
        thing = np.array([False, *(name in labels.things for name in labels.names)])
        chosen, things = (scratch.zeros(maps.shape[1:], dtype) for dtype in (np.int16, np.bool_))
        slabs = tuple(row_slabs((maps.shape[1], maps.shape[0], *maps.shape[2:])))
        for rows in slabs:
            chosen[rows] = maps[:count, rows].argmax(0)
            things[rows] = thing[chosen[rows]]
            _release(maps, chosen, things)
        # Where what touches is one object, voxels are of the class that they are shown as, and nothing else.
        chances = [maps[k] if settings.touching == "apart" else chosen == k for k in np.flatnonzero(thing)]
        decoded = group_voxels(things, maps[count:], settings.smallest, settings.reach, settings.scale, chances, scratch, settings.touching)
        most = max((int(decoded[rows].max(initial=0)) for rows in slabs), default=0)
        check_count(most, f"case '{case_id}'")
        votes = np.zeros((most + 1) * count, np.int64)
        for rows in slabs:
            inside = decoded[rows] != 0
            votes += np.bincount(decoded[rows][inside].astype(np.int64) * count + chosen[rows][inside], minlength=votes.size)
            _release(decoded, chosen)
        kinds = np.where(thing, votes.reshape(-1, count), -1).argmax(1)  # of each object
        sure = _confidence(maps, decoded, kinds)
        values = np.array([0, *labels.written], np.int32) << NUMBER_BITS
        codes = values[kinds] | np.arange(most + 1, dtype=np.int32)
        stuff = np.where(thing, 0, values)
        for rows in slabs:
            here = decoded[rows]
            decoded[rows] = np.where(here != 0, codes[here], stuff[chosen[rows]])
            _release(decoded, chosen)
        doubt = _doubt(maps[:count], decoded) if uncertainty else None
        objects = {int(codes[n]): float(sure[n]) for n in range(1, most + 1)}
        return Prediction(case_id, decoded, maps[:count] if probabilities else None, doubt, objects)


def _release(*arrays: NDArray[Any]) -> None:
    for array in arrays:
        release(array)


def _confidence(maps: NDArray[np.float16], numbers: NDArray[np.integer], kinds: NDArray[np.integer]) -> NDArray[np.float64]:
    """Of each object by its number, the mean probability of its class over its voxels."""
    sums, voxels = np.zeros(len(kinds)), np.zeros(len(kinds))
    for rows in row_slabs((numbers.shape[0], maps.shape[0], *numbers.shape[1:])):
        inside = np.nonzero(numbers[rows])
        here = numbers[rows][inside]
        sums += np.bincount(here, weights=maps[:, rows][(kinds[here], *inside)].astype(np.float64), minlength=len(kinds))
        voxels += np.bincount(here, minlength=len(kinds))
        _release(maps, numbers)
    return np.asarray(np.minimum(sums / np.maximum(voxels, 1), 1.0))


def _doubt(chances: NDArray[np.float16], found: NDArray[np.integer]) -> float | None:
    """Mean entropy, from 0 (sure) to 1 (ignorant), of the classes of found voxels; None without any."""
    total, count = 0.0, 0
    for rows in row_slabs((found.shape[0], len(chances), *found.shape[1:])):
        safe = np.clip(chances[:, rows][:, found[rows] != 0].astype(np.float32), 1e-7, 1)
        total -= float((safe * np.log(safe)).sum(dtype=np.float64))
        count += safe.shape[1]
        _release(chances, found)
    return total / count / math.log(len(chances)) if count else None
