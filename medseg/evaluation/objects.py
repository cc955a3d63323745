"""Objects of a case, counted for scores of all cases together; and these scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import Labels
from medseg.evaluation.ranking import rank
from medseg.evaluation.records import Estimate, Matched, ObjectScores, SizeGroup, defined
from medseg.metrics import DETECTION_METRICS
from medseg.metrics.instances import (
    LEVELS,
    ClassCounts,
    Contingency,
    class_numbers,
    count_case,
    curve_of,
    pool,
    ranked_of,
)
from medseg.metrics.statistics import Interval

VOLUMES_ONLY = ("lesion_f1",)
"""Scores of objects by clinical usage, where a lesion is found once a tenth of it is covered; of crowded pictures of cells they flatter."""
POOLED = (
    "pq", "sq", "rq", "object_f1", "object_precision", "object_sensitivity", "object_accuracy", "object_accuracy@0.5:0.95",
    "ap", "ap@0.5", "ap@0.75", "box_ap", "box_ap@0.5",
)  # fmt: skip
"""Scores of all cases together."""
POOLED_3D = (*POOLED, *VOLUMES_ONLY, "froc")
CURVES = ("object_f1", "object_accuracy", "object_precision", "object_sensitivity")
SIZE_GROUPS = 6
FROC_POINTS = 200  # of a curve that is kept
ALL, THINGS, STUFF = "all", "things", "stuff"


@dataclass(frozen=True)
class Counted:
    """What one case adds to scores of all of them.

    Attributes:
        ranked: its predicted objects came with confidences.
        painted: these are of the objects in its label map only.
    """

    classes: Mapping[int, ClassCounts]
    ranked: bool
    painted: bool

    def matched(self, labels: Labels) -> dict[str, Matched]:
        """The objects of each class."""
        return {
            name: Matched(matched=tally.tp, missed=tally.fn, invented=tally.fp, iou=tally.iou)
            for cls, name in class_numbers(labels).items()
            for tally in (self.classes[cls].exact,)
        }


def count(contingency: Contingency, prediction: NDArray[Any], truth: NDArray[Any], labels: Labels, files: tuple[Path, Path]) -> Counted:
    """Count the objects of two maps of codes `(*shape)`, whose table is `contingency`.

    Args:
        files: the prediction, beside which lie its detections or the table of its objects, and the reference.

    Raises:
        ImageError: these cannot be read, or are of another prediction.
    """
    names = class_numbers(labels)
    things = [cls for cls, name in names.items() if name in labels.things]
    ranking, painted = rank(contingency, prediction, truth, labels, files) or (None, False)
    return Counted(count_case(contingency, tuple(names), things, ranking), ranking is not None, painted)


def pooled(cases: Sequence[Counted], labels: Labels, metrics: Sequence[str]) -> ObjectScores:
    """Scores of all cases together (at least one); `metrics` that cannot be computed are left out, and it is said why."""
    names = class_numbers(labels)
    things = tuple(cls for cls, name in names.items() if name in labels.things)
    stuff = tuple(cls for cls in names if cls not in things)
    unranked = sum(not case.ranked for case in cases)
    why = (
        f"{unranked} of {len(cases)} predictions come without confidences of their objects (neither detections/<case>.json nor a table "
        "objects/<case>.csv beside the label map, or no scores in it)"
    )
    left_out = {m: why for m in metrics if unranked and m.partition("@")[0] in DETECTION_METRICS}
    wanted = tuple(m for m in metrics if m not in left_out)
    ranks = any(m.partition("@")[0] in DETECTION_METRICS for m in wanted)
    counts = [case.classes for case in cases]
    groups = {ALL: tuple(names), **({THINGS: things, STUFF: stuff} if stuff else {})}
    found = pool(counts, things, wanted, groups)
    swept = tuple(f"{name}@{level:g}" for name in CURVES for level in LEVELS)
    curves = pool(counts, things, swept, {}, intervals=False).classes
    ranked = {name: curve for cls, name in names.items() if cls in things and (curve := ranked_of(counts, cls)) and curve.objects.any()}
    rates = {name: rate for cls, name in names.items() if cls in things and (rate := curve_of(counts, cls)) and rate.lesions}
    return ObjectScores(
        metrics=wanted,
        things=tuple(names[cls] for cls in things),
        classes={name: {m: _estimate(found.classes[cls][m]) for m in wanted} for cls, name in names.items()},
        means={group: {m: _estimate(row[m]) for m in wanted} for group, row in found.means.items()},
        counts={name: _added([case.matched(labels)[name] for case in cases]) for name in names.values()},
        thresholds=LEVELS,
        curves={
            names[cls]: {name: tuple(_rounded(curves[cls][f"{name}@{level:g}"].mean) for level in LEVELS) for name in CURVES}
            for cls in things
        },
        precision={name: tuple(round(float(p), 6) for p in curve.precision()[0]) for name, curve in ranked.items()},
        froc={name: _points(curve.false_positives, curve.sensitivity) for name, curve in rates.items()} if "froc" in wanted else {},
        sizes={names[cls]: groups_of_size(counts, cls) for cls in things},
        left_out=left_out,
        painted=sum(case.painted for case in cases) if ranks else 0,
    )


def groups_of_size(cases: Sequence[Mapping[int, ClassCounts]], cls: int) -> tuple[SizeGroup, ...]:
    """About equally many objects each; objects of one size are in one group."""
    sizes = np.concatenate([case[cls].sizes for case in cases])
    found = np.concatenate([case[cls].found for case in cases])
    if not len(sizes):
        return ()
    bounds = np.unique(np.percentile(sizes, np.linspace(0, 100, SIZE_GROUPS + 1)[1:-1], method="higher"))
    group = np.searchsorted(bounds, sizes, side="right")
    return tuple(
        SizeGroup(smallest=int(here.min()), largest=int(here.max()), objects=len(here), found=int(found[group == g].sum()))
        for g in np.unique(group)
        for here in (sizes[group == g],)
    )


def _added(parts: Sequence[Matched]) -> Matched:
    return Matched(
        matched=sum(p.matched for p in parts),
        missed=sum(p.missed for p in parts),
        invented=sum(p.invented for p in parts),
        iou=float(sum(p.iou for p in parts)),
    )


def _points(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A curve, thinned out evenly, with both ends."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), FROC_POINTS)).round().astype(int))
    return tuple(round(float(v), 6) for v in x[kept]), tuple(round(float(v), 6) for v in y[kept])


def _estimate(interval: Interval) -> Estimate:
    return Estimate(value=defined(interval.mean), low=defined(interval.low), high=defined(interval.high))


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)
