"""The scored objects of a case beside those of its reference, which average precision and FROC are computed of.

Detections (`medseg.io.detections`) are what was found, each with a mask of its own. Where a prediction comes without, they are the objects of
its label map with the confidences that the table beside it gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import NUMBER_BITS, Labels
from medseg.errors import ImageError
from medseg.imaging.crop import value_boxes
from medseg.io.coco.labels import Annotated, annotated
from medseg.io.confidences import read_confidences
from medseg.io.detections import Detection, read_detections
from medseg.io.rle import Rle
from medseg.metrics.instances import Contingency, Detections, Ranking, class_numbers, label_boxes, mask_overlaps


def rank(
    contingency: Contingency, prediction: NDArray[Any], truth: NDArray[Any], labels: Labels, files: tuple[Path, Path]
) -> tuple[Ranking, bool] | None:
    """The scored objects of two maps of codes `(*shape)`, whose table is `contingency`, and whether they are those of the label map only, because
    there are no detections; None where nobody knows how sure they are.

    Args:
        files: the prediction and the reference. The objects of a COCO file are taken as they are drawn, also beneath others.

    Raises:
        ImageError: what lies beside the prediction cannot be read, or is of another prediction.
    """
    found = read_detections(files[0], labels, prediction.shape)
    if found is not None:
        drawn = annotated(files[1])
        if drawn is not None:
            return _of_detections(found, drawn, None, labels, truth.ndim), False
        return _of_detections(found, _real(contingency, truth, labels), _unknown(truth, labels), labels, truth.ndim), False
    confidences = read_confidences(files[0], labels)
    things = [cls for cls, name in class_numbers(labels).items() if name in labels.things]
    if confidences is None and np.isin(contingency.prediction.classes, things).any():
        return None
    return _of_table(contingency, prediction, truth, labels, confidences or {}, files[0]), bool(confidences)


def _of_table(
    contingency: Contingency, prediction: NDArray[Any], truth: NDArray[Any], labels: Labels, confidences: Mapping[int, float], where: Path
) -> Ranking:
    objects = contingency.prediction
    things = [cls for cls, name in class_numbers(labels).items() if name in labels.things]
    of_things = objects.ids[np.isin(objects.classes, things)].tolist()
    lacking = [code for code in of_things if code not in confidences]
    if lacking:
        raise ImageError.of(
            "predicted objects are not in the table beside the prediction",
            where=str(where),
            found=f"{len(lacking)} of {len(of_things)} without a score, e.g. number {labels.numbers(lacking[0])}",
            fix="Table and label map belong to different predictions; predict again.",
        )
    scores = np.array([confidences.get(code, 0.0) for code in objects.ids.tolist()], np.float64)
    boxes = label_boxes(prediction, objects.ids), label_boxes(truth, contingency.truth.ids)
    return Ranking(Detections.of_labels(contingency, scores), Detections.of_labels(contingency, scores, boxes))


def _of_detections(found: Sequence[Detection], real: Sequence[Annotated], unknown: Rle | None, labels: Labels, ndim: int) -> Ranking:
    classes = {value: k for k, one in enumerate(labels.classes, 1) if one.name in labels.things for value in one.values}
    real = [one for one in real if one.value in classes]
    scores = np.array([one.score for one in found], np.float64)
    known: dict[str, Any] = {
        "classes": np.array([one.index + 1 for one in found], np.int64),
        "truth_classes": np.array([classes[one.value] for one in real], np.int64),
        "crowd": np.array([one.crowd for one in real], np.bool_),
    }
    drawn, hidden = [one.mask for one in found], np.zeros(len(found))
    if unknown is not None:
        covered, _, hidden_voxels = mask_overlaps(drawn, [unknown])
        hidden[covered] = hidden_voxels
    masks = Detections.of_masks(drawn, scores, [one.mask for one in real], hidden=hidden, **known)
    boxes = Detections.of_boxes(_boxes(found, ndim), scores, _boxes(real, ndim), **known)
    return Ranking(masks, boxes.where_unknown(hidden, np.array([mask.area for mask in drawn])))


def _boxes(some: Sequence[Detection] | Sequence[Annotated], ndim: int) -> NDArray[np.float64]:
    """`(n, 2, ndim)`."""
    boxes = [one.mask.box.ravel() if one.box is None else one.box for one in some]
    return np.array(boxes, np.float64).reshape(-1, 2, ndim)


def _real(contingency: Contingency, truth: NDArray[Any], labels: Labels) -> Sequence[Annotated]:
    """The objects of a reference that is a label map."""
    ids = contingency.truth.ids[labels.numbers(contingency.truth.ids) > 0]
    boxes = value_boxes(truth, tuple(ids.tolist())) if len(ids) else {}
    return [
        Annotated(int(labels.semantic(code)), Rle.of_part(truth[box] == code, tuple(axis.start for axis in box), truth.shape), False, None)
        for code, box in boxes.items()
    ]


def _unknown(truth: NDArray[Any], labels: Labels) -> Rle | None:
    """Where nothing is known; None where all is."""
    if labels.ignore is None:
        return None
    unknown = truth == labels.ignore << NUMBER_BITS
    return Rle.encode(unknown) if unknown.any() else None
