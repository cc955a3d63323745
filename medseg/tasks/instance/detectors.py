"""Instances by detection: Mask R-CNN and YOLACT (`medseg.models.detection`) on the planned network, and a class for every voxel where there is
stuff, too.

With stuff this is the panoptic feature pyramid network (Kirillov et al. 2019, arXiv:1901.02446): one pyramid, a branch for objects, a branch for
voxels, and their published merge: the most confident objects first, each of what is free; below them stuff, and where neither is, background.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.case import Batch
from medseg.dataset import NUMBER_BITS, Labels
from medseg.errors import PlanError, Problem
from medseg.fingerprint import Fingerprint
from medseg.geometry import Shape
from medseg.imaging.painting import paint_chances, paint_objects
from medseg.losses.detection import prototype_losses, region_losses
from medseg.losses.dice import IGNORED, exclusive_loss
from medseg.losses.levels import at_size, shares
from medseg.losses.objects import object_table
from medseg.models.base import Head, ObjectHead, Outputs
from medseg.models.detection import Level, MaskRCNN, PrototypeDesign, RegionDesign, Truth, Yolact, rcnn, yolact
from medseg.models.detection.packed import OBJECTS, PYRAMID
from medseg.prediction import DenseMap, FoundObjects, Prediction, Stitched
from medseg.scratch import IN_MEMORY, Scratch, row_slabs
from medseg.tasks.base import Frame
from medseg.tasks.instance.fitting import prototype_settings, region_settings
from medseg.tasks.instance.head import BACKGROUND, CLASSES, ObjectFinder, Planned
from medseg.tasks.instance.settings import DetectorSettings, PrototypeSettings, RegionSettings


class _Doubt:
    """The mean entropy, from 0 (sure) to 1 (ignorant), of voxels that are not background."""

    def __init__(self) -> None:
        self.total, self.voxels = 0.0, 0

    def add_objects(self, codes: NDArray[np.int32], confidence: Mapping[int, float]) -> None:
        """Voxels of objects by their code: an object is there, or it is not."""
        known = np.array(sorted(confidence), np.int32)
        counts = np.zeros(len(known), np.int64)
        for rows in row_slabs(codes.shape):
            here = codes[rows][codes[rows] != 0]
            counts += np.bincount(np.searchsorted(known, here), minlength=len(known))
        sure = np.clip([confidence[code] for code in known.tolist()], 1e-7, 1 - 1e-7)
        entropy = -(sure * np.log2(sure) + (1 - sure) * np.log2(1 - sure))
        self.total += float((entropy * counts).sum())
        self.voxels += int(counts.sum())

    def add_stuff(self, logits: NDArray[np.float32]) -> None:
        """Voxels by the logits `(K, n)` of what they may be."""
        powers = np.exp(logits - logits.max(0))
        chances = np.clip(powers / powers.sum(0), 1e-7, 1)
        self.total -= float((chances * np.log(chances)).sum(dtype=np.float64)) / math.log(len(logits))
        self.voxels += logits.shape[1]

    @property
    def mean(self) -> float | None:
        """None without any voxel."""
        return self.total / self.voxels if self.voxels else None


class Detector(ObjectFinder):
    """Heads: `objects`, slots; and `classes`, `1 + K` logits with background first, where some classes are no things."""

    settings: DetectorSettings
    inner = "backbone."

    def __init__(self, settings: DetectorSettings, labels: Labels, axes: int, levels: Sequence[Shape]) -> None:
        """See `ObjectFinder`.

        Raises:
            PlanError: settings of stuff without any, or not for all classes.
        """
        super().__init__(settings, labels, axes, levels)
        named = ("semantic", "frequencies")
        told = [name for name in named if getattr(settings, name) != type(settings).model_fields[name].default]
        if told and not self.stuff:
            raise PlanError(
                [
                    Problem(
                        "of no effect: all classes have objects",
                        f"target.head.{name}",
                        str(getattr(settings, name)),
                        "no such setting",
                        "Leave it out.",
                    )
                    for name in told
                ]
            )
        if self.stuff and len(settings.frequencies) != 1 + len(labels.names):
            raise PlanError.of(
                "each class has a first guess, and background",
                where="target.head.frequencies",
                found=str(list(settings.frequencies)),
                expected=f"{1 + len(labels.names)} numbers",
            )

    @property
    def stuff(self) -> bool:
        """Whether some classes have no objects."""
        return len(self.labels.things) < len(self.labels.names)

    @property
    def heads(self) -> tuple[Head, ...]:
        """See `Task.heads`."""
        settings = self.settings
        objects = ObjectHead(name=OBJECTS, slots=settings.slots, mask=settings.mask, axes=self.axes)
        return (objects, self.semantic) if self.stuff else (objects,)

    @property
    def semantic(self) -> Head:
        """A class for every voxel."""
        names = (BACKGROUND, *self.labels.names)
        return Head(CLASSES, len(names), tuple(math.log(f) for f in self.settings.frequencies), names)

    def grown(self, heads: tuple[Head, ...]) -> tuple[Head, ...]:
        """The pyramid, and the heads that are maps."""
        self._check_levels()
        pyramid = Head(PYRAMID, self.settings.channels, levels=self.settings.levels)
        return (pyramid, *(head for head in heads if head.name != OBJECTS))

    def _check_levels(self) -> None:
        if max(self.settings.levels) >= len(self.levels):
            raise PlanError.of(
                "the network has no such decoder stage",
                where="target.head.levels",
                found=str(list(self.settings.levels)),
                expected=f"stages 0 to {len(self.levels) - 1}" if self.levels else "a network with a feature pyramid, such as unet",
            )

    @cached_property
    def pyramid(self) -> tuple[Level, ...]:
        """Levels with their anchors."""
        settings = self.settings
        return tuple(Level(tuple(self.levels[level]), sizes) for level, sizes in zip(settings.levels, settings.anchors, strict=True))

    @abstractmethod
    def terms(self, outputs: Outputs, boxes: Tensor, kinds: Tensor) -> dict[str, Tensor]:
        """The loss of objects."""

    @abstractmethod
    def perfect(self, truth: Truth) -> dict[str, Tensor]:
        """What a perfect network says of objects, in training and in inference."""

    def run(self, network: nn.Module, image: Tensor, targets: Mapping[str, Tensor]) -> Outputs:
        """The network is told the true objects: it learns from regions about them."""
        outputs: Outputs = network(image, truth_of(targets))
        return outputs

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """`boxes` `(N, M, 2 d)`, `kinds` `(N, M)` index among things, 0 for no object, `codes` `(N, M)`, `map` `(N, *window)` codes of objects, below 0
        where nothing counts; with stuff also `classes` `(N, *window)`.

        Where a thing has no number, as where nobody told the objects of a crowd apart, there are objects, but which is not known: no region there is
        background or an object. Its class is known, and counts in `classes`.
        """
        if batch.label is None:
            raise ValueError("targets need labels")
        objects = self.objects(batch.label)
        table = object_table(objects, self.settings.slots)
        codes, boxes = table[..., 0].int(), table[..., 1:].float()
        kinds = torch.zeros_like(codes, dtype=torch.int64)
        values = self.labels.semantic(codes)
        for k, one in enumerate((c for c in self.labels.classes if c.name in self.labels.things), 1):
            for value in one.values:
                kinds = torch.where((values == value) & (codes > 0), k, kinds)
        classes = self.class_targets(batch.label)
        things = torch.tensor([False, *(name in self.labels.things for name in self.labels.names)], device=classes.device)
        crowd = things[classes.clamp_min(0)] & (objects == 0)
        unknown = (classes == IGNORED) | crowd | ~_listed(objects, codes)  # what has no place in the table is no background either
        found = {"boxes": boxes, "kinds": kinds, "codes": codes, "map": torch.where(unknown, -1, objects)}
        return found | {"classes": classes} if self.stuff else found

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of objects; with stuff also `dice` and `cross_entropy`."""
        settings = self.settings
        terms = self.terms(outputs, targets["boxes"], targets["kinds"])
        if not self.stuff:
            return terms
        maps = outputs[CLASSES]
        for logits, share in zip(maps, shares(len(maps)), strict=True):
            for name, term in exclusive_loss(logits, at_size(targets["classes"], logits.shape[2:])).items():
                terms[name] = terms.get(name, 0) + term * (settings.semantic * share)
        return terms

    def oracle(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a perfect network says."""
        found = self.perfect(truth_of(targets))
        if self.stuff:
            found[CLASSES] = self.perfect_classes(targets["classes"])
        return found

    def decode(
        self,
        outputs: Mapping[str, Stitched],
        case_id: str,
        probabilities: bool = False,
        scratch: Scratch = IN_MEMORY,
        uncertainty: bool = False,
    ) -> Prediction:
        """Objects painted one over another (`paint_objects`); where there is none, the most probable of background and stuff. Those that are not
        confident enough to be painted are among `Prediction.found`, with all others.

        Probabilities are those of background and each class: of things, that of the likeliest object, painted or not, its confidence times that of its
        mask, so that the most probable class is a cut at 0.5, not at `score`; of stuff, what the others leave of it.
        The uncertainty is a mean over voxels that are not background: the binary entropy of their object's confidence; of stuff, that of what is let
        through.
        """
        found: FoundObjects = outputs[OBJECTS]
        settings, labels = self.settings, self.labels
        values = [value for name, value in zip(labels.names, labels.written, strict=True) if name in labels.things]
        codes, confidence = paint_objects(
            found, values, f"case '{case_id}'", settings.score, settings.smallest, scratch, settings.contested == "probable"
        )
        chances = self._chances(found, outputs.get(CLASSES), scratch) if probabilities else None
        doubt = _Doubt() if uncertainty else None
        if doubt:
            doubt.add_objects(codes, confidence)
        if self.stuff:
            self._fill(codes, outputs[CLASSES], doubt)
        kinds = np.array([0, *(k for k, name in enumerate(labels.names, 1) if name in labels.things)], np.int32)
        return Prediction(case_id, codes, chances, doubt.mean if doubt else None, confidence, replace(found, classes=kinds[found.classes]))

    def _fill(self, codes: NDArray[np.int32], classes: DenseMap, doubt: _Doubt | None) -> None:
        """Give voxels without an object to stuff, or where it is less probable than all else together, to background: a thing that no object is
        found for is no stuff. Kirillov et al. fold things into one class and call that void."""
        values = np.array([0, *self.labels.written], np.int32)[self.rest] << NUMBER_BITS
        for rows, logits in classes.slabs():
            free, own = codes[rows] == 0, self._folded(logits)
            best = own.argmax(0)
            if doubt:
                doubt.add_stuff(own[:, free & (best > 0)])
            codes[rows] = np.where(free, values[best], codes[rows])

    @property
    def rest(self) -> list[int]:
        """Channels of background and stuff."""
        return [0, *(k for k, name in enumerate(self.labels.names, 1) if name not in self.labels.things)]

    def _folded(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of logits `(1 + K, ...)` those of `rest`, in which background has the probability of all things, too."""
        rest = self.rest
        own = logits[rest]
        own[0] = np.logaddexp.reduce(logits[[k for k in range(len(logits)) if k == 0 or k not in rest]], axis=0)
        return own

    def _chances(self, found: FoundObjects, classes: DenseMap | None, scratch: Scratch) -> NDArray[np.float16]:
        """`(1 + K, *shape)`, background first."""
        labels = self.labels
        maps = scratch.zeros((1 + len(labels.names), *found.shape), np.float16)
        things = [k for k, name in enumerate(labels.names, 1) if name in labels.things]
        paint_chances(found, [maps[k] for k in things])
        rest = self.rest
        if classes is None:
            for rows in row_slabs((maps.shape[1], maps.shape[0], *maps.shape[2:])):
                maps[0, rows] = 1 - maps[1:, rows].max(0)
            return maps
        for rows, logits in classes.slabs():
            own = self._folded(logits)
            powers = np.exp(own - own.max(0))
            maps[rest, rows] = powers / powers.sum(0) * (1 - maps[things, rows].max(0).astype(np.float32))
        return maps


class Regions(Detector):
    """Mask R-CNN."""

    settings: RegionSettings

    @staticmethod
    def planned(fingerprint: Fingerprint, labels: Labels, frame: Frame) -> Planned:
        """See `fitting.region_settings`."""
        return region_settings(fingerprint, labels, frame)

    @cached_property
    def design(self) -> RegionDesign:
        """What the network is built by."""
        s = self.settings
        return RegionDesign(self.pyramid, len(self.labels.things), s.slots, s.mask, s.proposals, s.samples, s.cells)

    def built(self, backbone: nn.Module) -> nn.Module:
        """See `ObjectFinder.built`."""
        return MaskRCNN(backbone, self.settings.channels, self.design)

    def terms(self, outputs: Outputs, boxes: Tensor, kinds: Tensor) -> dict[str, Tensor]:
        """See `region_losses`."""
        return region_losses(outputs, boxes, kinds)

    def perfect(self, truth: Truth) -> dict[str, Tensor]:
        """See `medseg.models.detection.rcnn.perfect`."""
        return rcnn.perfect(truth, self.design)


class Prototypes(Detector):
    """YOLACT."""

    settings: PrototypeSettings

    @staticmethod
    def planned(fingerprint: Fingerprint, labels: Labels, frame: Frame) -> Planned:
        """See `fitting.prototype_settings`."""
        return prototype_settings(fingerprint, labels, frame)

    @cached_property
    def design(self) -> PrototypeDesign:
        """What the network is built by."""
        s = self.settings
        return PrototypeDesign(self.pyramid, len(self.labels.things), s.slots, s.mask, s.samples, s.prototypes)

    def built(self, backbone: nn.Module) -> nn.Module:
        """See `ObjectFinder.built`."""
        return Yolact(backbone, self.settings.channels, self.design)

    def terms(self, outputs: Outputs, boxes: Tensor, kinds: Tensor) -> dict[str, Tensor]:
        """See `prototype_losses`."""
        return prototype_losses(outputs, boxes, kinds)

    def perfect(self, truth: Truth) -> dict[str, Tensor]:
        """See `medseg.models.detection.yolact.perfect`."""
        return yolact.perfect(truth, self.design)


def _listed(objects: Tensor, codes: Tensor) -> Tensor:
    """Whether each voxel `(N, *window)` is background, or of an object among the window's `codes` `(N, M)`."""
    known = torch.cat([torch.zeros_like(codes[:, :1]), codes], 1).sort(1).values
    flat = objects.flatten(1).to(known.dtype).contiguous()
    place = torch.searchsorted(known.contiguous(), flat).clamp(max=known.shape[1] - 1)
    return (known.gather(1, place) == flat).view(objects.shape)


def truth_of(targets: Mapping[str, Tensor]) -> Truth:
    """The true objects of windows."""
    return Truth(targets["boxes"], targets["kinds"], targets["codes"], targets["map"])
