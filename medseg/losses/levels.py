"""Targets at the resolution of coarser outputs (deep supervision)."""

from __future__ import annotations

import torch
from torch import Tensor


def at_size(target: Tensor, size: tuple[int, ...]) -> Tensor:
    """A target `(..., *spatial)` at the resolution of a coarser output, by nearest neighbour as in nnU-Net."""
    lead = target.ndim - len(size)
    if target.shape[lead:] == size:
        return target
    for axis, (have, want) in enumerate(zip(target.shape[lead:], size, strict=True), lead):
        centres = ((torch.arange(want, device=target.device) + 0.5) * (have / want)).long()
        target = target.index_select(axis, centres)
    return target


def shares(count: int) -> list[float]:
    """Weight of each of so many resolutions, from the finest: 1, 1/2, 1/4, ..., divided by their sum (nnU-Net)."""
    weights = [0.5**level for level in range(count)]
    return [weight / sum(weights) for weight in weights]
