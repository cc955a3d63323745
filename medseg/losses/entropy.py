"""Means of a cross entropy that look at hard voxels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SUREST = 1e-6  # doubt about a voxel is not taken to be smaller: powers below 1 of it have no gradient at 0


def focal(losses: Tensor, exponent: float) -> Tensor:
    """Each voxel's cross entropy times its doubt (1 - probability of the truth) to a power (Lin et al. 2017, arXiv:1708.02002)."""
    if exponent == 0:
        return losses
    return losses * (-torch.expm1(-losses)).clamp_min(SUREST) ** exponent


def hardest_mean(losses: Tensor, weights: Tensor, share: float) -> Tensor:
    """Weighted mean over the voxels with the highest weighted losses ("top-k", Wu et al. 2016, arXiv:1605.06885).

    Args:
        losses, weights: of one shape; voxels of weight 0 do not count.
        share: of the voxels that count, rounded up; 1 takes all.
    """
    if share >= 1:
        return (losses * weights).sum() / weights.sum().clamp_min(1)
    losses, weights = losses.reshape(-1), weights.reshape(-1)
    counts = weights > 0
    order = torch.where(counts, losses * weights, -1.0).topk(math.ceil(share * losses.numel()))
    # How many voxels count is known on the device only, so the others of the longest list are weighed with 0.
    kept = torch.arange(len(order.indices), device=losses.device) < (share * counts.sum()).ceil()
    chosen = weights[order.indices] * kept
    return (losses[order.indices] * chosen).sum() / chosen.sum().clamp_min(1)
