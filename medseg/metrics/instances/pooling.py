"""Scores of all cases of a dataset together, with bootstrap intervals over cases.

Objects are added up over cases before ratios are taken, as panopticapi, StarDist (`matching_dataset`) and pycocotools do it, so a case weighs
as much as it has objects. What a case adds to them (`ClassCounts`) is small, whatever its size: it can be counted in another process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from medseg.metrics.contingency import Contingency, Flags, Floats, Integers
from medseg.metrics.descriptions import DETECTION_METRICS, iou_thresholds
from medseg.metrics.instances.average_precision import THRESHOLDS, Outcome, Ranked, outcome
from medseg.metrics.instances.detections import Detections
from medseg.metrics.instances.froc import Findings, Froc, findings
from medseg.metrics.instances.matching import Tally, match
from medseg.metrics.lesions import Covered, covered
from medseg.metrics.statistics import RESAMPLES, Interval, resamples

LEVELS = tuple(round(t, 2) for t in THRESHOLDS)
"""IoU at which objects are matched one to one."""
KINDS = {"ap": "masks", "box_ap": "boxes"}
QUALITY = ("pq", "sq", "rq")
"""Scores that things and stuff have alike; all others are scores of things."""
EFFORT = 1e8  # detections times thresholds that are summed up for the intervals of average precision, about
OVERHEAD = 5000  # the same for each class, however few its detections are
FEWEST, MOST = 100, 1000  # resamples of scores that are costly
T = TypeVar("T")


@dataclass(frozen=True)
class Ranking:
    """The scored objects of one case, compared as masks and as boxes."""

    masks: Detections
    boxes: Detections


@dataclass(frozen=True)
class ClassCounts:
    """What one case adds to the scores of one class.

    Attributes:
        exact: counts of panoptic quality.
        matched: counts at each of `LEVELS`.
        lesions: counts of lesion-wise F1.
        sizes, found: `(g,)` voxels of the true objects, and whether they have a partner at the first of `LEVELS`; crowds left out.
        masks, boxes: of ranked detections; None without confidences, or for stuff.
        findings: see `medseg.metrics.instances.froc.findings`.
    """

    exact: Tally
    matched: tuple[Tally, ...]
    lesions: Covered
    sizes: Integers = field(repr=False)
    found: Flags = field(repr=False)
    masks: Outcome | None = field(default=None, repr=False)
    boxes: Outcome | None = field(default=None, repr=False)
    findings: tuple[Floats, Floats, int] | None = field(default=None, repr=False)


CaseCounts = Mapping[int, ClassCounts]
"""Class -> counts of one case, of every class that is scored."""


def count_case(
    contingency: Contingency, classes: Collection[int], things: Collection[int], ranking: Ranking | None = None
) -> dict[int, ClassCounts]:
    """Count the objects of one case.

    Args:
        contingency: the objects.
        classes: which to count.
        things: those of them that have objects; the others are stuff.
        ranking: None where nobody knows how sure the predicted objects are.
    """
    exact = match(contingency, LEVELS[0], strict=True).tallies()
    found = [match(contingency, level) for level in LEVELS]
    tallies = [matches.tallies() for matches in found]
    partnered = np.zeros(len(contingency.truth), bool)
    partnered[found[0].truth] = True
    counts = {}
    levels = np.array(LEVELS)
    for cls in classes:
        real = (contingency.truth.classes == cls) & ~contingency.truth.crowd
        seen = ranking if cls in things else None
        counts[cls] = ClassCounts(
            exact=exact.get(cls, Tally()),
            matched=tuple(tally.get(cls, Tally()) for tally in tallies),
            lesions=covered(contingency.of_class(cls)),
            sizes=contingency.truth.sizes[real],
            found=partnered[real],
            masks=outcome(seen.masks, cls, levels) if seen else None,
            boxes=outcome(seen.boxes, cls, levels) if seen else None,
            findings=findings(seen.masks, cls) if seen else None,
        )
    return counts


@dataclass(frozen=True)
class Pooled:
    """Scores of a dataset; NaN where undefined (`medseg.metrics.instances`), also the bounds of an interval of fewer than two cases with objects.

    Attributes:
        classes: class -> metric -> score with its 95 % interval.
        means: the same of groups of classes: the mean over those that are defined.
    """

    classes: Mapping[int, Mapping[str, Interval]]
    means: Mapping[str, Mapping[str, Interval]]


def pool(
    cases: Sequence[CaseCounts],
    things: Collection[int],
    metrics: Sequence[str],
    groups: Mapping[str, Collection[int]],
    intervals: bool = True,
) -> Pooled:
    """Scores of all cases together.

    Args:
        cases: counts of at least one case, all of the same classes.
        things: classes that have objects.
        metrics: names of `INSTANCE_METRICS` and `DETECTION_METRICS`; the latter need confidences in every case.
        groups: name -> classes to take the mean of.
        intervals: False leaves them out, which saves time.
    """
    classes = tuple(cases[0])
    names = {cls: i for i, cls in enumerate(classes)}
    some = np.array([[bool(case[cls].exact.objects or case[cls].lesions.lesions) for cls in classes] for case in cases])
    enough = some.sum(0) >= 2
    stuff = np.array([cls not in things for cls in classes])
    found: dict[int, dict[str, Interval]] = {cls: {} for cls in classes}
    means: dict[str, dict[str, Interval]] = {name: {} for name in groups}
    precisions: dict[str, tuple[Floats, Floats]] = {}
    for metric in metrics:
        base = metric.partition("@")[0]
        if base in KINDS:
            if base not in precisions:
                precisions[base] = _drawn(_precision(KINDS[base], cases, classes), cases, _count(cases), intervals)
            point, drawn = (values[..., _at(metric)].mean(-1) for values in precisions[base])
        else:
            point, drawn = _drawn(_computation(metric, cases, classes), cases, _count(cases) if base == "froc" else RESAMPLES, intervals)
        point = point[0]
        if metric not in QUALITY:
            point[stuff], drawn[:, stuff] = np.nan, np.nan
        for cls, i in names.items():
            found[cls][metric] = _interval(float(point[i]), drawn[:, i] if enough[i] else drawn[:0, i])
        for name, members in groups.items():
            at = [names[cls] for cls in members]
            sure = some[:, at].any(1).sum() >= 2
            means[name][metric] = _interval(float(_mean(point[None, at])[0]), _mean(drawn[:, at]) if sure else drawn[:0, 0])
    return Pooled(found, means)


def curve_of(cases: Sequence[CaseCounts], cls: int) -> Froc | None:
    """The FROC curve of a class; None without confidences."""
    parts = [part for case in cases if (part := case[cls].findings) is not None]
    return Findings.of(parts).curve() if len(parts) == len(cases) else None


def ranked_of(cases: Sequence[CaseCounts], cls: int) -> Ranked | None:
    """The detections of a class as masks at `LEVELS`, surest first; None without confidences."""
    parts = [part for case in cases if (part := case[cls].masks) is not None]
    return Ranked.of(parts) if len(parts) == len(cases) else None


Computation = Callable[[Floats], Floats]
"""Weights of cases `(r, cases)` to scores `(r, classes)`."""


def _computation(metric: str, cases: Sequence[CaseCounts], classes: Sequence[int]) -> Computation:
    base = metric.partition("@")[0]
    if base == "lesion_f1":
        counts = _table(cases, classes, lambda c: (c.lesions.found, c.lesions.lesions, c.lesions.real, c.lesions.claimed))
        return lambda weights: _lesion_f1(_summed(weights, counts))
    if base in QUALITY:
        exact = _table(cases, classes, lambda c: _numbers(c.exact))
        return lambda weights: RATIOS[base](_summed(weights, exact))
    if base not in DETECTION_METRICS:
        tables = [_table(cases, classes, lambda c, i=i: _numbers(c.matched[i])) for i in _at(metric)]  # type: ignore[misc]
        return lambda weights: np.mean([RATIOS[base](_summed(weights, table)) for table in tables], axis=0)
    assert base == "froc", metric
    parts = [Findings.of([_known(case[cls].findings) for case in cases]) if cases[0][cls].findings else None for cls in classes]
    return lambda weights: np.array([[math.nan if part is None else part.curve(row).mean for part in parts] for row in weights])


def _precision(kind: str, cases: Sequence[CaseCounts], classes: Sequence[int]) -> Computation:
    """Weights of cases to average precision `(r, classes, len(LEVELS))`; NaN without confidences."""
    ranked = [Ranked.of([_known(getattr(case[cls], kind)) for case in cases]) if getattr(cases[0][cls], kind) else None for cls in classes]
    none = np.full(len(LEVELS), np.nan)
    return lambda weights: np.array([[none if r is None else r.precision(row).mean(-1) for r in ranked] for row in weights])


def _drawn(compute: Computation, cases: Sequence[CaseCounts], count: int, intervals: bool) -> tuple[Floats, Floats]:
    """Scores `(1, classes, ...)` of the cases, and `(count, classes, ...)` of as many bootstrap samples; none of a single case."""
    point = compute(np.ones((1, len(cases))))
    if not intervals or len(cases) < 2:
        return point, np.full_like(point, np.nan)
    return point, np.concatenate([compute(weights) for weights in resamples(len(cases), count)])


def _at(metric: str) -> list[int]:
    """Places in `LEVELS`. Raises ValueError where objects were not matched at such an IoU."""
    return [LEVELS.index(round(level, 6)) for level in iou_thresholds(metric)]


def poolable(metric: str) -> bool:
    """Whether a known metric of objects can be taken over a dataset: its IoU is among `LEVELS`."""
    return metric.partition("@")[0] in (*QUALITY, "lesion_f1", "froc") or all(round(t, 6) in LEVELS for t in iou_thresholds(metric))


def _count(cases: Sequence[CaseCounts]) -> int:
    """Bootstrap samples of scores that take long."""
    ranked = [len(c.masks.scores) for case in cases for c in case.values() if c.masks is not None]
    return int(min(MOST, max(FEWEST, EFFORT // (sum(ranked) * len(LEVELS) + OVERHEAD * len(cases[0])))))


def _numbers(tally: Tally) -> tuple[float, ...]:
    return tally.tp, tally.fp, tally.fn, tally.iou


def _table(cases: Sequence[CaseCounts], classes: Sequence[int], numbers: Callable[[ClassCounts], tuple[float, ...]]) -> Floats:
    """`(cases, classes, 4)`."""
    return np.array([[numbers(case[cls]) for cls in classes] for case in cases], np.float64)


def _summed(weights: Floats, table: Floats) -> Floats:
    """`(4, r, classes)`."""
    summed: Floats = np.moveaxis((weights @ table.reshape(len(table), -1)).reshape(len(weights), *table.shape[1:]), -1, 0)
    return summed


def _ratio(a: Floats, b: Floats) -> Floats:
    ratio: Floats = np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)
    return ratio


def _sq(c: Floats) -> Floats:
    mean: Floats = np.where((c[0] == 0) & (c[1] + c[2] > 0), 0.0, _ratio(c[3], c[0]))
    return mean


RATIOS: dict[str, Callable[[Floats], Floats]] = {
    "pq": lambda c: _ratio(c[3], c[0] + 0.5 * c[1] + 0.5 * c[2]),
    "sq": _sq,
    "rq": lambda c: _ratio(c[0], c[0] + 0.5 * c[1] + 0.5 * c[2]),
    "object_accuracy": lambda c: _ratio(c[0], c[0] + c[1] + c[2]),
    "object_f1": lambda c: _ratio(c[0], c[0] + 0.5 * c[1] + 0.5 * c[2]),
    "object_sensitivity": lambda c: _ratio(c[0], c[0] + c[2]),
    "object_precision": lambda c: _ratio(c[0], c[0] + c[1]),
}
"""Scores of summed counts `(4, ...)`: TP, FP, FN, sum of IoU; the same as `Tally`'s, of many at once."""


def _lesion_f1(c: Floats) -> Floats:
    a, b = _ratio(c[0], c[1]), _ratio(c[2], c[3])
    both = (c[0] > 0) & (c[2] > 0)
    product, total = np.where(both, 2 * a * b, 0.0), np.where(both, a + b, 1.0)
    f1: Floats = np.where((c[1] == 0) & (c[3] == 0), np.nan, product / total)
    return f1


def _mean(values: Floats) -> Floats:
    """Mean over the last axis of what is defined, NaN where nothing is."""
    some = ~np.isnan(values)
    return _ratio(np.where(some, values, 0.0).sum(-1), some.sum(-1).astype(np.float64))


def _interval(value: float, drawn: Floats) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    if math.isnan(value) or not drawn.size:
        return Interval(value, math.nan, math.nan)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, min(float(low), value), max(float(high), value))


def _known(value: T | None) -> T:
    assert value is not None
    return value
