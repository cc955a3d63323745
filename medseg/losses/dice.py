"""Soft Dice and cross entropy, in float32, with voxels that do not count."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (PyTorch's own name)

IGNORED = -1
"""Class index of voxels that count in no loss."""
SMOOTH = 1e-5  # voxels; an absent class that is not predicted has Dice 1


def exclusive_loss(logits: Tensor, classes: Tensor, weights: Tensor | None = None, batch_dice: bool = True) -> dict[str, Tensor]:
    """Softmax cross entropy and soft Dice of the foreground classes, for classes that exclude each other.

    Args:
        logits: `(N, 1 + K, *spatial)`, background first.
        classes: `(N, *spatial)` integer class indices; `IGNORED` counts nowhere.
        weights: `(1 + K,)` of each class in the cross entropy, or None.
        batch_dice: Dice of all windows of the batch together (stable for small objects) instead of the mean over windows.

    Returns:
        `dice` (1 - soft Dice, Milletari et al. 2016; Drozdzal et al. 2016) and `cross_entropy`, scalars, finite also when every voxel is
        ignored.
    """
    logits = logits.float()
    valid = classes != IGNORED
    index = classes.clamp_min(0).long()
    log = F.log_softmax(logits, 1)
    weight = valid.float() if weights is None else weights.to(log)[index] * valid
    entropy = -(log.gather(1, index[:, None])[:, 0] * weight).sum() / weight.sum().clamp_min(1)
    keep = valid[:, None].float()
    truth = torch.zeros_like(logits).scatter_(1, index[:, None], 1.0) * keep
    return {"dice": 1 - soft_dice((log.exp() * keep)[:, 1:], truth[:, 1:], batch_dice), "cross_entropy": entropy}


def region_loss(
    logits: Tensor, regions: Tensor, valid: Tensor, weights: Tensor | None = None, batch_dice: bool = True
) -> dict[str, Tensor]:
    """Sigmoid cross entropy and soft Dice, for regions that may overlap.

    Args:
        logits, regions: `(N, K, *spatial)`; regions are 0 or 1.
        valid: `(N, *spatial)` bool; voxels that count.
        weights: `(K,)` of each region in the cross entropy, or None.
        batch_dice: see `exclusive_loss`.
    """
    logits, truth = logits.float(), regions.float()
    keep = valid[:, None].float()
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * keep
    if weights is not None:
        each = each * weights.to(each).view(1, -1, *(1,) * (each.ndim - 2))
    entropy = each.sum() / (keep.sum() * logits.shape[1]).clamp_min(1)
    return {"dice": 1 - soft_dice(logits.sigmoid() * keep, truth * keep, batch_dice), "cross_entropy": entropy}


def soft_dice(probabilities: Tensor, truth: Tensor, batch: bool) -> Tensor:
    """Mean over classes (and windows, unless `batch`) of the Dice of probabilities; both `(N, K, *spatial)`, in float32."""
    axes = tuple(range(2, truth.ndim))
    axes = (0, *axes) if batch else axes
    overlap = (probabilities * truth).sum(axes)
    total = probabilities.sum(axes) + truth.sum(axes)
    return ((2 * overlap + SMOOTH) / (total + SMOOTH)).mean()
