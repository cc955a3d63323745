"""Damages label maps as an imperfect predictor would: borders too wide or too narrow, gaps closed, parts missing."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional

POOLS = {2: functional.max_pool2d, 3: functional.max_pool3d}
CHANGES = ("grow", "shrink", "open", "close")


def change_shape(label: Tensor, index: int, value: int, how: str, radius: int, in_plane: bool) -> None:
    """Grow, shrink, open or close one value of one map of a batch `(N, *window)`, in place; voxels that it loses become 0.

    Args:
        radius: of the cube (the square of the last two axes if `in_plane`), in samples.
    """
    mask = (label[index] == value)[None, None].float()
    size = tuple(0 if in_plane and axis < label.ndim - 3 else radius for axis in range(label.ndim - 1))
    for step in {"grow": "+", "shrink": "-", "open": "-+", "close": "+-"}[how]:
        mask = _grown(mask, size) if step == "+" else 1 - _grown(1 - mask, size)
    now = mask[0, 0] > 0
    label[index] = torch.where(now, value, torch.where(label[index] == value, 0, label[index]))


def empty_box(label: Tensor, index: int, centre: tuple[int, ...], size: tuple[int, ...]) -> None:
    """Set a box of one map of a batch `(N, *window)` to 0, in place; parts outside the map are left out."""
    box = tuple(slice(max(0, c - s // 2), max(0, c - s // 2 + s)) for c, s in zip(centre, size, strict=True))
    label[index][box] = 0


def disturb(label: Tensor, change: float, change_size: int, lose: float, lose_size: float, in_plane: bool, generator: Generator) -> Tensor:
    """Each value of each map changed in shape with probability `change`, and a box around one of its voxels emptied with `lose`.

    As nnU-Net treats the previous stage of a cascade, with boxes in place of connected components.

    Args:
        label: `(N, *window)` integer values, 0 being background.
        change_size: largest radius in samples.
        lose_size: largest side of a box as a fraction of the window.
        generator: on the CPU; the same state gives the same damage on every device.
    """
    label = label.clone()
    for index in range(len(label)):
        for value in torch.unique(label[index]).tolist():
            draws = torch.rand(4, generator=generator)
            if value != 0 and draws[0] < change:
                radius = 1 + int(draws[1] * change_size)
                change_shape(label, index, value, CHANGES[int(draws[2] * len(CHANGES))], radius, in_plane)
        draws = torch.rand(2 + label.ndim - 1, generator=generator)
        found = torch.nonzero(label[index])
        if draws[0] < lose and len(found):
            centre = tuple(int(c) for c in found[int(draws[1] * len(found))])
            size = tuple(max(1, round(float(d) * lose_size * n)) for d, n in zip(draws[2:], label.shape[1:], strict=True))
            empty_box(label, index, centre, size)
    return label


def _grown(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    return POOLS[len(size)](mask, kernel_size=[2 * s + 1 for s in size], stride=1, padding=list(size))
