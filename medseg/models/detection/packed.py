"""What detectors answer in inference, and what they and their perfect likenesses have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medseg.imaging.merging import FLOOR
from medseg.models.detection.boxes import clip
from medseg.models.detection.truth import Truth
from medseg.models.slots import Slots

PYRAMID, OBJECTS = "pyramid", "objects"
FAINTEST = FLOOR  # score of what is called an object: what is fainter would not be kept
SURE = 12.0  # logit of a perfect network


def packed(scores: Tensor, classes: Tensor, boxes: Tensor, masks: Tensor, there: Tensor) -> Tensor:
    """Objects as `Slots.pack` gives them, empty where there is none.

    Args:
        scores, classes: `(N, slots)`; 0 to 1, and 1 to K.
        boxes: `(N, slots, 2 d)`.
        masks: `(N, slots, m ** d)` probabilities.
        there: `(N, slots)` bool.
    """
    return torch.where(there[..., None], Slots(scores, classes, boxes, masks).pack(), 0.0)


def perfect_slots(truth: Truth, slots: int, mask: int) -> Tensor:
    """The true objects as a perfect network answers, packed in `slots` with masks of `mask` cells per axis; those beyond are left out."""
    places = torch.arange(slots, device=truth.boxes.device)
    most = truth.boxes.shape[1]
    match = torch.where(places < most, places + 1, 0).expand(len(truth.boxes), -1)
    classes = truth.classes_of(match)
    boxes = clip(truth.boxes_of(match, truth.boxes.new_zeros(())), truth.window)
    there = classes > 0
    return packed(there, classes, boxes, truth.outlines(boxes, match, mask).clamp_min(0), there)


def sure(chances: Tensor) -> Tensor:
    """Logits of probabilities, or of what is true, from -`SURE` to `SURE`; what is below 0, because it counts nowhere, is taken for 0."""
    return chances.float().clamp_min(0).logit().clamp(-SURE, SURE)


def in_portions(draw: Callable[[slice], Tensor], there: Tensor, size: int) -> Tensor:
    """Masks `(N, slots, cells)` of the slots that are `there` `(N, slots)`, `size` at a time: no more memory than training takes for as many.

    Slots are filled from the first on, so most portions of most windows are empty; these are zeros, and not drawn.
    """
    parts: list[Tensor] = []
    for start in range(0, there.shape[1], size):
        part = slice(start, min(start + size, there.shape[1]))
        if parts and not there[:, part].any():
            parts.append(parts[0].new_zeros(len(there), there.shape[1] - start, parts[0].shape[2]))
            break
        parts.append(draw(part))
    return torch.cat(parts, 1)
