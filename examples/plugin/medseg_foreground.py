"""A whole third-party task: is a voxel foreground of any class? Install it and pass `--task foreground`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.case import Batch
from medseg.dataset import Dataset, LabelClass, Labels
from medseg.fingerprint import Fingerprint
from medseg.losses.dice import region_loss
from medseg.metrics import METRICS, score_classes
from medseg.models.base import Head, Outputs
from medseg.plans import TargetSection
from medseg.prediction import DenseMap, Prediction, Scores
from medseg.scratch import IN_MEMORY, Scratch
from medseg.tasks.base import Needs, Task

HEADS = (Head("any", 1, prior=(-3.0,)),)


class ForegroundSettings(TargetSection):
    """The task's section of the plan: nothing to decide."""

    kind: Literal["foreground"] = "foreground"


class Foreground(Task):
    """One sigmoid: background, or any of the classes."""

    Settings = ForegroundSettings
    summary = "foreground of any class against background"
    metrics = tuple(METRICS)
    heads = HEADS  # type: ignore[assignment]  # a constant does for a property

    @staticmethod
    def needs(dataset: Dataset, fingerprint: Fingerprint) -> Needs:
        merged = Labels(classes=(LabelClass(name="any", values=dataset.labels.values),), ignore=dataset.labels.ignore)
        return Needs(merged, len(dataset.channels), HEADS, ForegroundSettings(), {"kind": "Asked for by name."})

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.label is not None
        found = torch.isin(batch.label, torch.tensor(self.plan.data.labels.values, device=batch.label.device))
        return {"any": found[:, None].float(), "valid": found | (batch.label == 0)}

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return region_loss(outputs["any"][0], targets["any"], targets["valid"])

    def oracle(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"any": (2 * targets["any"] - 1) * 12}

    def decode(
        self,
        outputs: Mapping[str, DenseMap],
        case_id: str,
        probabilities: bool = False,
        scratch: Scratch = IN_MEMORY,
        uncertainty: bool = False,
    ) -> Prediction:
        logits = outputs["any"]
        labels = scratch.zeros(logits.shape[1:], np.uint8)
        chances = scratch.zeros(logits.shape, np.float16) if probabilities else None
        for rows, values in logits.slabs():
            labels[rows] = np.where(values[0] > 0, self.plan.data.labels.written[0], 0)
            if chances is not None:
                chances[:, rows] = torch.from_numpy(np.asarray(values)).sigmoid().numpy()
        return Prediction(case_id, labels, chances)

    def combine(
        self,
        predictions: Sequence[Prediction],
        case_id: str,
        probabilities: bool = False,
        scratch: Scratch = IN_MEMORY,
        uncertainty: bool = False,
    ) -> Prediction:
        chances = np.mean([np.asarray(one.probabilities, np.float64) for one in predictions], axis=0)
        labels = np.where(chances[0] > 0.5, self.plan.data.labels.written[0], 0).astype(np.uint8)
        return Prediction(case_id, labels, chances.astype(np.float16) if probabilities else None)

    def score(
        self, prediction: NDArray[Any], truth: NDArray[Any], spacing: tuple[float, ...], metrics: tuple[str, ...] | None = None
    ) -> Scores:
        return score_classes(prediction, truth, self.plan.data.labels, spacing, metrics)
