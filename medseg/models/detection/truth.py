"""The true objects of windows, in as many places as there are at most, and what a grid over a box shows of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg.geometry import Shape
from medseg.models.detection.boxes import cell_centres, clip

IGNORED = -1
"""Value of voxels that teach nothing: not annotated, or of an object for which there was no place."""

SAMPLES = 3  # of a cell along each axis; with one, what is thinner than a cell comes and goes with the places of the cells' centres


@dataclass(frozen=True)
class Truth:
    """The objects of N windows.

    Attributes:
        boxes: `(N, M, 2 d)` float32, see `boxes`; of a place without an object whatever is finite.
        classes: `(N, M)` int64, 1 to K; 0: there is no object in this place.
        codes: `(N, M)` int32, the value of each object's voxels in `map`.
        map: `(N, *window)` int32; 0 for background, `IGNORED` for voxels that count nowhere.
    """

    boxes: Tensor
    classes: Tensor
    codes: Tensor
    map: Tensor

    @property
    def window(self) -> Shape:
        """Voxels along each axis."""
        return tuple(self.map.shape[1:])

    @property
    def there(self) -> Tensor:
        """`(N, M)` places that hold an object."""
        return self.classes > 0

    def classes_of(self, match: Tensor) -> Tensor:
        """Class index `(N, R)` of the objects with which something is matched (place plus 1); 0 without one."""
        return torch.where(match > 0, self.classes.gather(1, (match - 1).clamp_min(0)), 0)

    def boxes_of(self, match: Tensor, otherwise: Tensor) -> Tensor:
        """Boxes `(N, R, 2 d)` of the objects with which something is matched; `otherwise` without one."""
        index = (match - 1).clamp_min(0)[..., None].expand(-1, -1, self.boxes.shape[-1])
        return torch.where((match > 0)[..., None], self.boxes.gather(1, index), otherwise)

    def at(self, boxes: Tensor, cells: int) -> Tensor:
        """Values `(N, R, cells ** d)` of the voxels nearest to the cell centres of grids over boxes `(N, R, 2 d)`, in C order."""
        return self._read(self._voxels(boxes, cells).unbind(-2))

    def outlines(self, boxes: Tensor, match: Tensor, cells: int) -> Tensor:
        """Masks `(N, R, cells ** d)` float32 of one true object within each box: the share of each cell that it fills, among what counts there, or
        `IGNORED` where nothing does.

        Of `SAMPLES` points of a cell along each axis. A mask that is drawn between the cells' centres is then nearly the object again, which it is not if
        each cell tells of one point only (He et al. 2017 average, too).

        Args:
            boxes: `(N, R, 2 d)`.
            match: `(N, R)` int64, place of the object plus 1; 0 or below: none, and nothing counts.
            cells: of the grid, per axis.
        """
        code = self.codes.gather(1, (match - 1).clamp_min(0))[..., None]
        voxels = self._voxels(boxes, SAMPLES * cells)
        voxels = voxels.view(*voxels.shape[:-1], cells, SAMPLES)  # (N, R, d, cells, samples)
        inside = counts = torch.zeros((), device=boxes.device)
        # One by one: all at once would take as many times the memory.
        for each in itertools.product(range(SAMPLES), repeat=len(self.window)):
            found = self._read([voxels[..., axis, :, place] for axis, place in enumerate(each)])
            inside = inside + (found == code)
            counts = counts + (found != IGNORED)
        shares = inside / counts.clamp_min(1)
        return torch.where((counts > 0) & (match > 0)[..., None], shares, float(IGNORED))

    def _voxels(self, boxes: Tensor, cells: int) -> Tensor:
        """Places `(N, R, d, cells)` along each axis of the voxels in which the cell centres of grids over boxes lie, as far as boxes lie in the window."""
        most = torch.tensor(self.window, device=boxes.device)[:, None] - 1
        return torch.minimum(cell_centres(clip(boxes, self.window), cells).floor().long().clamp_min(0), most)

    def _read(self, lines: Sequence[Tensor]) -> Tensor:
        """Values `(N, R, cells ** d)` at the voxels of grids, whose places are given `(N, R, cells)` along each axis."""
        flat = torch.zeros_like(lines[0][..., :1])
        for line, size in zip(lines, self.window, strict=True):
            flat = (flat[..., :, None] * size + line[..., None, :]).flatten(-2)
        return self.map.flatten(1).gather(1, flat.flatten(1)).view(flat.shape)

    def semantic(self, shape: Shape) -> Tensor:
        """Class index `(N, *shape)` int64 at the centres of a coarser grid over the window: 0 for background, `IGNORED` where nothing counts."""
        found = at_centres(self.map, shape).flatten(1).contiguous()
        codes, order = torch.where(self.there, self.codes, 0).sort(1)
        place = torch.searchsorted(codes.contiguous(), found).clamp(max=codes.shape[1] - 1)
        same = codes.gather(1, place) == found
        classes = torch.where(same & (found > 0), self.classes.gather(1, order.gather(1, place)), 0)
        return torch.where(found == IGNORED, IGNORED, classes).view(len(found), *shape)


def at_centres(maps: Tensor, shape: Shape) -> Tensor:
    """Maps `(N, *window)` at the centres of the cells of a coarser grid `(N, *shape)`."""
    for axis, cells in enumerate(shape, 1):
        step = maps.shape[axis] / cells
        maps = maps.index_select(axis, ((torch.arange(cells, device=maps.device) + 0.5) * step).long())
    return maps
