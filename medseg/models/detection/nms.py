"""Boxes that do not cover each other: greedily (exact), or at once (Fast NMS). As many come out as are asked for, marked where there were fewer.

Whatever their classes: a voxel belongs to one object, so one of two boxes in one place is wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.models.detection.boxes import iou

# What `custom_op` makes imports PyTorch's compiler when it is first called.
_LIBRARY = torch.library.Library("medseg", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("uncovered(Tensor boxes, Tensor valid, float threshold, int keep) -> Tensor")  # type: ignore[no-untyped-call]

BLOCK = 256  # boxes that are compared with each other at once: their table stays in a CPU's cache


def greedy(boxes: Tensor, scores: Tensor, valid: Tensor, threshold: float, keep: int, among: int) -> tuple[Tensor, Tensor]:
    """Greedy suppression: a box stays unless one with a higher score, that stays, overlaps it by more than `threshold`.

    Args:
        boxes: `(N, R, 2 d)`.
        scores: `(N, R)`.
        valid: `(N, R)` bool; the others are not looked at.
        threshold: intersection over union.
        keep: boxes that come out.
        among: boxes with the highest scores that are looked at.

    Returns:
        Indices `(N, keep)` by descending score, and which of them count, `(N, keep)` bool.
    """
    order, found, ok = _sorted(boxes, scores, valid, among)
    kept: Tensor = torch.ops.medseg.uncovered.default(found, ok, threshold, keep)
    return _first(order, kept, keep)


def fast(boxes: Tensor, scores: Tensor, valid: Tensor, threshold: float, keep: int, among: int) -> tuple[Tensor, Tensor]:
    """As `greedy`, but what is itself covered covers others, too, so that all are decided at once (Bolya et al. 2019, arXiv:1904.02689)."""
    order, found, ok = _sorted(boxes, scores, valid, among)
    covered = torch.stack([_covered(window, good, threshold) for window, good in zip(found, ok, strict=True)])
    return _first(order, ok & ~covered, keep)


def _covered(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Which boxes `(k, 2 d)`, by descending score, any one before them covers."""
    parts = []
    for start in range(0, len(boxes), BLOCK):
        end = min(start + BLOCK, len(boxes))
        covers = iou(boxes[:end], boxes[start:end]).triu(1 - start) > threshold
        parts.append((covers & valid[:end, None]).any(0))
    return torch.cat(parts)


def _sorted(boxes: Tensor, scores: Tensor, valid: Tensor, among: int) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.where(valid, scores, -torch.inf).topk(min(among, scores.shape[1]), 1).indices
    return order, gather(boxes, order), valid.gather(1, order)


def _first(order: Tensor, kept: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The first `keep` of those that are kept, in order; the others fill up."""
    count = kept.shape[1]
    rank = torch.where(kept, 2.0 * count, 1.0 * count) - torch.arange(count, device=kept.device)
    place = rank.topk(min(keep, count), 1).indices
    index, there = order.gather(1, place), kept.gather(1, place)
    if count < keep:
        index, there = (torch.nn.functional.pad(one, (0, keep - count)) for one in (index, there))
    return index, there


def gather(rows: Tensor, index: Tensor) -> Tensor:
    """Rows `(N, R, ...)` at `(N, S)` indices: `(N, S, ...)`."""
    return rows.gather(1, index.view(*index.shape, *(1,) * (rows.ndim - 2)).expand(-1, -1, *rows.shape[2:]))


def _uncovered(boxes: Tensor, valid: Tensor, threshold: float, keep: int) -> Tensor:
    """Which boxes `(N, k, 2 d)`, by descending score, greedy suppression keeps; of those after the first `keep` that it keeps, not all.

    Block by block: whoever is covered by none that stays, stays. Within a block that is asked until nothing changes, which is after as many rounds
    as the longest chain of boxes that cover each other, not after as many as there are boxes.
    """
    kept = torch.zeros_like(valid)
    for window, good, now in zip(boxes, valid, kept, strict=True):
        held = window[:0]
        for block, some, out in zip(window.split(BLOCK), good.split(BLOCK), now.split(BLOCK), strict=True):
            free = some & ~(iou(held, block) > threshold).any(0)
            covers = (iou(block, block) > threshold).triu(1)
            out.copy_(free)
            while not torch.equal(new := free & ~(covers & out[:, None]).any(0), out):
                out.copy_(new)
            held = torch.cat([held, block[out]])
            if len(held) >= keep:
                break
    return kept


def _shaped(boxes: Tensor, valid: Tensor, threshold: float, keep: int) -> Tensor:
    return torch.empty_like(valid)


_LIBRARY.impl("uncovered", _uncovered, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("uncovered", _shaped, "Meta")  # type: ignore[no-untyped-call]
