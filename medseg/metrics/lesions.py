"""Scores that count connected components."""

from __future__ import annotations

import numpy as np

from medseg.metrics.overlap import Mask

COVERED = 0.1
"""A component counts as found when at least this share of its voxels is covered by the other mask (Commowick et al. 2018,
Sci. Rep. 8:13650, use 10 % as well)."""


def lesion_f1(prediction: Mask, truth: Mask) -> float:
    """Lesion-wise F1: harmonic mean of the share of reference lesions found and the share of predicted lesions that are real.

    Lesions are components with full connectivity (corners touch). Lesions may split or merge: no one-to-one matching is asked for.
    NaN when both masks are empty, 0 when one is.
    """
    found, lesions = _covered(truth, prediction)
    real, claimed = _covered(prediction, truth)
    if lesions == 0 and claimed == 0:
        return float("nan")
    if found == 0 or real == 0:
        return 0.0
    sensitivity, precision = found / lesions, real / claimed
    return 2 * sensitivity * precision / (sensitivity + precision)


def _covered(mask: Mask, by: Mask) -> tuple[int, int]:
    """How many components of `mask` are covered, of how many."""
    from scipy import ndimage

    components, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    if count == 0:
        return 0, 0
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    hits = np.bincount(components[by], minlength=count + 1)[1:]
    return int(np.count_nonzero(hits >= COVERED * sizes)), count
