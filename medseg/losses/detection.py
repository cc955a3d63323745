"""Losses of object detectors, in float32: what each anchor and region is, where its box lies, and the object's mask.

Every term is a mean over what counts (anchors, regions, or masks of the whole batch), and boxes are compared by the share of them that agrees, so that
terms are about 1 at first whatever the number of axes, and one set of factors does for all. Without anything that counts a term is 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (PyTorch's own name)

NEGATIVES = 3  # for each positive anchor (Liu et al. 2016, arXiv:1512.02325)
FEWEST = 32  # anchors of background by which any window teaches
SMOOTH = 1.0  # cells


def anchor_loss(surprise: Tensor, match: Tensor) -> Tensor:
    """Mean over the positive anchors of each window and the hardest negative ones, three for each.

    Hard examples instead of the focal loss: that one starts from the belief that there is nothing, from which short trainings need long to return; and
    instead of random ones: nearly all of a hundred thousand cells are easy.

    Args:
        surprise: `(N, A)` minus logarithm of the probability of what each anchor is.
        match: `(N, A)` above 0: an object; 0: background; below: does not count.
    """
    positive, negative = match > 0, match == 0
    count = (NEGATIVES * positive.sum(1, keepdim=True)).clamp_min(FEWEST)
    order = torch.where(negative, surprise, -1.0).sort(1, descending=True)
    rank = torch.arange(surprise.shape[1], device=surprise.device)
    hard = (rank < count) & (order.values >= 0)
    total = (surprise * positive).sum() + (order.values * hard).sum()
    return total / (positive.sum() + hard.sum()).clamp_min(1)


def box_loss(boxes: Tensor, truth: Tensor, match: Tensor) -> Tensor:
    """Mean of 1 - generalised intersection over union (Rezatofighi et al. 2019, arXiv:1902.09630) over matched boxes.

    Args:
        boxes: `(N, R, 2 d)`.
        truth: `(N, M, 2 d)`.
        match: `(N, R)` place in `truth` plus 1; 0 or below: does not count.
    """
    index = (match.long() - 1).clamp_min(0)
    goals = truth.gather(1, index[..., None].expand(-1, -1, truth.shape[-1]))
    return _mean(1 - giou(boxes.float(), goals), match > 0)


def class_loss(logits: Tensor, classes: Tensor, match: Tensor) -> Tensor:
    """Cross entropy of regions, mean over those that count.

    Args:
        logits: `(N, R, 1 + K)`, background first.
        classes: `(N, M)` class index of each object.
        match: `(N, R)` place of the object plus 1; 0: background; below: does not count.
    """
    return _mean(_surprise(logits, classes, match), match >= 0)


def mask_loss(logits: Tensor, outlines: Tensor) -> Tensor:
    """Cross entropy plus 1 - soft Dice of masks `(N, P, cells)`; `outlines` are shares from 0 to 1, or below where nothing counts. A mean over masks, so
    each object counts alike, whatever its volume.

    Both terms are 0 where probabilities are the shares, and nowhere else: from the cross entropy that of the shares with themselves is taken, which changes
    no gradient; and the Dice is that of Wang et al. 2023 (arXiv:2303.16296), the usual one where shares are 0 or 1. The usual one would have cells that an
    object fills by more than half said to be full, and the others empty, so outlines would be as coarse as cells.
    """
    logits, outlines = logits.float(), outlines.detach()
    counts, truth = (outlines >= 0).float(), outlines.clamp_min(0)
    cells = counts.sum(-1)
    least = torch.xlogy(truth, truth) + torch.xlogy(1 - truth, 1 - truth)
    entropy = ((F.binary_cross_entropy_with_logits(logits, truth, reduction="none") + least) * counts).sum(-1) / cells.clamp_min(1)
    chances = logits.sigmoid() * counts
    apart = (chances - truth).abs().sum(-1) / (chances.sum(-1) + truth.sum(-1) + SMOOTH)
    return _mean(entropy + apart, cells > 0)


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised intersection over union `(...)` of pairs of boxes `(..., 2 d)`: from -1 (far apart) to 1 (equal)."""
    low, high = first.chunk(2, -1)
    lower, upper = second.chunk(2, -1)
    shared = (torch.minimum(high, upper) - torch.maximum(low, lower)).clamp_min(0).prod(-1)
    union = ((high - low).clamp_min(0).prod(-1) + (upper - lower).clamp_min(0).prod(-1) - shared).clamp_min(1e-6)
    hull = (torch.maximum(high, upper) - torch.minimum(low, lower)).clamp_min(0).prod(-1).clamp_min(1e-6)
    return shared / union - (hull - union) / hull


def region_losses(outputs: Mapping[str, list[Tensor]], boxes: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Terms of what `medseg.models.detection.MaskRCNN` returns in training, for true `boxes` `(N, M, 2 d)` and `classes` `(N, M)`."""
    raw = {name: maps[0] for name, maps in outputs.items()}
    anchors, regions = raw["anchor_match"], raw["region_match"]
    surprise = F.binary_cross_entropy_with_logits(raw["anchor_scores"].float(), (anchors > 0).float(), reduction="none")
    return {
        "anchor": anchor_loss(surprise, anchors),
        "anchor_box": box_loss(raw["anchor_boxes"], boxes, anchors),
        "class": class_loss(raw["region_scores"], classes, regions),
        "box": box_loss(raw["region_boxes"], boxes, regions),
        "mask": mask_loss(raw["region_masks"], raw["region_outlines"]),
    }


def prototype_losses(outputs: Mapping[str, list[Tensor]], boxes: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Terms of what `medseg.models.detection.Yolact` returns in training, for true `boxes` `(N, M, 2 d)` and `classes` `(N, M)`."""
    raw = {name: maps[0] for name, maps in outputs.items()}
    match = raw["anchor_match"]
    return {
        "class": anchor_loss(_surprise(raw["anchor_scores"], classes, match), match),
        "box": box_loss(raw["anchor_boxes"], boxes, match),
        "mask": mask_loss(raw["masks"], raw["outlines"]),
        "semantic": semantic_loss(raw["semantic"], raw["semantic_truth"]),
    }


def semantic_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Sigmoid cross entropy of each class, mean over voxels that count: it shapes the features, nothing is predicted with it.

    Args:
        logits: `(N, K, *cells)`.
        classes: `(N, *cells)` class index; 0: none; below: does not count.
    """
    index = torch.arange(1, logits.shape[1] + 1, device=logits.device).view(-1, *(1,) * (logits.ndim - 2))
    each = F.binary_cross_entropy_with_logits(logits.float(), (classes[:, None] == index).float(), reduction="none")
    return _mean(each.mean(1), classes >= 0)


def _surprise(logits: Tensor, classes: Tensor, match: Tensor) -> Tensor:
    index = torch.where(match > 0, classes.gather(1, (match.long() - 1).clamp_min(0)), 0)
    return -F.log_softmax(logits.float(), -1).gather(-1, index[..., None])[..., 0]


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    return torch.where(counts, values, 0.0).sum() / counts.sum().clamp_min(1)
