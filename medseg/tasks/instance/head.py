"""What finds objects: the contract of the heads among which instance segmentation chooses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from medseg.case import Batch
from medseg.dataset import Labels
from medseg.fingerprint import Fingerprint
from medseg.geometry import Shape
from medseg.losses.dice import IGNORED
from medseg.models.base import Head, Outputs
from medseg.models.detection.packed import sure
from medseg.prediction import Prediction, Stitched
from medseg.scratch import IN_MEMORY, Scratch
from medseg.tasks.base import Frame

CLASSES = "classes"
BACKGROUND = "background"


class Planned(NamedTuple):
    """Settings of a head with the reason for each, the least overlap of windows with its reason, and where it is so, why no mirrored
    views are averaged and why no second network is trained."""

    settings: Any
    reasons: dict[str, str]
    overlap: float = 0.0
    because: str = ""
    one_view: str = ""
    one_network: str = ""


class ObjectFinder(ABC):
    """Targets, loss and decoding of one way to find objects. Methods are those of `Task`, which hands them on.

    Attributes:
        labels: classes, things, ignore value.
        axes: of a window.
        levels: strides of the decoder stages at which heads of the backbone may answer.
    """

    settings: Any
    inner: ClassVar[str] = ""
    """See `Objective.inner`."""

    def __init__(self, settings: Any, labels: Labels, axes: int, levels: Sequence[Shape]) -> None:
        """From the plan; `settings` are of the kind that `planned` gives, `levels` the strides of the backbone's decoder stages."""
        self.settings, self.labels, self.axes, self.levels = settings, labels, axes, levels

    @staticmethod
    @abstractmethod
    def planned(fingerprint: Fingerprint, labels: Labels, frame: Frame) -> Planned:
        """The settings for these objects in these windows."""

    @property
    @abstractmethod
    def heads(self) -> tuple[Head, ...]:
        """See `Task.heads`."""

    def grown(self, heads: tuple[Head, ...]) -> tuple[Head, ...]:
        """The heads of the backbone for these heads of the network."""
        return heads

    def built(self, backbone: nn.Module) -> nn.Module:
        """The network: the backbone, and what comes on top."""
        return backbone

    def run(self, network: nn.Module, image: Tensor, targets: Mapping[str, Tensor]) -> Outputs:
        """See `Objective.run`."""
        outputs: Outputs = network(image)
        return outputs

    @abstractmethod
    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """See `Task.targets`."""

    @abstractmethod
    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Task.loss`."""

    @abstractmethod
    def oracle(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Task.oracle`."""

    @abstractmethod
    def decode(
        self,
        outputs: Mapping[str, Stitched],
        case_id: str,
        probabilities: bool = False,
        scratch: Scratch = IN_MEMORY,
        uncertainty: bool = False,
    ) -> Prediction:
        """See `Task.decode`."""

    def class_targets(self, label: Tensor) -> Tensor:
        """Index of the class of each voxel `(N, *window)` int64, 0 for background, `IGNORED` where nothing is annotated."""
        values = self.labels.semantic(label)
        classes = torch.zeros(values.shape, dtype=torch.int64, device=values.device)
        for k, one in enumerate(self.labels.classes, 1):
            for value in one.values:
                classes = torch.where(values == value, k, classes)
        if self.labels.ignore is not None:
            classes = torch.where(values == self.labels.ignore, IGNORED, classes)
        return classes

    def perfect_classes(self, classes: Tensor) -> Tensor:
        """Logits `(N, 1 + K, *window)` of a network that knows the class of each voxel `(N, *window)`; background where nothing is annotated."""
        channels = torch.arange(len(self.labels.classes) + 1, device=classes.device)
        return sure((classes.clamp_min(0)[..., None] == channels).movedim(-1, 1))

    def objects(self, label: Tensor) -> Tensor:
        """Codes of the voxels of objects, 0 elsewhere."""
        return torch.where(self.labels.numbers(label) > 0, label, 0)
