"""Boxes: `(..., 2 d)` float32, the lower corner along every axis of the window, then the upper one, in voxels; voxel i covers [i, i + 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medseg.geometry import Shape

LARGEST = math.log(1000 / 16)  # a box is at most about 60 times as large as its anchor along an axis (Faster R-CNN); more would overflow
THINNEST = 0.5  # voxels along an axis; a box that is thinner, e.g. because it lies outside of the window, holds no object


def sides(boxes: Tensor) -> Tensor:
    """Lengths `(..., d)` of boxes; 0 where the corners have changed places."""
    lower, upper = boxes.chunk(2, -1)
    return (upper - lower).clamp_min(0)


def volume(boxes: Tensor) -> Tensor:
    """Voxels `(...)` of boxes `(..., 2 d)`."""
    return sides(boxes).prod(-1)


def intersections(first: Tensor, second: Tensor) -> Tensor:
    """Voxels `(..., A, B)` that each of the boxes `(..., A, 2 d)` shares with each of `(..., B, 2 d)`."""
    axes = first.shape[-1] // 2
    shared: Tensor | None = None
    for axis in range(axes):  # one by one: a table of all axes would be the largest tensor
        lower = torch.maximum(first[..., :, None, axis], second[..., None, :, axis])
        length = (torch.minimum(first[..., :, None, axes + axis], second[..., None, :, axes + axis]) - lower).clamp_min(0)
        shared = length if shared is None else shared * length
    assert shared is not None
    return shared


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union `(..., A, B)` of each of the boxes `(..., A, 2 d)` with each of `(..., B, 2 d)`; 0 of two empty ones."""
    shared = intersections(first, second)
    union = volume(first)[..., :, None] + volume(second)[..., None, :] - shared
    return shared / union.clamp_min(1e-6)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """What `decode` makes these boxes of: `(..., 2 d)` shifts of the centre in sides of the anchor, then logarithms of the sides' ratios."""
    lower, upper = anchors.chunk(2, -1)
    low, high = boxes.chunk(2, -1)
    size = (upper - lower).clamp_min(1e-3)
    return torch.cat([(low + high - lower - upper) / (2 * size), ((high - low).clamp_min(1e-3) / size).log()], -1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Boxes `(..., 2 d)` by what a network says about anchors (Ren et al. 2015, arXiv:1506.01497), in float32."""
    lower, upper = anchors.chunk(2, -1)
    shift, growth = deltas.float().chunk(2, -1)
    size = upper - lower
    centre = (lower + upper) / 2 + shift * size
    half = size * growth.clamp(max=LARGEST).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def clip(boxes: Tensor, window: Shape) -> Tensor:
    """Boxes as far as they lie in a window."""
    return torch.minimum(boxes.clamp_min(0), boxes.new_tensor((*window, *window)))


def grown(boxes: Tensor, share: float) -> Tensor:
    """Boxes that reach further on each side, by this share of it."""
    lower, upper = boxes.chunk(2, -1)
    more = share * (upper - lower)
    return torch.cat([lower - more, upper + more], -1)


def whole(boxes: Tensor) -> Tensor:
    """Which boxes `(...)` are thick enough to hold an object."""
    return (sides(boxes) >= THINNEST).all(-1)


def cell_centres(boxes: Tensor, cells: int) -> Tensor:
    """Centres `(..., d, cells)` of a grid of cells over each box, axis by axis, in voxels."""
    lower, upper = boxes.chunk(2, -1)
    steps = (torch.arange(cells, device=boxes.device, dtype=boxes.dtype) + 0.5) / cells
    return lower[..., None] + (upper - lower)[..., None] * steps
