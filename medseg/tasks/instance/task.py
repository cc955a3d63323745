"""Instance segmentation: each object of a class by itself. How objects are found is the head's (`dense`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medseg.case import Batch
from medseg.dataset import NUMBER_BITS, Dataset, Labels
from medseg.errors import PlanError
from medseg.fingerprint import Fingerprint
from medseg.metrics.descriptions import INSTANCE_METRICS
from medseg.metrics.instances import Contingency, score_instances
from medseg.models.base import Head, Outputs
from medseg.prediction import DenseMap, Prediction, Scores
from medseg.scratch import IN_MEMORY, Scratch
from medseg.tasks.base import Needs, Task
from medseg.tasks.instance.dense import Dense
from medseg.tasks.instance.settings import InstanceSettings, settings_for


class Instance(Task):
    """What labels and objects are is the task's; what the network learns and how objects come of it is the head's, to which all of that goes."""

    Settings = InstanceSettings
    summary = "each object by itself: a class for every voxel, and the centre of its object"
    metrics: ClassVar[tuple[str, ...]] = ("pq", *(name for name in INSTANCE_METRICS if name != "pq"))
    objects = True
    combines = False  # offsets of several configurations have other axes and units

    @staticmethod
    def needs(dataset: Dataset, fingerprint: Fingerprint) -> Needs:
        """Where the labels name no things, every class is one, and its connected components are the objects."""
        labels = dataset.labels
        if not labels.exclusive:
            raise PlanError.of(
                "regions that overlap have no separate objects",
                where=f"dataset '{dataset.name}'",
                found=", ".join(labels.names),
                fix="Give each class values of its own, e.g. --class tumour=1,2.",
            )
        labels = labels if labels.things else labels.as_objects("components")
        target, reasons = settings_for(fingerprint)
        return Needs(labels, len(dataset.channels), Dense(target.head, labels, fingerprint.ndim).heads, target, reasons)

    @property
    def labels(self) -> Labels:
        """Classes, things, ignore value."""
        return self.plan.data.labels

    @cached_property
    def head(self) -> Dense:
        """How objects are found."""
        settings = self.plan.target
        assert isinstance(settings, InstanceSettings)
        return Dense(settings.head, self.labels, len(self.plan.window))

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
        outputs: Mapping[str, DenseMap],
        case_id: str,
        probabilities: bool = False,
        scratch: Scratch = IN_MEMORY,
        uncertainty: bool = False,
    ) -> Prediction:
        """See `Task.decode`."""
        return self.head.decode(outputs, case_id, probabilities, scratch, uncertainty)

    def combine(
        self,
        predictions: Sequence[Prediction],
        case_id: str,
        probabilities: bool = False,
        scratch: Scratch = IN_MEMORY,
        uncertainty: bool = False,
    ) -> Prediction:
        """See `Task.combine`."""
        return self.head.combine(predictions, case_id, probabilities, scratch, uncertainty)

    def score(
        self, prediction: NDArray[Any], truth: NDArray[Any], spacing: tuple[float, ...], metrics: tuple[str, ...] | None = None
    ) -> Scores:
        """See `medseg.metrics.instances.score_instances`; a class without objects is one object."""
        labels = self.labels
        ignore = None if labels.ignore is None else labels.ignore << NUMBER_BITS
        found = Contingency.between(prediction, truth, ignore=ignore, classes=self._classes)
        return score_instances(found, dict(enumerate(labels.names, 1)), self.metrics if metrics is None else metrics)

    def _classes(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        values = self.labels.semantic(codes)
        return np.array([self._order.get(int(value), 0) for value in values], np.int64)

    @cached_property
    def _order(self) -> dict[int, int]:
        return {value: k for k, one in enumerate(self.labels.classes, 1) for value in one.values}
