"""Which predicted object is which object of the truth, and the counts that follow.

Sources: optimal assignment under an IoU threshold as in StarDist (Schmidt et al. 2018, MICCAI, arXiv:1806.03535) and in Caicedo et al. 2019
(Nature Methods 16:1247-1253); panoptic quality, its unique matching, void and crowds as in Kirillov et al. 2019 (CVPR, arXiv:1801.00868).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from medseg.metrics.contingency import Contingency, Flags, Floats, Integers


@dataclass(frozen=True)
class Tally:
    """Matched and unmatched objects of one class, of one case or (added up) of a dataset.

    Scores are NaN where undefined, by the rule of `medseg.metrics`: with no object on either side all are; `precision` without a predicted
    one and `sensitivity` without a true one are. Misses and false alarms alone score 0.

    Attributes:
        tp: pairs that match.
        fp: predicted objects without a partner.
        fn: objects of the truth without a partner.
        iou: sum of the IoU of all pairs.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou + other.iou)

    @property
    def objects(self) -> int:
        """How many there are: pairs once, and what has no partner."""
        return self.tp + self.fp + self.fn

    @property
    def accuracy(self) -> float:
        """TP / (TP + FP + FN), which StarDist and the Data Science Bowl 2018 report (Caicedo 2019), also called average precision there."""
        return _ratio(self.tp, self.objects)

    @property
    def precision(self) -> float:
        """Share of the predicted objects that are real."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def sensitivity(self) -> float:
        """Share of the true objects that were found (recall)."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); with the matching of panoptic quality, this is its recognition quality RQ."""
        return _ratio(self.tp, self.tp + 0.5 * self.fp + 0.5 * self.fn)

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the pairs; 0 where there are objects and none matches."""
        return _ratio(self.iou, self.tp) if self.tp or not self.objects else 0.0

    @property
    def pq(self) -> float:
        """Panoptic quality: SQ * RQ (Kirillov 2019, equation 1)."""
        return _ratio(self.iou, self.tp + 0.5 * self.fp + 0.5 * self.fn)


@dataclass(frozen=True)
class Matches:
    """The pairs of one case, as indices into the objects of its contingency.

    Attributes:
        contingency: what was matched.
        truth, prediction: `(k,)` the objects of each pair.
        iou: `(k,)` of each pair.
        missed: objects of the truth without a partner, crowds left out.
        invented: predicted objects without a partner, the excused ones left out.
    """

    contingency: Contingency
    truth: Integers
    prediction: Integers
    iou: Floats
    missed: Integers
    invented: Integers

    def tallies(self) -> dict[int, Tally]:
        """Class -> counts, of every class with an object on either side, also one that only crowds or excused objects have."""
        of_truth, of_prediction = self.contingency.truth.classes, self.contingency.prediction.classes
        classes, at = np.unique(np.concatenate([of_truth, of_prediction]), return_inverse=True)
        row, column, n = at[: len(of_truth)], at[len(of_truth) :], len(classes)
        tp = np.bincount(row[self.truth], minlength=n)
        fn = np.bincount(row[self.missed], minlength=n)
        fp = np.bincount(column[self.invented], minlength=n)
        iou = np.bincount(row[self.truth], weights=self.iou, minlength=n)
        return {int(c): Tally(int(tp[i]), int(fp[i]), int(fn[i]), float(iou[i])) for i, c in enumerate(classes)}


def match(contingency: Contingency, threshold: float = 0.5, strict: bool = False) -> Matches:
    """Pair objects of the same class: as many pairs as possible, and of equally many those whose IoU adds up to the most.

    Only pairs of at least the threshold count at all. Beyond 0.5 no object can have two partners, so nothing has to be optimised.

    Args:
        contingency: the objects of one case.
        threshold: IoU that a pair must reach, above 0 and at most 1.
        strict: the IoU must be larger than the threshold, as panoptic quality asks (`threshold` 0.5).

    Raises:
        ValueError: an impossible threshold.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"no IoU threshold: {threshold}")
    iou = contingency.iou
    near = iou > threshold if strict else iou >= threshold
    pairs = np.flatnonzero(near & contingency.akin & ~contingency.truth.crowd[contingency.rows])
    pairs = pairs[_assigned(contingency.rows[pairs], contingency.columns[pairs], iou[pairs])]
    rows, columns = contingency.rows[pairs], contingency.columns[pairs]
    alone, spare = ~contingency.truth.crowd, ~contingency.excused
    alone[rows] = spare[columns] = False
    return Matches(contingency, rows, columns, iou[pairs], np.flatnonzero(alone), np.flatnonzero(spare))


def panoptic(contingency: Contingency) -> dict[int, Tally]:
    """Class -> counts of panoptic quality, things and stuff alike: a segment of stuff is an object whose class has no other.

    Equal to COCO's `panopticapi`, but that predictions are excused by all crowds of their class together, not by the last one only.
    """
    return match(contingency, 0.5, strict=True).tallies()


def add_up(cases: Iterable[Mapping[int, Tally]]) -> dict[int, Tally]:
    """The counts of a dataset: class -> sum over cases. Scores of these weigh all objects alike, means over cases all cases."""
    totals: dict[int, Tally] = {}
    for case in cases:
        for cls, tally in case.items():
            totals[cls] = totals.get(cls, Tally()) + tally
    return totals


@dataclass(frozen=True)
class Quality:
    """Panoptic quality as a mean over classes; NaN without a class.

    Attributes:
        pq, sq, rq: panoptic, segmentation and recognition quality.
        classes: how many have an object on either side; others do not count.
    """

    pq: float
    sq: float
    rq: float
    classes: int


def mean_quality(tallies: Mapping[int, Tally], classes: Collection[int] | None = None) -> Quality:
    """The mean over classes: all, or some (only things, only stuff); `tallies` are those of a dataset (`add_up`)."""
    some = [t for cls, t in tallies.items() if t.objects and (classes is None or cls in classes)]
    if not some:
        return Quality(math.nan, math.nan, math.nan, 0)
    pq, sq, rq = (math.fsum(values) / len(some) for values in zip(*((t.pq, t.sq, t.f1) for t in some), strict=True))
    return Quality(pq, sq, rq, len(some))


def _assigned(rows: Integers, columns: Integers, iou: Floats) -> Integers:
    """Indices of the pairs to take, ascending: the most, then the best, with no row and no column twice."""
    if not len(rows):
        return np.zeros(0, np.int64)
    taken = (np.bincount(rows)[rows] == 1) & (np.bincount(columns)[columns] == 1)
    disputed = np.flatnonzero(~taken)
    for group in _groups(rows[disputed], columns[disputed]):
        _assign(taken, disputed[group], rows, columns, iou)
    return np.flatnonzero(taken)


def _groups(rows: Integers, columns: Integers) -> list[Integers]:
    """Pairs that have to do with each other, as indices: each group is assigned for itself, so that no large table is made."""
    if not len(rows):
        return []
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    height, size = int(rows.max()) + 1, int(rows.max() + columns.max()) + 2
    graph = coo_matrix((np.ones(len(rows)), (rows, columns + height)), shape=(size, size))
    group = connected_components(graph, directed=False)[1][rows]
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _assign(taken: Flags, pairs: Integers, rows: Integers, columns: Integers, iou: Floats) -> None:
    from scipy.optimize import linear_sum_assignment

    row_ids, row = np.unique(rows[pairs], return_inverse=True)
    column_ids, column = np.unique(columns[pairs], return_inverse=True)
    pair = np.full((len(row_ids), len(column_ids)), -1)
    pair[row, column] = pairs
    worth = np.zeros(pair.shape)
    worth[row, column] = 1 + iou[pairs] / (2 * min(pair.shape))  # all IoU together are worth less than one more pair
    chosen = pair[linear_sum_assignment(worth, maximize=True)]
    taken[chosen[chosen >= 0]] = True


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan
