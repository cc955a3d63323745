"""What each metric is, by name: for tables, reports, and to refuse names that do not exist."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from medseg.errors import UsageError

TOLERANCE = 2.0
"""Millimetres (pixels where an image has no spacing) that `nsd` allows; `nsd@1` asks for another tolerance."""

OVERLAP = 0.5
"""IoU at which objects match where a metric names none."""

SWEEP = "0.5:0.95"
"""IoU 0.5, 0.55, ... 0.95: a metric at these is the mean over all ten."""


class Better(StrEnum):
    """Which values of a metric are good."""

    up = "higher"
    down = "lower"
    zero = "zero"


@dataclass(frozen=True)
class Metric:
    """What a metric is, for tables and reports.

    Attributes:
        name: as in `Scores`.
        title: heading.
        better: which values are good.
        unit: `mm`, or empty for shares.
        meaning: one sentence.
    """

    name: str
    title: str
    better: Better
    unit: str
    meaning: str


def _named(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


METRICS: dict[str, Metric] = _named(
    Metric("dice", "Dice", Better.up, "", "Overlap: twice the common voxels over the sum of both."),
    Metric("iou", "IoU", Better.up, "", "Overlap: common voxels over the union."),
    Metric("nsd", "NSD", Better.up, "", "Share of both surfaces within the stated tolerance of the other one."),
    Metric("hd95", "HD95", Better.down, "mm", "Distance within which 95 % of either surface lies of the other one."),
    Metric("assd", "ASSD", Better.down, "mm", "Mean distance between the two surfaces."),
    Metric("volume_error", "Volume error", Better.zero, "", "(Predicted - reference volume) / reference volume, signed."),
    Metric("lesion_f1", "Lesion F1", Better.up, "", "F1 over connected components; found means 10 % is covered."),
    Metric("sensitivity", "Sensitivity", Better.up, "", "Share of the reference that was found."),
    Metric("precision", "Precision", Better.up, "", "Share of the prediction that is right."),
)
"""What `score_classes` can compute, by name. `nsd@X` is `nsd` at a tolerance of X mm."""

INSTANCE_METRICS: dict[str, Metric] = _named(
    Metric("pq", "PQ", Better.up, "", "Panoptic quality: SQ times RQ, of objects that match at an IoU above 0.5."),
    Metric("sq", "SQ", Better.up, "", "Segmentation quality: mean IoU of the objects that match."),
    Metric("rq", "RQ", Better.up, "", "Recognition quality: F1 of the objects that match at an IoU above 0.5."),
    Metric("object_accuracy", "Object accuracy", Better.up, "", "TP / (TP + FP + FN) of objects matched one to one."),
    Metric("object_f1", "Object F1", Better.up, "", "F1 of objects matched one to one."),
    Metric("object_sensitivity", "Object sensitivity", Better.up, "", "Share of the reference's objects that were found."),
    Metric("object_precision", "Object precision", Better.up, "", "Share of the predicted objects that are real."),
    METRICS["lesion_f1"],
)
"""What `score_instances` can compute, by name. `object_f1@X` is `object_f1` at an IoU of X, `object_f1@0.5:0.95` the mean over IoU 0.5, 0.55,
... 0.95; likewise the other three."""

DETECTION_METRICS: dict[str, Metric] = _named(
    Metric(
        "ap",
        "AP",
        Better.up,
        "",
        "COCO's average precision: area under precision over sensitivity, objects taken from the surest on.",
    ),
    Metric("box_ap", "Box AP", Better.up, "", "As AP, where the boxes around objects match instead of their masks."),
    Metric(
        "froc",
        "FROC",
        Better.up,
        "",
        "Mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per case; found means an IoU of 0.1.",
    ),
)
"""What `pool` can compute of scored objects, by name: scores of a dataset. `ap` is the mean over IoU 0.5, 0.55, ... 0.95, `ap@X` at an IoU of X."""

_SWEPT = {"object_accuracy", "object_f1", "object_sensitivity", "object_precision", "ap", "box_ap"}


def describe(name: str) -> Metric:
    """The metric called `name`, of whatever kind, with the tolerance of an `nsd`, or the IoU at which objects match, in its title.

    Raises:
        UsageError: there is no such metric, or its tolerance or IoU is impossible.
    """
    base, at, _ = name.partition("@")
    metric = (METRICS | INSTANCE_METRICS | DETECTION_METRICS).get(base)
    if metric is None or (at and base != "nsd" and base not in _SWEPT):
        raise UsageError.of(
            "unknown metric",
            found=f"'{name}'",
            expected=f"one of {', '.join(METRICS)}, or nsd@MILLIMETRES; of objects {', '.join(_OBJECTS)}",
        )
    if base == "nsd":
        return Metric(name, f"NSD at {tolerance(name):g} mm", metric.better, metric.unit, metric.meaning)
    if base in _SWEPT:
        levels = iou_thresholds(name)
        where = SWEEP if len(levels) > 1 else f"{levels[0]:g}"
        return Metric(name, f"{metric.title} at IoU {where}", metric.better, metric.unit, metric.meaning)
    return metric


_OBJECTS = (*(name for name in INSTANCE_METRICS if name not in METRICS), *DETECTION_METRICS, "NAME@IOU", f"NAME@{SWEEP}")


def tolerance(name: str) -> float:
    """Millimetres of `nsd` or `nsd@X`. Raises UsageError if X is not a positive number."""
    text = name.partition("@")[2]
    value = _number(text) if "@" in name else TOLERANCE
    if not 0 < value < math.inf:
        raise UsageError.of("impossible tolerance", found=f"'{name}'", expected="a positive number of millimetres, as in nsd@1.5")
    return value


def iou_thresholds(name: str) -> tuple[float, ...]:
    """The IoU thresholds of a metric of objects: one, or the ten of `SWEEP`. Raises UsageError if there is none such."""
    base, at, text = name.partition("@")
    if text == SWEEP or (not at and base in DETECTION_METRICS):
        return tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
    value = _number(text) if at else OVERLAP
    if not 0 < value <= 1:
        raise UsageError.of(
            "impossible IoU", found=f"'{name}'", expected=f"a number above 0 and at most 1, as in {base}@0.5, or {base}@{SWEEP}"
        )
    return (value,)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
