"""Scores of instances by name, in the form that evaluation takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from medseg.errors import UsageError
from medseg.metrics.contingency import Contingency
from medseg.metrics.descriptions import INSTANCE_METRICS, describe, iou_thresholds
from medseg.metrics.instances.matching import Tally, match, panoptic
from medseg.metrics.lesions import covered_f1
from medseg.prediction import Scores

_OF_TALLY: dict[str, Callable[[Tally], float]] = {
    "pq": lambda t: t.pq,
    "sq": lambda t: t.sq,
    "rq": lambda t: t.f1,
    "object_accuracy": lambda t: t.accuracy,
    "object_f1": lambda t: t.f1,
    "object_sensitivity": lambda t: t.sensitivity,
    "object_precision": lambda t: t.precision,
}


def score_instances(contingency: Contingency, classes: Mapping[int, str], metrics: Iterable[str] | None = None) -> Scores:
    """Score the objects of one case, class by class.

    Args:
        contingency: the objects, with their classes.
        classes: class -> name, of the classes to score.
        metrics: names of `INSTANCE_METRICS`, some with an IoU (`object_f1@0.75`, `object_accuracy@0.5:0.95`); None means all.

    Returns:
        Class name -> metric name -> value, NaN where undefined (see `medseg.metrics` for the rule).

    Raises:
        UsageError: an unknown metric, or one that needs the scores of detections.
    """
    names = _known(metrics, INSTANCE_METRICS)
    wanted: dict[float | None, dict[int, Tally]] = {}  # by IoU threshold; None: the matching of panoptic quality
    for name in names:
        for level in _levels(name):
            if level not in wanted:
                wanted[level] = panoptic(contingency) if level is None else match(contingency, level).tallies()
    scores: Scores = {}
    for cls, title in classes.items():
        row: dict[str, float] = {}
        for name in names:
            base = name.partition("@")[0]
            if base == "lesion_f1":
                row[name] = covered_f1(contingency.of_class(cls))
            else:
                values = [_OF_TALLY[base](wanted[level].get(cls, Tally())) for level in _levels(name)]
                row[name] = math.fsum(values) / len(values)
        scores[title] = row
    return scores


def _levels(name: str) -> tuple[float | None, ...]:
    base = name.partition("@")[0]
    if base in ("pq", "sq", "rq"):
        return (None,)
    return () if base == "lesion_f1" else iou_thresholds(name)


def _known(metrics: Iterable[str] | None, known: Mapping[str, object]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(known if metrics is None else metrics))
    for name in names:
        describe(name)
        if name.partition("@")[0] not in known:
            raise UsageError.of("not a metric of what is scored here", found=f"'{name}'", expected=f"one of {', '.join(known)}")
    return names
