"""What a pyramid's maps show within boxes, on a grid of equally many cells over each (RoIAlign; He et al. 2017, arXiv:1703.06870)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (PyTorch's own name)

from medseg.geometry import Shape
from medseg.models.detection.boxes import cell_centres


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

    One sample per cell: a region is read on the level of its size, where a cell is about as large as those of the map. A sample is a weighted sum of
    `2 ** d` rows of the table, so no copy of them is made. No gradient reaches the boxes.

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
    shapes, windows = table.shapes, table.windows
    starts = [0]
    for shape in shapes:
        starts.append(starts[-1] + windows * shape.numel())
    start = boxes.new_tensor(starts[:-1], dtype=torch.int64)[levels]
    number = torch.arange(windows, device=boxes.device)[:, None]
    rows = (start + number * boxes.new_tensor([shape.numel() for shape in shapes], dtype=torch.int64)[levels])[..., None, None]
    pitch = torch.ones_like(levels)
    centres = cell_centres(boxes.to(table.rows.dtype), cells)
    weights = torch.ones_like(rows, dtype=table.rows.dtype)
    indices = torch.zeros_like(rows)
    for axis in reversed(range(len(shapes[0]))):
        size = boxes.new_tensor([shape[axis] for shape in shapes], dtype=torch.int64)[levels]
        stride = centres.new_tensor([stride[axis] for stride in table.strides])[levels]
        place = (centres[..., axis, :] / stride[..., None] - 0.5).clamp_min(0)
        place = torch.minimum(place, (size - 1)[..., None])
        below = place.floor()
        share = place - below
        first = below.long()
        both = torch.stack([first, torch.minimum(first + 1, (size - 1)[..., None])], -1) * pitch[..., None, None]
        indices = _crossed(both, indices, torch.add)
        weights = _crossed(torch.stack([1 - share, share], -1), weights, torch.mul)
        pitch = pitch * size
    indices = (indices + rows).flatten(0, -2)
    values = F.embedding_bag(indices, table.rows, mode="sum", per_sample_weights=weights.flatten(0, -2))
    return values.view(-1, *(cells,) * len(shapes[0]), table.rows.shape[1]).movedim(-1, 1)


def _crossed(line: Tensor, rest: Tensor, how: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Cells and corners `(..., n, 2)` of a further, slower axis with those `(..., m, c)` of the axes so far: `(..., n * m, 2 * c)`."""
    table = how(line[..., :, None, :, None], rest[..., None, :, None, :])
    return table.flatten(-2).flatten(-3, -2)
