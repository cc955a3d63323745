"""Instance segmentation: each object of a class by itself. How objects are found is the head's (`dense`)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.case import Batch
from medseg.dataset import Dataset, Labels
from medseg.errors import PlanError
from medseg.fingerprint import Fingerprint
from medseg.metrics.contingency import Contingency
from medseg.metrics.descriptions import INSTANCE_METRICS
from medseg.metrics.instances import class_numbers, count_objects, score_instances
from medseg.models.base import Head, Outputs, find_network
from medseg.plans import Plan
from medseg.prediction import Prediction, Scores, Stitched
from medseg.scratch import IN_MEMORY, Scratch
from medseg.tasks.base import Frame, Needs, Task
from medseg.tasks.instance.choice import prefers_regions
from medseg.tasks.instance.dense import Dense
from medseg.tasks.instance.detectors import Prototypes, Regions
from medseg.tasks.instance.fitting import nominal
from medseg.tasks.instance.head import ObjectFinder
from medseg.tasks.instance.settings import InstanceSettings, ObjectSettings

OF_DATA = (
    "frequencies",
    "blob",
    "offset",
    "touching",
    "semantic",
    "contested",
)  # what a head has of the labels, whatever model it is continued from
WAYS: dict[str, type[Any]] = {"dense": Dense, "mask-rcnn": Regions, "yolact": Prototypes}  # each an `ObjectFinder`


class Instance(Task):
    """What labels and objects are is the task's; what the network learns and how objects come of it is the head's, to which all of that goes."""

    Settings: ClassVar[type[ObjectSettings]] = InstanceSettings
    summary = "each object by itself, found by votes for its centre, Mask R-CNN or YOLACT"
    metrics: ClassVar[tuple[str, ...]] = ("pq", *(name for name in INSTANCE_METRICS if name != "pq"))
    objects = True
    both: ClassVar[bool] = False
    """Whether some classes must be things, and some not."""
    combines = False  # what votes and boxes mean depends on a configuration's axes and voxels
    networks: ClassVar[Mapping[str, str]] = {
        "dense": "a class for every voxel, and votes for the centres of objects",
        "mask-rcnn": "regions that may hold an object, then its class, box and mask",
        "yolact": "class, box and mask of all objects in one pass",
    }

    @classmethod
    def needs(cls, dataset: Dataset, fingerprint: Fingerprint) -> Needs:
        """Where the labels name no things, every class is one, and its connected components are the objects.

        Raises:
            PlanError: regions overlap; all classes are things, or none is, where `both` must be.
        """
        if cls.both:
            _check_both(dataset)
        labels = dataset.labels
        if not labels.exclusive:
            raise PlanError.of(
                "regions that overlap have no separate objects",
                where=f"dataset '{dataset.name}'",
                found=", ".join(labels.names),
                fix="Give each class values of its own, e.g. --class tumour=1,2.",
            )
        labels = labels if labels.things else labels.as_objects("components")
        return cls._by(Dense, labels, len(dataset.channels), fingerprint, nominal(fingerprint))

    @classmethod
    def variants(cls, dataset: Dataset, fingerprint: Fingerprint, network: str | None) -> tuple[Needs, ...]:
        """Votes and regions, or the way that is asked for; on another family of networks only votes, which need no pyramid."""
        plain = cls.needs(dataset, fingerprint)
        if network is not None:
            way = WAYS.get(network, Dense)
            return (cls._by(way, plain.labels, plain.channels, fingerprint, nominal(fingerprint)),)
        regions = cls._by(Regions, plain.labels, plain.channels, fingerprint, nominal(fingerprint))
        return (
            replace(plain, because="Objects by votes for their centres."),
            replace(regions, name="mask-rcnn", because="Objects by Mask R-CNN."),
        )

    @classmethod
    def like(cls, dataset: Dataset, fingerprint: Fingerprint, model: Plan, because: str) -> Needs:
        """The model's way to find objects, with its anchors, places and units."""
        plain = cls.needs(dataset, fingerprint)
        if not isinstance(model.target, ObjectSettings):
            return plain
        theirs = model.target.head
        own = cls._by(WAYS[theirs.kind], plain.labels, plain.channels, fingerprint, nominal(fingerprint))
        assert isinstance(own.target, ObjectSettings)
        of_data = [name for name in OF_DATA if name in type(theirs).model_fields]
        head = theirs.model_copy(update={name: getattr(own.target.head, name) for name in of_data})
        reasons = {f"head.{name}": because for name in type(head).model_fields if name not in OF_DATA}
        reasons |= {f"head.{name}": own.reasons[f"head.{name}"] for name in of_data if f"head.{name}" in own.reasons}
        find = WAYS[head.kind](head, plain.labels, len(model.window), find_network(model.network.kind).levels(model.network))
        target = cls.Settings(kind=cls.Settings.model_fields["kind"].default, head=head)
        return replace(
            plain,
            heads=find.heads,
            target=target,
            reasons=reasons,
            overlap=model.inference.overlap,
            overlap_because=because,
            one_view="" if model.inference.mirror else because,
            one_network=because if model.training.networks == 1 else "",
            final=True,
        )

    @classmethod
    def fit(cls, needs: Needs, fingerprint: Fingerprint, frame: Frame) -> Needs:
        """Heads are fitted to the objects in voxels of a window, and so is which of two ways is recommended."""
        assert isinstance(needs.target, ObjectSettings)
        fitted = cls._by(WAYS[needs.target.head.kind], needs.labels, needs.channels, fingerprint, frame)
        if not needs.because:
            return fitted
        boxed, because = prefers_regions(fingerprint, needs.labels, frame)
        chosen = boxed == (needs.target.head.kind == "mask-rcnn")
        return replace(fitted, name=needs.name, preference=float(chosen), because=f"{needs.because} {because}")

    @classmethod
    def _by(cls, way: type[Any], labels: Labels, channels: int, fingerprint: Fingerprint, frame: Frame) -> Needs:
        made = way.planned(fingerprint, labels, frame)
        heads = way(made.settings, labels, len(frame.window), frame.levels).heads
        reasons = {f"head.{name}": reason for name, reason in made.reasons.items()}
        return Needs(
            labels,
            channels,
            heads,
            cls.Settings(kind=cls.Settings.model_fields["kind"].default, head=made.settings),
            reasons,
            overlap=made.overlap,
            overlap_because=made.because,
            one_view=made.one_view,
            one_network=made.one_network,
        )

    @property
    def labels(self) -> Labels:
        """Classes, things, ignore value."""
        return self.plan.data.labels

    @cached_property
    def head(self) -> ObjectFinder:
        """How objects are found."""
        settings = self.plan.target
        assert isinstance(settings, ObjectSettings)
        levels = find_network(self.plan.network.kind).levels(self.plan.network)
        finder: ObjectFinder = WAYS[settings.head.kind](settings.head, self.labels, len(self.plan.window), levels)
        return finder

    def built(self, channels: int, heads: tuple[Head, ...]) -> nn.Module:
        """See `Objective.built`."""
        return self.head.built(super().built(channels, self.head.grown(heads)))

    @property
    def inner(self) -> str:
        """See `Objective.inner`."""
        return self.head.inner

    def run(self, network: nn.Module, batch: Batch, targets: Mapping[str, Tensor]) -> Outputs:
        """See `Objective.run`."""
        return self.head.run(network, self.inputs(batch), targets)

    @property
    def heads(self) -> tuple[Head, ...]:
        """See `Task.heads`."""
        return self.head.heads

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """See `Task.targets`."""
        return self.head.targets(batch)

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Task.loss`."""
        return self.head.loss(outputs, targets)

    def oracle(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Task.oracle`."""
        return self.head.oracle(targets)

    def decode(
        self,
        outputs: Mapping[str, Stitched],
        case_id: str,
        probabilities: bool = False,
        scratch: Scratch = IN_MEMORY,
        uncertainty: bool = False,
    ) -> Prediction:
        """See `Task.decode`."""
        return self.head.decode(outputs, case_id, probabilities, scratch, uncertainty)

    def score(
        self,
        prediction: NDArray[Any],
        truth: NDArray[Any],
        spacing: tuple[float, ...],
        metrics: tuple[str, ...] | None = None,
        counted: Contingency | None = None,
    ) -> Scores:
        """See `medseg.metrics.instances.score_instances`; a class without objects is one object."""
        found = counted or count_objects(prediction, truth, self.labels)
        return score_instances(found, class_numbers(self.labels), self.metrics if metrics is None else metrics)


def _check_both(dataset: Dataset) -> None:
    labels = dataset.labels
    if not labels.things or len(labels.things) == len(labels.names):
        names = labels.names
        both = "--task instance, where all classes have objects, or --task semantic, where none has"
        if len(names) == 1:
            fix = f"One class cannot be things and stuff at once: take {both}."
        else:
            told = f'--thing {shlex.quote(names[0])}, or "things": [{json.dumps(names[0])}] in the dataset\'s medseg.json'
            fix = f"Say which classes have objects, e.g. {told}; or take {both}."
        raise PlanError.of(
            "a panoptic task needs classes with objects (things) and classes without (stuff)",
            where=f"dataset '{dataset.name}'",
            found=f"things: {', '.join(labels.things) or 'none'}; all classes: {', '.join(labels.names)}",
            expected="some of the classes among the things",
            fix=fix,
        )
