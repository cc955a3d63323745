"""Where voxels lie in the world, and the invertible steps that bring a case to the grid a network works on.

Conventions: arrays are `(C, Z, Y, X)` in 3D and `(C, Y, X)` in 2D; index vectors follow the array axes; world coordinates are
LPS millimetres `(x, y, z)` as in DICOM and ITK. Other conventions (nibabel's RAS) are converted in `medseg.io` only.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medseg.record import Record

Shape = tuple[int, ...]
Array = NDArray[Any]


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels in the world.

    Attributes:
        shape: voxels along each array axis, `(Z, Y, X)` or `(Y, X)`.
        affine: `(d + 1, d + 1)` float64, array index (in array-axis order) to LPS millimetres `(x, y[, z])`.
    """

    shape: Shape
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        d = len(self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (d + 1, d + 1):
            raise ValueError(f"a {d}D grid needs a {d + 1}x{d + 1} affine, got {affine.shape}")
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @classmethod
    def plain(cls, shape: Shape, spacing: tuple[float, ...] | None = None) -> Grid:
        """A grid at the origin, its axes along z, y, x."""
        d = len(shape)
        affine = np.eye(d + 1)
        affine[:d, :d] = np.fliplr(np.diag((spacing or (1.0,) * d)[::-1]))
        return cls(shape, affine)

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between neighbours along each array axis."""
        d = self.ndim
        return tuple(float(v) for v in np.linalg.norm(self.affine[:d, :d], axis=0))

    @property
    def origin(self) -> tuple[float, ...]:
        """World position of the first voxel's centre."""
        return tuple(float(v) for v in self.affine[: self.ndim, -1])

    @property
    def direction(self) -> NDArray[np.float64]:
        """Unit vectors of the array axes, one per column."""
        d = self.ndim
        return np.asarray(self.affine[:d, :d] / np.asarray(self.spacing))

    def world(self, index: NDArray[np.float64] | tuple[float, ...]) -> NDArray[np.float64]:
        """World coordinates of (fractional) indices, shape `(..., d)`."""
        d = self.ndim
        return np.asarray(index, dtype=np.float64) @ self.affine[:d, :d].T + self.affine[:d, -1]

    def corners(self) -> NDArray[np.float64]:
        """World coordinates of the `2**d` corner voxels."""
        return self.world(np.array(list(itertools.product(*[(0, n - 1) for n in self.shape])), dtype=np.float64))

    def distance(self, other: Grid) -> float:
        """Largest distance in millimetres between corresponding corners of two grids of the same shape."""
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())

    def _moved(self, shape: Shape, matrix: NDArray[np.float64]) -> Grid:
        """The grid of `shape` whose index `i` lies at this grid's index `matrix @ i`."""
        return Grid(shape, self.affine @ matrix)

    def canonical(self) -> Reorient:
        """The step to the orientation nearest to superior, posterior, left along z, y, x (2D grids stay as they are)."""
        d = self.ndim
        if d == 2:
            return Reorient(axes=(0, 1), flips=(False, False))
        # Greedy assignment: the strongest remaining pairing of an array axis with a world axis first.
        strength = np.abs(self.direction)
        axis_of_world: dict[int, int] = {}
        free_world, free_axis = set(range(d)), set(range(d))
        for _ in range(d):
            world, axis = max(itertools.product(sorted(free_world), sorted(free_axis)), key=lambda wa: strength[wa])
            axis_of_world[world] = axis
            free_world.discard(world)
            free_axis.discard(axis)
        axes = tuple(axis_of_world[world] for world in (2, 1, 0))
        flips = tuple(bool(self.direction[world, axis] < 0) for world, axis in zip((2, 1, 0), axes, strict=True))
        return Reorient(axes=axes, flips=flips)


class Reorient(Record):
    """Permute array axes, then flip some of the resulting axes. Exact, also on labels."""

    kind: Literal["reorient"] = "reorient"
    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    def grid(self, grid: Grid) -> Grid:
        """The grid after the step."""
        d = grid.ndim
        shape = tuple(grid.shape[a] for a in self.axes)
        matrix = np.zeros((d + 1, d + 1))
        matrix[d, d] = 1
        for new, (old, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            matrix[old, new] = -1 if flip else 1
            matrix[old, d] = grid.shape[old] - 1 if flip else 0
        return grid._moved(shape, matrix)

    def apply(self, array: Array) -> Array:
        """`array`: `(..., *shape)`; leading axes stay."""
        lead = array.ndim - len(self.axes)
        moved = array.transpose(*range(lead), *(lead + a for a in self.axes))
        return np.flip(moved, tuple(lead + i for i, flip in enumerate(self.flips) if flip))

    def undo(self, array: Array) -> Array:
        """The inverse of `apply`."""
        lead = array.ndim - len(self.axes)
        flipped = np.flip(array, tuple(lead + i for i, flip in enumerate(self.flips) if flip))
        return flipped.transpose(*range(lead), *(lead + int(a) for a in np.argsort(self.axes)))


class Crop(Record):
    """Keep a box. Undone by pasting into the source shape filled with a background value."""

    kind: Literal["crop"] = "crop"
    start: Shape
    shape: Shape
    source: Shape

    def grid(self, grid: Grid) -> Grid:
        """The grid after the step."""
        matrix = np.eye(grid.ndim + 1)
        matrix[: grid.ndim, -1] = self.start
        return grid._moved(self.shape, matrix)

    @property
    def box(self) -> tuple[slice, ...]:
        """The box as slices of the source."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.shape, strict=True))

    def apply(self, array: Array) -> Array:
        """`array`: `(..., *source)`; leading axes stay. A view."""
        index: tuple[Any, ...] = (..., *self.box)
        view: Array = array[index]
        return view

    def undo(self, array: Array, fill: float = 0) -> Array:
        """Paste into an array of the source shape filled with `fill`."""
        if self.shape == self.source:
            return array
        whole = np.full((*array.shape[: array.ndim - len(self.shape)], *self.source), fill, dtype=array.dtype)
        index: tuple[Any, ...] = (..., *self.box)
        whole[index] = array
        return whole


class Resample(Record):
    """Another number of voxels over the same extent: outer voxel edges stay aligned. The arithmetic is in `medseg.imaging.resample`.

    Maps go back linearly, but by nearest neighbour along the axis `thick`, if one is named.
    """

    kind: Literal["resample"] = "resample"
    source: Shape
    shape: Shape
    thick: int | None = None

    def grid(self, grid: Grid) -> Grid:
        """The grid after the step."""
        scale = np.asarray(self.source, dtype=np.float64) / np.asarray(self.shape, dtype=np.float64)
        matrix = np.eye(grid.ndim + 1)
        matrix[: grid.ndim, : grid.ndim] = np.diag(scale)
        matrix[: grid.ndim, -1] = (scale - 1) / 2
        return grid._moved(self.shape, matrix)


Step = Annotated[Reorient | Crop | Resample, Field(discriminator="kind")]
