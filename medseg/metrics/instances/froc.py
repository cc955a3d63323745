"""Free-response receiver operating characteristic: sensitivity by false positives per case (Bunch et al. 1978; Setio et al. 2017, Med. Image
Anal. 42:1-13, with the operating points of LUNA16)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseg.metrics.contingency import Floats, Integers
from medseg.metrics.instances.detections import Detections

RATES: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""False positives per case."""

HIT = 0.1
"""IoU at which a detection finds a lesion, as in nnDetection (Baumgartner et al. 2021, MICCAI, arXiv:2106.00817): where lesions are small,
what matters is that they are found."""


@dataclass(frozen=True)
class Froc:
    """The curve of a dataset, from the surest detection on; empty arrays where nothing is detected.

    Attributes:
        cases: how many.
        lesions: objects of the truth; without one every sensitivity is NaN.
        scores: `(n,)` thresholds, falling.
        false_positives: `(n,)` per case, among detections of at least that score.
        sensitivity: `(n,)` share of lesions that one of them finds.
    """

    cases: int
    lesions: int
    scores: Floats
    false_positives: Floats
    sensitivity: Floats

    def at(self, rate: float) -> float:
        """Sensitivity at so many false positives per case: linear between the points of the curve, constant beyond the last one."""
        return float(self._at(rate)) if self.lesions else math.nan

    @property
    def mean(self) -> float:
        """Mean sensitivity at `RATES`, LUNA16's score (competition performance metric)."""
        return math.fsum(self._at(RATES)) / len(RATES) if self.lesions else math.nan

    def _at(self, rates: float | tuple[float, ...]) -> Floats:
        found: Floats = np.interp(rates, np.append(0.0, self.false_positives), np.append(0.0, self.sensitivity))
        return found


def findings(case: Detections, cls: int) -> tuple[Floats, Floats, int]:
    """Of one case and class the scores of what is false, those of the surest detection of each lesion that is found, and the number of lesions.

    A detection that reaches an IoU of `HIT` with a lesion finds it. Of several that find the same lesion the surest counts and none is false.
    What finds nothing and lies by more than half within a crowd, or where the truth is ignored, is not false, either.
    """
    mine, lesion = case.classes == cls, ~case.crowd & (case.truth_classes == cls)
    crowded = case.crowd[case.columns]
    finds = ~crowded & (case.iou >= HIT) & mine[case.rows]
    rows, columns = case.rows[finds], case.columns[finds]
    wrong = mine.copy()
    wrong[rows] = wrong[case.rows[crowded & (case.iou > 0.5)]] = False
    surest = np.full(len(lesion), -np.inf)
    np.maximum.at(surest, columns, case.scores[rows])
    return case.scores[wrong], surest[np.isfinite(surest)], int(np.count_nonzero(lesion))


@dataclass(frozen=True)
class Findings:
    """Of a dataset: rising scores of what is false and of what is right, and the case of each; `(cases,)` lesions."""

    wrong: Floats
    wrong_case: Integers
    right: Floats
    right_case: Integers
    lesions: Integers

    @classmethod
    def of(cls, cases: Sequence[tuple[Floats, Floats, int]]) -> Findings:
        """From the `findings` of every case, at least one."""
        wrong, right = _sorted([case[0] for case in cases]), _sorted([case[1] for case in cases])
        return cls(*wrong, *right, np.array([case[2] for case in cases], np.int64))

    def curve(self, weights: Floats | None = None) -> Froc:
        """The curve; `weights`: how often each case counts."""
        if weights is None:
            weights = np.ones(len(self.lesions))
        cases, lesions = float(weights.sum()), float(weights @ self.lesions)
        scores = np.unique(np.concatenate([self.wrong, self.right]))[::-1]
        false, found = (
            _from(values, weights[case], scores) for values, case in ((self.wrong, self.wrong_case), (self.right, self.right_case))
        )
        share = found / lesions if lesions else np.full(len(scores), np.nan)
        return Froc(round(cases), round(lesions), scores, false / cases, share)


def _from(values: Floats, weights: Floats, thresholds: Floats) -> Floats:
    """Sum of the weights of the rising `values` that are at least each threshold."""
    total = np.append(0.0, np.cumsum(weights))
    summed: Floats = total[-1] - total[np.searchsorted(values, thresholds)]
    return summed


def _sorted(parts: Sequence[Floats]) -> tuple[Floats, Integers]:
    """All values, rising, and the case of each."""
    values = np.concatenate(parts)
    order = np.argsort(values, kind="stable")
    return values[order], np.repeat(np.arange(len(parts)), [len(part) for part in parts])[order]
