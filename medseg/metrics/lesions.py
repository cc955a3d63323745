"""Scores that count lesions: objects that are found where some of them is covered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medseg.imaging.components import label_components
from medseg.metrics.contingency import Contingency, Flags, Integers
from medseg.metrics.overlap import Mask

COVERED = 0.1
"""A lesion counts as found when at least this share of its voxels is covered by the other mask (Commowick et al. 2018,
Sci. Rep. 8:13650, use 10 % as well)."""


def lesion_f1(prediction: Mask, truth: Mask) -> float:
    """Lesion-wise F1 of two masks, whose lesions are components with full connectivity (corners touch); see `covered_f1`."""
    return covered_f1(Contingency.between(label_components(prediction)[0], label_components(truth)[0]))


def covered_f1(contingency: Contingency) -> float:
    """Lesion-wise F1: harmonic mean of the share of reference lesions found and the share of predicted lesions that are real.

    Lesions may split or merge: no one-to-one matching is asked for, only that objects of the same class cover a share of each other.
    Crowds are no lesions; what is mostly ignored, or within crowds, and covers no lesion, is no claim.
    NaN when neither side has a lesion, 0 when one has none.
    """
    return covered(contingency).f1


@dataclass(frozen=True)
class Covered:
    """Lesions of one case, or (added up) of a dataset.

    Attributes:
        found: lesions of the truth of which enough is covered, of `lesions`.
        real: predicted lesions of which enough is covered, of those `claimed`.
    """

    found: int = 0
    lesions: int = 0
    real: int = 0
    claimed: int = 0

    @property
    def f1(self) -> float:
        """See `covered_f1`."""
        if self.lesions == 0 and self.claimed == 0:
            return float("nan")
        if not self.found or not self.real:
            return 0.0
        sensitivity, precision = self.found / self.lesions, self.real / self.claimed
        return 2 * sensitivity * precision / (sensitivity + precision)


def covered(contingency: Contingency) -> Covered:
    """The counts of `covered_f1`."""
    truth, prediction = contingency.truth, contingency.prediction
    pairs = contingency.akin & ~truth.crowd[contingency.rows]
    shared = contingency.shared[pairs]
    found = _covered(contingency.rows[pairs], shared, truth.sizes) & ~truth.crowd
    real = _covered(contingency.columns[pairs], shared, prediction.sizes - prediction.ignored)
    counts = (found, ~truth.crowd, real, real | ~contingency.excused)
    return Covered(*(int(np.count_nonzero(flags)) for flags in counts))


def _covered(at: Integers, shared: Integers, sizes: Integers) -> Flags:
    """Which objects are covered, by all others together."""
    hits = np.bincount(at, weights=shared, minlength=len(sizes))
    covered: Flags = (hits >= COVERED * sizes) & (hits > 0)
    return covered
