"""Overlap and cross entropy, in float32, with voxels that do not count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (PyTorch's own name)

from medseg.losses.blobs import exclusive_blobs, region_blobs
from medseg.losses.entropy import focal, hardest_mean

IGNORED = -1
"""Class index of voxels that count in no loss."""
SMOOTH = 1e-5  # voxels; an absent class that is not predicted has Dice 1


@dataclass(frozen=True)
class Form:
    """Variants of the terms; by default soft Dice and plain cross entropy.

    Attributes:
        batch: overlap of all windows of the batch together (stable for small objects) instead of the mean over windows.
        missed: weight of missed voxels in the overlap, 1 minus it that of invented ones: 0.5 is the soft Dice (Milletari et al. 2016), others
            are the Tversky index (Salehi et al. 2017, arXiv:1706.05721).
        focal: exponent of `medseg.losses.entropy.focal`.
        hardest: share of voxels of `medseg.losses.entropy.hardest_mean`.
    """

    batch: bool = True
    missed: float = 0.5
    focal: float = 0.0
    hardest: float = 1.0


PLAIN = Form()


def exclusive_loss(
    logits: Tensor, classes: Tensor, weights: Tensor | None = None, form: Form = PLAIN, blobs: Tensor | None = None
) -> dict[str, Tensor]:
    """Softmax cross entropy and overlap of the foreground classes, for classes that exclude each other.

    Args:
        logits: `(N, 1 + K, *spatial)`, background first.
        classes: `(N, *spatial)` integer class indices; `IGNORED` counts nowhere.
        weights: `(1 + K,)` of each class in the cross entropy, or None.
        form: variants of the terms.
        blobs: `(N, *spatial)` from `number_blobs`, or None.

    Returns:
        `dice` (1 - overlap), `cross_entropy` and, with `blobs`, `blob`: scalars, finite also when every voxel is ignored.
    """
    logits = logits.float()
    valid = classes != IGNORED
    index = classes.clamp_min(0).long()
    log = F.log_softmax(logits, 1)
    weight = valid.float() if weights is None else weights.to(log)[index] * valid
    entropy = hardest_mean(focal(-log.gather(1, index[:, None])[:, 0], form.focal), weight, form.hardest)
    keep = valid[:, None].float()
    chances = (log.exp() * keep)[:, 1:]
    truth = torch.zeros_like(logits).scatter_(1, index[:, None], 1.0) * keep
    terms = {"dice": 1 - soft_overlap(chances, truth[:, 1:], form.batch, form.missed), "cross_entropy": entropy}
    return terms if blobs is None else terms | {"blob": exclusive_blobs(chances, classes, blobs, form.missed, SMOOTH)}


def region_loss(
    logits: Tensor, regions: Tensor, valid: Tensor, weights: Tensor | None = None, form: Form = PLAIN, blobs: Tensor | None = None
) -> dict[str, Tensor]:
    """Sigmoid cross entropy and overlap, for regions that may overlap each other.

    Args:
        logits, regions: `(N, K, *spatial)`; regions are 0 or 1.
        valid: `(N, *spatial)` bool; voxels that count.
        weights: `(K,)` of each region in the cross entropy, or None.
        form: variants of the terms.
        blobs: `(N, K, *spatial)`, `number_blobs` of each region, or None.

    Returns:
        As `exclusive_loss`.
    """
    logits, truth = logits.float(), regions.float()
    keep = valid[:, None].float()
    each = focal(F.binary_cross_entropy_with_logits(logits, truth, reduction="none"), form.focal)
    if weights is not None:
        each = each * weights.to(each).view(1, -1, *(1,) * (each.ndim - 2))
    chances = logits.sigmoid() * keep
    terms = {
        "dice": 1 - soft_overlap(chances, truth * keep, form.batch, form.missed),
        "cross_entropy": hardest_mean(each, keep.expand_as(each), form.hardest),
    }
    return terms if blobs is None else terms | {"blob": region_blobs(chances, blobs, form.missed, SMOOTH)}


def soft_overlap(probabilities: Tensor, truth: Tensor, batch: bool, missed: float = 0.5) -> Tensor:
    """Mean over classes (and windows, unless `batch`) of the Dice, or Tversky index, of probabilities; both `(N, K, *spatial)`, in float32."""
    axes = tuple(range(2, truth.ndim))
    axes = (0, *axes) if batch else axes
    overlap = (probabilities * truth).sum(axes)
    total = 2 * ((1 - missed) * probabilities.sum(axes) + missed * truth.sum(axes))
    return ((2 * overlap + SMOOTH) / (total + SMOOTH)).mean()
