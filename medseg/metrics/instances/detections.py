"""Scored objects of one case beside its truth: what average precision and FROC need, whether they are masks, boxes or label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.io.rle import Rle, shared
from medseg.metrics.contingency import Contingency, Flags, Floats, Integers
from medseg.metrics.instances.boxes import box_iou, box_volumes


@dataclass(frozen=True)
class Detections:
    """The predicted objects of one case, and how they overlap with those of the truth.

    Attributes:
        scores: `(d,)` confidence, higher is surer.
        classes: `(d,)`.
        sizes: `(d,)` voxels, or volumes of boxes.
        truth_classes: `(g,)`.
        truth_sizes: `(g,)`; COCO's annotations bring areas of their own, also where boxes are compared.
        crowd: `(g,)` groups of objects that nobody told apart; finding any part of one is neither right nor wrong.
        iou: `(d, g)` intersection over union; for crowds, over the detection alone.
    """

    scores: Floats
    classes: Integers
    sizes: Floats
    truth_classes: Integers
    truth_sizes: Floats
    crowd: Flags
    iou: Floats = field(repr=False)

    def __post_init__(self) -> None:
        d, g = len(self.scores), len(self.truth_classes)
        shapes = [a.shape for a in (self.classes, self.sizes, self.truth_sizes, self.crowd, self.iou)]
        if shapes != [(d,), (d,), (g,), (g,), (d, g)]:
            raise ValueError(f"{d} scores and {g} true objects do not belong with arrays of {shapes}")
        if not np.isfinite(self.scores).all():
            raise ValueError("a score is not a finite number")

    @classmethod
    def of_boxes(
        cls,
        boxes: Floats,
        scores: Floats,
        truth: Floats,
        *,
        classes: Integers | None = None,
        truth_classes: Integers | None = None,
        truth_sizes: Floats | None = None,
        crowd: Flags | None = None,
    ) -> Detections:
        """From boxes `(d, 2, ndim)` with scores `(d,)` and boxes `(g, 2, ndim)` of the truth; without classes all are of class 1."""
        crowd = _or(crowd, np.zeros(len(truth), bool))
        sizes = _or(truth_sizes, box_volumes(truth))
        ones = np.ones(len(boxes), np.int64), np.ones(len(truth), np.int64)
        iou = box_iou(boxes, truth, crowd)
        return cls(scores, _or(classes, ones[0]), box_volumes(boxes), _or(truth_classes, ones[1]), sizes, crowd, iou)

    @classmethod
    def of_masks(
        cls,
        masks: Sequence[Rle],
        scores: Floats,
        truth: Sequence[Rle],
        *,
        classes: Integers | None = None,
        truth_classes: Integers | None = None,
        truth_sizes: Floats | None = None,
        crowd: Flags | None = None,
        hidden: Floats | None = None,
    ) -> Detections:
        """From run lengths, which may overlap, of one shape; without classes all are of class 1. Raises ValueError where shapes differ.

        `hidden`: `(d,)` voxels of each mask where the truth is unknown; they count in no IoU, and are within a crowd of every class.
        """
        if len(shapes := {mask.shape for mask in (*masks, *truth)}) > 1:
            raise ValueError(f"masks of different shapes: {sorted(shapes)}")
        crowd = _or(crowd, np.zeros(len(truth), bool))
        kinds = _or(classes, np.ones(len(masks), np.int64)), _or(truth_classes, np.ones(len(truth), np.int64))
        own = np.array([m.area for m in masks], np.float64)
        hidden = _or(hidden, np.zeros(len(masks)))
        areas = np.array([m.area for m in truth], np.float64)
        iou = np.zeros((len(masks), len(truth)))
        if len(masks) and len(truth):
            near = box_iou(np.stack([m.box for m in masks]), np.stack([m.box for m in truth])) > 0
            for d, g in np.argwhere(near & (kinds[0][:, None] == kinds[1])):
                both = shared(masks[d], truth[g])
                iou[d, g] = both / (own[d] if crowd[g] else own[d] - hidden[d] + areas[g] - both) if both else 0.0
        return cls(scores, kinds[0], own, kinds[1], _or(truth_sizes, areas), crowd, iou).where_unknown(hidden)

    @classmethod
    def of_labels(cls, contingency: Contingency, scores: Floats, boxes: tuple[Floats, Floats] | None = None) -> Detections:
        """From two label maps; `scores` of the predicted objects in the order of `contingency.prediction`.

        Where the truth is ignored, there is a crowd of every class. With `boxes` (of prediction and truth) these are compared.
        """
        truth, prediction = contingency.truth, contingency.prediction
        if boxes is None:
            iou = np.zeros((len(prediction), len(truth)))
            crowded = truth.crowd[contingency.rows]
            part = contingency.shared / prediction.sizes[contingency.columns]
            iou[contingency.columns, contingency.rows] = np.where(crowded, part, contingency.iou)
            sizes, truth_sizes = prediction.sizes.astype(np.float64), truth.sizes.astype(np.float64)
        else:
            iou = box_iou(*boxes, truth.crowd)
            sizes, truth_sizes = box_volumes(boxes[0]), box_volumes(boxes[1])
        found = cls(scores, prediction.classes, sizes, truth.classes, truth_sizes, truth.crowd, iou)
        return found.where_unknown(prediction.ignored.astype(np.float64), prediction.sizes)

    def where_unknown(self, hidden: Floats, voxels: Floats | Integers | None = None) -> Detections:
        """With a crowd of every class where nothing is known, by the voxels `(d,)` of each detection that lie there, and all that it has."""
        whole = _or(voxels, self.sizes)
        some = hidden > 0
        classes, at = np.unique(self.classes[some], return_inverse=True)
        parts = np.zeros((len(self.scores), len(classes)))
        parts[np.flatnonzero(some), at] = (hidden / np.maximum(whole, 1))[some]
        extent = np.array([hidden[self.classes == c].sum() for c in classes], np.float64)
        return replace(
            self,
            truth_classes=np.concatenate([self.truth_classes, classes]),
            truth_sizes=np.concatenate([self.truth_sizes, extent]),
            crowd=np.concatenate([self.crowd, np.ones(len(classes), bool)]),
            iou=np.concatenate([self.iou, parts], axis=1),
        )


def _or(given: NDArray[Any] | None, default: NDArray[Any]) -> NDArray[Any]:
    return default if given is None else given
