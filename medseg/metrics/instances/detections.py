"""Scored objects of one case beside its truth: what average precision and FROC need, whether they are masks, boxes or label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.io.rle import Rle
from medseg.metrics.contingency import Contingency, Flags, Floats, Integers
from medseg.metrics.instances.boxes import box_volumes
from medseg.metrics.instances.overlaps import box_overlaps, mask_overlaps


@dataclass(frozen=True)
class Detections:
    """The predicted objects of one case, and how they overlap with those of the truth; only pairs of one class that do are kept.

    Attributes:
        scores: `(d,)` confidence, higher is surer.
        classes: `(d,)`.
        truth_classes: `(g,)`.
        crowd: `(g,)` groups of objects that nobody told apart; finding any part of one is neither right nor wrong.
        rows: `(k,)` index of a pair's detection.
        columns: `(k,)` index of a pair's object of the truth.
        iou: `(k,)` intersection over union of each pair; with crowds, over the detection alone.
    """

    scores: Floats
    classes: Integers
    truth_classes: Integers
    crowd: Flags
    rows: Integers = field(repr=False)
    columns: Integers = field(repr=False)
    iou: Floats = field(repr=False)

    def __post_init__(self) -> None:
        d, g, k = len(self.scores), len(self.truth_classes), len(self.iou)
        shapes = [a.shape for a in (self.classes, self.crowd, self.rows, self.columns, self.iou)]
        if shapes != [(d,), (g,), (k,), (k,), (k,)]:
            raise ValueError(f"{d} scores, {g} true objects and {k} pairs do not belong with arrays of {shapes}")
        if not np.isfinite(self.scores).all():
            raise ValueError("a score is not a finite number")
        if (self.classes[self.rows] != self.truth_classes[self.columns]).any():
            raise ValueError("a detection and an object of another class are no pair")

    @classmethod
    def of_boxes(
        cls,
        boxes: Floats,
        scores: Floats,
        truth: Floats,
        *,
        classes: Integers | None = None,
        truth_classes: Integers | None = None,
        crowd: Flags | None = None,
    ) -> Detections:
        """From boxes `(d, 2, ndim)` with scores `(d,)` and boxes `(g, 2, ndim)` of the truth; without classes all are of class 1.

        With crowds the intersection is related to the detection alone, as in `pycocotools`: a part of a crowd is no error.
        """
        kinds = _or(classes, np.ones(len(boxes), np.int64)), _or(truth_classes, np.ones(len(truth), np.int64))
        crowd = _or(crowd, np.zeros(len(truth), bool))
        rows, columns, both = box_overlaps(boxes, truth)
        akin = kinds[0][rows] == kinds[1][columns]
        rows, columns, both = rows[akin], columns[akin], both[akin]
        own = box_volumes(boxes)[rows]
        iou = both / np.where(crowd[columns], own, own + box_volumes(truth)[columns] - both)
        return cls(scores, *kinds, crowd, rows, columns, iou)

    @classmethod
    def of_masks(
        cls,
        masks: Sequence[Rle],
        scores: Floats,
        truth: Sequence[Rle],
        *,
        classes: Integers | None = None,
        truth_classes: Integers | None = None,
        crowd: Flags | None = None,
        hidden: Floats | None = None,
    ) -> Detections:
        """From run lengths, which may overlap, of one shape; without classes all are of class 1. Raises ValueError where shapes differ.

        `hidden`: `(d,)` voxels of each mask where the truth is unknown; they count in no IoU, and are within a crowd of every class.
        """
        if len(shapes := {mask.shape for mask in (*masks, *truth)}) > 1:
            raise ValueError(f"masks of different shapes: {sorted(shapes)}")
        kinds = _or(classes, np.ones(len(masks), np.int64)), _or(truth_classes, np.ones(len(truth), np.int64))
        crowd = _or(crowd, np.zeros(len(truth), bool))
        hidden = _or(hidden, np.zeros(len(masks)))
        own, areas = (np.array([mask.area for mask in some], np.float64) for some in (masks, truth))
        rows, columns, both = mask_overlaps(masks, truth)
        akin = kinds[0][rows] == kinds[1][columns]
        rows, columns, both = rows[akin], columns[akin], both[akin]
        iou = both / np.where(crowd[columns], own[rows], own[rows] - hidden[rows] + areas[columns] - both)
        return cls(scores, *kinds, crowd, rows, columns, iou).where_unknown(hidden, own)

    @classmethod
    def of_labels(cls, contingency: Contingency, scores: Floats, boxes: tuple[Floats, Floats] | None = None) -> Detections:
        """From two label maps; `scores` of the predicted objects in the order of `contingency.prediction`.

        Where the truth is ignored, there is a crowd of every class. With `boxes` (of prediction and truth) these are compared.
        """
        truth, prediction = contingency.truth, contingency.prediction
        if boxes is None:
            akin = contingency.akin
            rows, columns = contingency.columns[akin], contingency.rows[akin]
            iou = np.where(truth.crowd[columns], contingency.shared[akin] / prediction.sizes[rows], contingency.iou[akin])
            found = cls(scores, prediction.classes, truth.classes, truth.crowd, rows, columns, iou)
        else:
            found = cls.of_boxes(boxes[0], scores, boxes[1], classes=prediction.classes, truth_classes=truth.classes, crowd=truth.crowd)
        return found.where_unknown(prediction.ignored.astype(np.float64), prediction.sizes)

    def where_unknown(self, hidden: Floats, voxels: Floats | Integers) -> Detections:
        """With a crowd of every class where nothing is known, by the voxels `(d,)` of each detection that lie there, and all that it has."""
        some = np.flatnonzero(hidden > 0)
        classes, at = np.unique(self.classes[some], return_inverse=True)
        return replace(
            self,
            truth_classes=np.concatenate([self.truth_classes, classes]),
            crowd=np.concatenate([self.crowd, np.ones(len(classes), bool)]),
            rows=np.concatenate([self.rows, some]),
            columns=np.concatenate([self.columns, len(self.truth_classes) + at]),
            iou=np.concatenate([self.iou, hidden[some] / voxels[some]]),
        )


def _or(given: NDArray[Any] | None, default: NDArray[Any]) -> NDArray[Any]:
    return default if given is None else given
