"""A fixed number of examples out of many, whose number of positive ones is not known beforehand."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced(match: Tensor, count: int, positive: int) -> tuple[Tensor, Tensor]:
    """Draw examples at random, from torch's global generator.

    Args:
        match: `(N, R)` integers: above 0 positive, 0 negative, below 0 neither.
        count: examples per window.
        positive: of them at most so many positive ones; if there are fewer, more negative ones are drawn.

    Returns:
        Indices `(N, count)` of the examples, positive ones first, and which of them count, `(N, count)` bool: the others fill up. Where R is
        less than `count`, so is the number of places.
    """
    chance = torch.rand(match.shape, device=match.device)
    is_positive = match > 0
    order = torch.where(is_positive, chance, -1.0)
    last = order.topk(min(positive, match.shape[1]), 1).values[:, -1:]
    kept = is_positive & (order >= last)
    rank = torch.where(kept, 2 + chance, torch.where(match == 0, 1 + chance, 0.0))
    best, index = rank.topk(min(count, match.shape[1]), 1)
    return index, best > 0
