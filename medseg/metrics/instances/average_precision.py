"""COCO's average precision of scored objects (Lin et al. 2014, ECCV, arXiv:1405.0312), equal to `pycocotools.cocoeval` on the same input.

Within a case and class, detections take their partners in the order of their scores, each the free object of the largest IoU. Precision is
made monotonous and read at 101 sensitivities; average precision is its mean. `pycocotools` answers -1 where nothing is defined, this NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medseg.metrics.contingency import Flags, Floats, Integers
from medseg.metrics.instances.detections import Detections

THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""IoU 0.5, 0.55, ... 0.95."""

ALL = "all"
EVERY_SIZE: Mapping[str, tuple[float, float]] = {ALL: (0.0, 1e10)}
COCO_SIZES: Mapping[str, tuple[float, float]] = {
    ALL: (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""COCO's ranges of areas in pixels, both ends included."""

_SENSITIVITIES = np.linspace(0.0, 1.0, 101)
_ALMOST = 1 - 1e-10  # a detection of IoU 1 reaches a threshold of 1 in spite of rounding
_EPSILON = float(np.spacing(1))


@dataclass(frozen=True)
class AveragePrecision:
    """Precision by IoU threshold, sensitivity, class and range of sizes, of a dataset; NaN for a class without objects of that size.

    Attributes:
        thresholds: (T,) IoU.
        classes: (K,) in ascending order.
        sizes: (A,) names of the ranges.
        precision: `(T, 101, K, A)` at sensitivities 0, 0.01, ... 1.
        sensitivity: `(T, K, A)` with all detections that count.
    """

    thresholds: tuple[float, ...]
    classes: tuple[int, ...]
    sizes: tuple[str, ...]
    precision: Floats = field(repr=False)
    sensitivity: Floats = field(repr=False)

    def ap(self, threshold: float | None = None, cls: int | None = None, size: str = ALL) -> float:
        """Average precision at one threshold, or its mean over all; of one class, or the mean over those that are defined.

        Raises:
            ValueError: the threshold, class or range was not asked for.
        """
        return _mean(self.precision[self._at(threshold)][:, :, self._class(cls), self.sizes.index(size)])

    def ar(self, threshold: float | None = None, cls: int | None = None, size: str = ALL) -> float:
        """Average recall: the share of objects that are found at all. See `ap`."""
        return _mean(self.sensitivity[self._at(threshold)][:, self._class(cls), self.sizes.index(size)])

    def _at(self, threshold: float | None) -> list[int]:
        found = [i for i, t in enumerate(self.thresholds) if threshold is None or math.isclose(t, threshold)]
        if not found:
            raise ValueError(f"no IoU threshold {threshold} among {self.thresholds}")
        return found

    def _class(self, cls: int | None) -> slice:
        if cls is None:
            return slice(None)
        at = self.classes.index(cls)
        return slice(at, at + 1)


def average_precision(
    cases: Sequence[Detections],
    *,
    classes: Sequence[int] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    sizes: Mapping[str, tuple[float, float]] = EVERY_SIZE,
    limit: int | None = 100,
) -> AveragePrecision:
    """Average precision over the cases of a dataset; between equal scores the order of cases and of detections decides.

    Args:
        cases: detections of each case. Cases that have none must be here, too, for what they miss.
        classes: which to score; None: those that occur in the truth.
        thresholds: IoU thresholds.
        sizes: name -> smallest and largest size (of `Detections.truth_sizes`). Objects of other sizes, and what finds them, do not count.
        limit: detections of a case and class that count, the surest ones: 100 in COCO. Cases with more objects need more; None is no limit.
    """
    levels = np.asarray(thresholds, np.float64)
    ranges = np.array(list(sizes.values()), np.float64).reshape(-1, 2)
    if classes is None:
        classes = np.unique(np.concatenate([np.zeros(0, np.int64), *(c.truth_classes[~c.crowd] for c in cases)])).tolist()
    precision = np.full((len(levels), len(_SENSITIVITIES), len(classes), len(ranges)), np.nan)
    sensitivity = np.full((len(levels), len(classes), len(ranges)), np.nan)
    for k, cls in enumerate(classes):
        outcomes = [outcome(case, cls, levels, ranges, limit) for case in cases]
        for a in range(len(ranges) if outcomes else 0):
            ranked = Ranked.of(outcomes, a)
            precision[:, :, k, a], sensitivity[:, k, a] = ranked.precision(), ranked.sensitivity()
    return AveragePrecision(tuple(levels.tolist()), tuple(classes), tuple(sizes), precision, sensitivity)


@dataclass(frozen=True)
class Outcome:
    """Detections of one case and class, surest first: `(d,)` scores, `(T, A, d)` whether found and whether neutral; `(A,)` objects."""

    scores: Floats
    found: Flags
    neutral: Flags
    objects: Integers


@dataclass(frozen=True)
class Ranked:
    """The detections of one class and range of sizes over the cases of a dataset, surest first.

    Attributes:
        case: `(n,)` the case of each.
        right, wrong: `(T, n)` whether each is; neutral ones are neither.
        objects: `(cases,)` objects of each case.
    """

    case: Integers
    right: Flags
    wrong: Flags
    objects: Integers

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], size: int = 0) -> Ranked:
        """From the outcomes of every case (at least one); `size` is the index of a range."""
        order = np.argsort(-np.concatenate([o.scores for o in outcomes]), kind="stable")
        found, neutral = (
            np.concatenate(part, axis=1)[:, order]
            for part in ([o.found[:, size] for o in outcomes], [o.neutral[:, size] for o in outcomes])
        )
        case = np.repeat(np.arange(len(outcomes)), [len(o.scores) for o in outcomes])[order]
        return cls(case, found & ~neutral, ~found & ~neutral, np.array([o.objects[size] for o in outcomes], np.int64))

    def precision(self, weights: Floats | None = None) -> Floats:
        """`(T, 101)` monotonous precision at sensitivities 0, 0.01, ... 1, 0 at those that are not reached; NaN without objects.

        `weights`: how often each case counts.
        """
        tp, fp, objects = self._summed(weights)
        if not objects:
            return np.full((len(tp), len(_SENSITIVITIES)), np.nan)
        envelope = np.maximum.accumulate((tp / (fp + tp + _EPSILON))[:, ::-1], axis=1)[:, ::-1]
        values = np.zeros((len(tp), len(_SENSITIVITIES)))
        for t, share in enumerate(tp / objects):
            at = np.searchsorted(share, _SENSITIVITIES, side="left")
            reached = at < len(share)
            values[t, reached] = envelope[t, at[reached]]
        return values

    def sensitivity(self) -> Floats:
        """`(T,)` share of the objects that any detection finds; NaN without objects."""
        tp, _, objects = self._summed(None)
        if not objects:
            return np.full(len(tp), np.nan)
        return tp[:, -1] / objects if tp.shape[1] else np.zeros(len(tp))

    def _summed(self, weights: Floats | None) -> tuple[Floats, Floats, float]:
        if weights is None:
            weights = np.ones(len(self.objects))
        each = weights[self.case]
        return np.cumsum(self.right * each, axis=1), np.cumsum(self.wrong * each, axis=1), float(weights @ self.objects)


def outcome(case: Detections, cls: int, levels: Floats, ranges: Floats, limit: int | None) -> Outcome:
    """What becomes of the detections of a class at IoU `levels` `(T,)` and for `ranges` `(A, 2)` of sizes; see `average_precision`."""
    mine, theirs = np.flatnonzero(case.classes == cls), np.flatnonzero(case.truth_classes == cls)
    mine = mine[np.argsort(-case.scores[mine], kind="stable")][:limit]
    iou, crowd = case.iou[np.ix_(mine, theirs)], case.crowd[theirs]
    sizes = case.truth_sizes[theirs]
    neutral_truth = crowd | (sizes < ranges[:, :1]) | (sizes > ranges[:, 1:])  # (A, g)
    shape = (len(levels), len(ranges))
    found = np.zeros((*shape, len(mine)), bool)
    neutral = np.zeros((*shape, len(mine)), bool)
    free = np.ones((*shape, len(theirs)), bool)
    least = np.minimum(levels, _ALMOST)
    for d in range(len(mine)):
        near = np.flatnonzero(iou[d] >= least.min())
        if not len(near):
            continue
        value = iou[d, near]
        usable = (free[..., near] | crowd[near]) & (value >= least[:, None, None])
        regular = usable & ~neutral_truth[:, near]
        any_regular = regular.any(-1)
        candidates = np.where(any_regular[..., None], regular, usable)
        best = _last_best(np.where(candidates, value, -1.0))
        hit = candidates.any(-1)
        partner = near[best]
        found[..., d] = hit
        neutral[..., d] = hit & ~any_regular
        t, a = np.nonzero(hit)
        free[t, a, partner[hit]] = False
    outside = (case.sizes[mine] < ranges[:, :1]) | (case.sizes[mine] > ranges[:, 1:])  # (A, d)
    neutral |= ~found & outside
    return Outcome(case.scores[mine], found, neutral, (~neutral_truth).sum(1))


def _last_best(values: Floats) -> NDArray[np.intp]:
    """Index of the largest value along the last axis, the last one of equal ones, as `pycocotools` takes it."""
    best: NDArray[np.intp] = values.shape[-1] - 1 - values[..., ::-1].argmax(-1)
    return best


def _mean(values: Floats) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
