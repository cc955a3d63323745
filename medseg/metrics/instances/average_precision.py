"""COCO's average precision of scored objects (Lin et al. 2014, ECCV, arXiv:1405.0312), equal to `pycocotools.cocoeval` on the same input.

Within a case and class, detections take their partners in the order of their scores, each the free object of the largest IoU. Precision is
made monotonous and read at 101 sensitivities; average precision is its mean. `pycocotools` answers -1 where nothing is defined, this NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medseg.metrics.contingency import Flags, Floats, Integers
from medseg.metrics.instances.detections import Detections

THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""IoU 0.5, 0.55, ... 0.95."""

_SENSITIVITIES = np.linspace(0.0, 1.0, 101)
_ALMOST = 1 - 1e-10  # a detection of IoU 1 reaches a threshold of 1 in spite of rounding
_EPSILON = float(np.spacing(1))


@dataclass(frozen=True)
class Outcome:
    """Detections of one case and class, surest first: `(d,)` scores, `(T, d)` whether each finds an object and whether it is neutral; and how many
    objects there are."""

    scores: Floats
    found: Flags
    neutral: Flags
    objects: int


@dataclass(frozen=True)
class Ranked:
    """The detections of one class over the cases of a dataset, surest first.

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
    def of(cls, outcomes: Sequence[Outcome]) -> Ranked:
        """From the outcomes of every case (at least one); between equal scores the order of cases and of detections decides."""
        order = np.argsort(-np.concatenate([o.scores for o in outcomes]), kind="stable")
        found, neutral = (np.concatenate(part, axis=1)[:, order] for part in ([o.found for o in outcomes], [o.neutral for o in outcomes]))
        case = np.repeat(np.arange(len(outcomes)), [len(o.scores) for o in outcomes])[order]
        return cls(case, found & ~neutral, ~found & ~neutral, np.array([o.objects for o in outcomes], np.int64))

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

    def _summed(self, weights: Floats | None) -> tuple[Floats, Floats, float]:
        if weights is None:
            weights = np.ones(len(self.objects))
        each = weights[self.case]
        return np.cumsum(self.right * each, axis=1), np.cumsum(self.wrong * each, axis=1), float(weights @ self.objects)


def outcome(case: Detections, cls: int, levels: Floats) -> Outcome:
    """What becomes of the detections of a class at IoU `levels` `(T,)`; work and memory follow the pairs that overlap."""
    mine, theirs = np.flatnonzero(case.classes == cls), np.flatnonzero(case.truth_classes == cls)
    mine = mine[np.argsort(-case.scores[mine], kind="stable")]
    crowd, least = case.crowd[theirs], np.minimum(levels, _ALMOST)
    found, neutral = np.zeros((2, len(levels), len(mine)), bool)
    free = np.ones((len(levels), len(theirs)), bool)
    near = np.flatnonzero((case.classes[case.rows] == cls) & (case.iou >= least.min()))
    rank, place = np.zeros(len(case.scores), np.int64), np.zeros(len(case.truth_classes), np.int64)
    rank[mine], place[theirs] = np.arange(len(mine)), np.arange(len(theirs))
    rows, columns = rank[case.rows[near]], place[case.columns[near]]
    order = np.lexsort((columns, rows))
    rows, columns, iou = rows[order], columns[order], case.iou[near][order]
    bounds = np.append(np.flatnonzero(np.diff(rows, prepend=-1)), len(rows))
    for start, stop in pairwise(bounds.tolist()):
        d, some, value = rows[start], columns[start:stop], iou[start:stop]
        usable = (free[:, some] | crowd[some]) & (value >= least[:, None])
        regular = usable & ~crowd[some]
        any_regular: Flags = np.logical_or.reduce(regular, axis=-1)
        candidates = np.where(any_regular[:, None], regular, usable)
        hit: Flags = np.logical_or.reduce(candidates, axis=-1)
        found[:, d] = hit
        neutral[:, d] = hit & ~any_regular
        free[hit, some[_last_best(np.where(candidates, value, -1.0))[hit]]] = False
    return Outcome(case.scores[mine], found, neutral, int(np.count_nonzero(~crowd)))


def _last_best(values: Floats) -> NDArray[np.intp]:
    """Index of the largest value along the last axis, the last one of equal ones, as `pycocotools` takes it."""
    best: NDArray[np.intp] = values.shape[-1] - 1 - values[..., ::-1].argmax(-1)
    return best
