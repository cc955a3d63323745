"""Scores that count lesions: objects that are found where some of them is covered."""

from __future__ import annotations

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
    truth, prediction = contingency.truth, contingency.prediction
    pairs = contingency.akin & ~truth.crowd[contingency.rows]
    shared = contingency.shared[pairs]
    found = _covered(contingency.rows[pairs], shared, truth.sizes) & ~truth.crowd
    real = _covered(contingency.columns[pairs], shared, prediction.sizes - prediction.ignored)
    lesions, claimed = np.count_nonzero(~truth.crowd), np.count_nonzero(real | ~contingency.excused)
    if lesions == 0 and claimed == 0:
        return float("nan")
    if not found.any() or not real.any():
        return 0.0
    sensitivity, precision = float(np.count_nonzero(found) / lesions), float(np.count_nonzero(real) / claimed)
    return 2 * sensitivity * precision / (sensitivity + precision)


def _covered(at: Integers, shared: Integers, sizes: Integers) -> Flags:
    """Which objects are covered, by all others together."""
    hits = np.bincount(at, weights=shared, minlength=len(sizes))
    covered: Flags = (hits >= COVERED * sizes) & (hits > 0)
    return covered
