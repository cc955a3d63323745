"""The task's section of a plan, and how it follows from the fingerprint."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medseg.fingerprint import OBJECT_QUANTILES, Fingerprint
from medseg.plans import TargetSection
from medseg.record import Record

FAINTEST = 1e-4  # a class is never taken to be rarer, so that its first logits are not out of reach
ENOUGH_OBJECTS = 40  # that say how small others may be
SMALL = 0.05  # of all objects
SIZE_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of `ClassStats.sizes`
STEPS = 40  # points that stand for the sizes of one case


Touching = Literal["apart", "faces", "corners"]
"""What votes may tell apart: also what touches; what shares no face of a voxel; what shares no corner either."""


Contested = Literal["probable", "confident"]
"""Which object has a voxel that several claim."""


class DenseSettings(Record):
    """The dense head: a class for every voxel, and the way to the centre of its object."""

    seldom: ClassVar[tuple[str, ...]] = ("blob", "touching")

    kind: Literal["dense"] = "dense"
    frequencies: tuple[float, ...] = Field(
        description="Share of annotated voxels of background and each class; the network's first guess before anything is learnt."
    )
    dice: float = Field(ge=0, le=10, description="Factor of the soft Dice of the classes.")
    cross_entropy: float = Field(ge=0, le=10, description="Factor of their cross entropy.")
    offset: float = Field(ge=0, le=10, description="Factor of the distance between predicted and true centres, in radii of the object.")
    scale: tuple[float, ...] = Field(
        min_length=1,
        description="Along each axis of a window, the voxels that an output of 1 means in an offset. Distances are compared in proportion to them, "
        "so a thick slice counts as much as the voxels of a plane that an object has instead.",
    )
    smallest: int = Field(ge=1, description="Voxels of the smallest object that is predicted, at native spacing.")
    reach: float = Field(
        ge=0, le=10, description="Groups of votes are one object when their centres are nearer to each other than this times their spread."
    )
    blob: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Factor of the blob loss of the classes: the overlap of each connected component by itself. Written where it is not 0.",
    )
    touching: Touching = Field(
        default="apart",
        description="Whether objects of a class may touch each other, or what touches is one object: where voxels share a face, or a corner, too. "
        "Written where it is.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(not 0 < f < 1 for f in self.frequencies):
            raise ValueError(f"frequencies lie between 0 and 1; found {list(self.frequencies)}")
        if any(not side > 0 for side in self.scale):
            raise ValueError(f"scales are above 0; found {list(self.scale)}")
        return self


class DetectorSettings(Record):
    """What detectors have in common: a feature pyramid, anchors, and places for objects."""

    seldom: ClassVar[tuple[str, ...]] = ("contested", "semantic", "frequencies")

    kind: str
    levels: tuple[int, ...] = Field(min_length=1, description="Decoder stages that are the levels of the feature pyramid, finest first.")
    channels: int = Field(ge=8, description="Channels of the pyramid.")
    anchors: tuple[tuple[tuple[float, ...], ...], ...] = Field(
        description="Of each level, the sides in voxels of the boxes that are compared with objects at each cell."
    )
    samples: int = Field(ge=8, le=4096, description="Regions of a window that a training step looks at more closely.")
    slots: int = Field(ge=1, le=2048, description="Objects that a window can have, at most.")
    mask: int = Field(ge=4, le=56, description="Cells along each axis of an object's mask.")
    score: float = Field(gt=0, lt=1, description="Confidence of an object that is predicted, at least.")
    smallest: int = Field(ge=1, description="Voxels of the smallest object that is predicted, at native spacing.")
    contested: Contested = Field(
        default="probable",
        description="Which of two objects has a voxel that both claim: that with the more probable mask there, or the more confident one. Written "
        "where it is that.",
    )
    semantic: float = Field(
        default=0.0, ge=0, le=10, description="Factor of the loss of a class for every voxel. Written where some classes have no objects."
    )
    frequencies: tuple[float, ...] = Field(
        default=(),
        description="Share of annotated voxels of background and each class, the first guess of them. Written where some classes have no objects.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.anchors) != len(self.levels) or len({len(sizes) for sizes in self.anchors}) > 1 or not all(self.anchors):
            raise ValueError(f"each of the {len(self.levels)} levels needs as many anchors; found {[len(sizes) for sizes in self.anchors]}")
        if any(not side > 0 for sizes in self.anchors for size in sizes for side in size):
            raise ValueError("sides of anchors are positive")
        if any(not 0 < f < 1 for f in self.frequencies):
            raise ValueError(f"frequencies lie between 0 and 1; found {list(self.frequencies)}")
        if self.mask % 2:
            raise ValueError(f"masks have an even number of cells; found {self.mask}")
        return self


class RegionSettings(DetectorSettings):
    """Mask R-CNN: regions that may hold an object, then its class, box and mask."""

    kind: Literal["mask-rcnn"] = "mask-rcnn"
    proposals: int = Field(ge=8, le=4096, description="Regions of a window that are looked at more closely.")
    cells: int = Field(ge=2, le=14, description="Cells along each axis of the grid by which a region is classified.")


class PrototypeSettings(DetectorSettings):
    """YOLACT: objects in one pass; masks are sums of maps that all objects share."""

    kind: Literal["yolact"] = "yolact"
    prototypes: int = Field(ge=1, le=256, description="Maps of which masks are made.")


class ObjectSettings(TargetSection):
    """What the loss asks of the network, and how objects are found in its outputs."""

    head: DenseSettings | RegionSettings | PrototypeSettings = Field(discriminator="kind", description="How objects are found.")


class InstanceSettings(ObjectSettings):
    """Of instance segmentation."""

    kind: Literal["instance"] = "instance"


class PanopticSettings(ObjectSettings):
    """Of panoptic segmentation."""

    kind: Literal["panoptic"] = "panoptic"


def small_size(fingerprint: Fingerprint) -> int:
    """The size that a share `SMALL` of all objects does not reach, from each class's quantiles of each case."""
    told: list[tuple[tuple[int, ...], int, tuple[float, ...]]]
    told = [(one.sizes, one.count, OBJECT_QUANTILES) for case in fingerprint.cases for one in case.objects if one.count]
    told = told or [(c.sizes, c.components, SIZE_QUANTILES) for case in fingerprint.cases for c in case.classes if c.components]
    if not told:
        return 1
    places = (np.arange(STEPS) + 0.5) / STEPS
    sizes = np.concatenate([np.interp(places, quantiles, sizes) for sizes, _, quantiles in told])
    weights = np.repeat([float(count) for _, count, _ in told], STEPS)
    order = np.argsort(sizes, kind="stable")
    share = np.cumsum(weights[order]) / weights.sum()
    return max(1, round(float(sizes[order][np.searchsorted(share, SMALL)])))


def smallest_for(fingerprint: Fingerprint) -> tuple[int, str]:
    """Voxels of the smallest object that is predicted, and the reason: half of what nearly all objects have; few objects say less of how
    small others may be, so less."""
    cases, small = fingerprint.cases, small_size(fingerprint)
    count = sum(one.count for case in cases for one in case.objects) or sum(one.components for case in cases for one in case.classes)
    smallest = max(1, round(small / 2 * min(1.0, count / ENOUGH_OBJECTS)))
    because = f"{SMALL:.0%} of the objects have fewer than {small} voxels; half of that"
    if count < ENOUGH_OBJECTS:
        because += f", times {count} / {ENOUGH_OBJECTS}, because {count} object{'s say' if count > 1 else ' says'} little of how small others may be"
    return smallest, f"{because}. Smaller ones are most often pieces or specks."


def frequencies(fingerprint: Fingerprint) -> tuple[float, ...]:
    """Share of annotated voxels of background and each class."""
    voxels = [sum(case.classes[k].voxels for case in fingerprint.cases) for k in range(len(fingerprint.labels.classes))]
    total = max(1, sum(math.prod(case.shape) - case.ignored for case in fingerprint.cases))
    shares = [(total - sum(voxels)) / total, *(v / total for v in voxels)]
    return tuple(float(f"{min(max(share, FAINTEST), 1 - FAINTEST):.4g}") for share in shares)
