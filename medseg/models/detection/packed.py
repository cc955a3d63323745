"""What detectors answer in inference: one row of numbers for each place in which there may be an object."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.models.detection.boxes import clip
from medseg.models.detection.truth import Truth

PYRAMID, OBJECTS = "pyramid", "objects"
FAINTEST = 0.05  # score of what is called an object
SURE = 12.0  # logit of a perfect network


def pack(scores: Tensor, classes: Tensor, boxes: Tensor, masks: Tensor, there: Tensor) -> Tensor:
    """`(N, slots, 2 + 2 d + m ** d)` float32: score, class index, box, mask; all zeros where there is none.

    Args:
        scores, classes: `(N, slots)`; 0 to 1, and 1 to K.
        boxes: `(N, slots, 2 d)`.
        masks: `(N, slots, m ** d)` probabilities on a grid of m cells per axis over the box, in C order.
        there: `(N, slots)` bool.
    """
    rows = torch.cat([scores[..., None].float(), classes[..., None].float(), boxes.float(), masks.float()], -1)
    return torch.where(there[..., None], rows, 0.0)


def perfect_slots(truth: Truth, slots: int, mask: int) -> Tensor:
    """The true objects as a perfect network answers, `(N, slots, 2 + 2 d + m ** d)`; those beyond `slots` are left out."""
    index = torch.arange(slots, device=truth.boxes.device).clamp(max=truth.boxes.shape[1] - 1)
    fits = torch.arange(slots, device=truth.boxes.device) < truth.boxes.shape[1]
    part = Truth(clip(truth.boxes, truth.window)[:, index], truth.classes[:, index], truth.codes[:, index], truth.map)
    place = (torch.arange(slots, device=truth.boxes.device) + 1).expand(len(truth.boxes), -1)
    masks = part.outlines(part.boxes, torch.where(part.there, place, 0), mask)
    return pack(part.there.float(), part.classes, part.boxes, masks.clamp_min(0), part.there & fits)


def sure(yes: Tensor) -> Tensor:
    """Logits of +-`SURE`."""
    return (2 * yes.float() - 1) * SURE
