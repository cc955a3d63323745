"""What a pyramid's maps show within boxes, on a grid of equally many cells over each (RoIAlign; He et al. 2017, arXiv:1703.06870)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (PyTorch's own name)

from medseg.geometry import Shape

ROW_BY_ROW = ("mps",)
"""Devices for which not every supported PyTorch has weighted sums of rows and their gradient (`embedding_bag`)."""


@dataclass(frozen=True)
class Table:
    """All cells of a pyramid as rows.

    Attributes:
        rows: `(cells, C)` float32 at least: level by level, window by window, cells in C order.
        shapes: cells of each level, per axis.
        strides: voxels of the window between them, per axis.
        windows: N.
    """

    rows: Tensor
    shapes: tuple[torch.Size, ...]
    strides: tuple[Shape, ...]
    windows: int

    @classmethod
    def of(cls, maps: Sequence[Tensor], strides: Sequence[Shape]) -> Table:
        """Of maps `(N, C, *spatial)`."""
        rows = torch.cat([one.movedim(1, -1).flatten(0, -2) for one in maps])
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return cls(rows, tuple(one.shape[2:] for one in maps), tuple(strides), len(maps[0]))


def roi_align(table: Table, boxes: Tensor, levels: Tensor, cells: int) -> Tensor:
    """Values at the cell centres, by linear interpolation between the centres of the maps' cells; beyond the outermost of those, theirs.

    One sample per cell: a region is read on the level of its size, where a cell is about as large as those of the map; of regions too large for the
    coarsest level cells lie apart, and what is between their samples is seen only as far as the map's features reach. A sample is a weighted sum of
    `2 ** d` rows of the table, so no copy of them is made (but on `ROW_BY_ROW`). No gradient reaches the boxes.

    Args:
        table: of the maps.
        boxes: `(N, R, 2 d)` in voxels of the window.
        levels: `(N, R)` int64, the map that each box is read from.
        cells: of the grid, per axis.

    Returns:
        `(N * R, C, *cells)` in the type of the table and channels-last order.
    """
    with torch.autocast(boxes.device.type, enabled=False):
        return _aligned(table, boxes.detach(), levels, cells)


def _aligned(table: Table, boxes: Tensor, levels: Tensor, cells: int) -> Tensor:
    """Regions come last while places are computed, so that the innermost loops are long ones."""
    shapes, axes = table.shapes, len(table.shapes[0])
    counts = [table.windows * shape.numel() for shape in shapes]
    starts = boxes.new_tensor([sum(counts[:number]) for number in range(len(counts))], dtype=torch.int32)
    window = torch.arange(table.windows, device=boxes.device, dtype=torch.int32)[:, None].expand(levels.shape).flatten()
    level = levels.flatten()
    corners = boxes.to(table.rows.dtype).flatten(0, 1).mT
    steps = ((torch.arange(cells, device=boxes.device, dtype=corners.dtype) + 0.5) / cells)[:, None]
    pitch = torch.ones_like(window)
    weights, indices = torch.ones_like(corners[:1, None]), torch.zeros_like(window)[None, None]
    for axis in reversed(range(axes)):
        last = boxes.new_tensor([shape[axis] - 1 for shape in shapes], dtype=torch.int32)[level]
        stride = corners.new_tensor([stride[axis] for stride in table.strides])[level]
        lower, upper = corners[axis], corners[axes + axis]
        place = torch.minimum(((lower + steps * (upper - lower)) / stride - 0.5).clamp_min(0), last)
        first = place.floor()
        share, below = place - first, first.int()
        both = torch.stack([below, torch.minimum(below + 1, last)]) * pitch
        indices = _crossed(both, indices, torch.add)
        weights = _crossed(torch.stack([1 - share, share]), weights, torch.mul)
        pitch = pitch * (last + 1)
    indices = indices + (starts[level] + window * pitch)
    rows, shares = (one.permute(2, 1, 0).reshape(-1, 2**axes) for one in (indices, weights))
    values = _summed(table.rows, rows, shares)
    return values.view(-1, *(cells,) * axes, table.rows.shape[1]).movedim(-1, 1)


def _summed(table: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
    """`(n, C)` sums of rows of the table, at `(n, k)`, times their shares `(n, k)`."""
    if table.device.type not in ROW_BY_ROW:
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=shares)
    total = table.index_select(0, rows[:, 0]) * shares[:, :1]
    for place in range(1, rows.shape[1]):
        total = total + table.index_select(0, rows[:, place]) * shares[:, place, None]
    return total


def _crossed(line: Tensor, rest: Tensor, how: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Corners and cells `(2, n, R)` of a further, slower axis with those `(c, m, R)` of the axes so far: `(2 * c, n * m, R)`."""
    return how(line[:, None, :, None], rest[None, :, None]).flatten(0, 1).flatten(1, 2)
