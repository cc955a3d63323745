"""Anchors: boxes of planned sizes about the centres of the cells of a pyramid's maps (Ren et al. 2015; Lin et al. 2017, arXiv:1612.03144)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg.geometry import Shape
from medseg.models.detection.boxes import volume


@dataclass(frozen=True)
class Level:
    """One map of a pyramid.

    Attributes:
        stride: voxels of the window between its cells, per axis.
        sizes: sides in voxels, per axis, of each anchor of a cell; all levels have equally many.
    """

    stride: Shape
    sizes: tuple[tuple[float, ...], ...]

    def cells(self, window: Shape) -> Shape:
        """Cells along each axis."""
        return tuple(n // s for n, s in zip(window, self.stride, strict=True))


def anchor_boxes(levels: Sequence[Level], window: Shape, device: torch.device | None = None) -> Tensor:
    """Anchors `(A, 2 d)` of all cells: level by level, cells in C order, and for each cell one of each size. They may leave the window."""
    return torch.cat([_of_level(level, window, device) for level in levels])


def _of_level(level: Level, window: Shape, device: torch.device | None) -> Tensor:
    lines = [(torch.arange(n, device=device) + 0.5) * s for n, s in zip(level.cells(window), level.stride, strict=True)]
    centres = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flatten(0, -2)[:, None]
    half = torch.tensor(level.sizes, device=device)[None] / 2
    return torch.cat([centres - half, centres + half], -1).flatten(0, 1)


def level_of(boxes: Tensor, levels: Sequence[Level], cells: int) -> Tensor:
    """Index `(...)` of the level whose cells are nearest in size, as ratios, to those of a grid of so many cells per axis over each box
    `(..., 2 d)`.

    Feature pyramid networks have one rule for classes and masks, made for photographs; here a mask, whose grid is finer, is read from a finer map.
    """
    side = volume(boxes).clamp_min(1e-6).log() / (boxes.shape[-1] // 2) - math.log(cells)
    steps = [sum(map(math.log, level.stride)) / len(level.stride) for level in levels]
    return (side[..., None] - boxes.new_tensor(steps)).abs().argmin(-1)
