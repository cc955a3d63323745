"""The grids of one case's files: whether they are one grid, and how values are brought from one to another in the same world.

The reference of a case is its first file. Channels on other grids are brought to it where both say where they lie in the world.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import Channel
from medseg.errors import Problem
from medseg.geometry import Array, Grid, Shape
from medseg.io.format import Image, Native, numbers
from medseg.scratch import IN_MEMORY, Scratch, release, row_slabs

TOLERANCE = 0.1  # of the smallest spacing: how far two grids of one case may lie apart
LOOKED_AT = 64  # positions along each axis at which it is seen how much of a grid another one covers
ROUNDING = 1e-6  # of a voxel


def tolerance(grid: Grid) -> float:
    """How far, in mm, two grids of one case may lie apart: a tenth of a voxel."""
    return TOLERANCE * min(grid.spacing)


def grid_problems(
    path: Path, grid: Grid, native: Native, first: Path, expected: Grid, other: Native, what: str = "channel"
) -> list[Problem]:
    """How `path` lies elsewhere than `first`: shape, then distance of the corners where both files say where they lie."""
    if native.listed and grid.shape != expected.shape:
        return [_wrongly_listed(native.listed, grid.shape, expected.shape)]
    fix = "Re-export both on one grid" + (", or pass --resample-labels." if what == "label" else ".")
    if grid.ndim != expected.ndim:
        return [Problem(f"the {what} has other dimensions than {first}", str(path), f"{grid.ndim}D", f"{expected.ndim}D", fix)]
    if grid.shape != expected.shape:
        return [Problem(f"the {what}'s shape differs from that of {first}", str(path), numbers(grid.shape), numbers(expected.shape), fix)]
    if not (native.spaced and other.spaced):
        return []
    far = grid.distance(expected)
    if far <= tolerance(expected):
        return []
    parts = [f"{far:.3g} mm apart at the far corner"]
    if not np.allclose(grid.spacing, expected.spacing, rtol=1e-3):
        parts.append(f"spacing {numbers(grid.spacing)} instead of {numbers(expected.spacing)}")
    elif not np.allclose(grid.direction, expected.direction, atol=1e-3):
        parts.append("other orientation")
    else:
        parts.append(f"origin {numbers(grid.origin)} instead of {numbers(expected.origin)}")
    return [
        Problem(
            f"the {what}'s affine differs from that of {first}", str(path), "; ".join(parts), f"at most {tolerance(expected):.3g} mm", fix
        )
    ]


def _wrongly_listed(where: str, listed: Shape, found: Shape) -> Problem:
    """The size of an image is not the one that a file of annotations gives it. Shapes are `(height, width)`, or of another kind of image."""
    if len(found) != len(listed):
        return Problem("the image is listed as a picture", where, f"{len(found)}D", f"{len(listed)}D")
    sides = [
        f"{side} {told} in the JSON, {there} in the file"
        for side, told, there in zip(("height", "width"), listed, found, strict=True)
        if told != there
    ]
    return Problem("the size of the image is wrong", where, "; ".join(reversed(sides)), fix="Correct the JSON.")


@dataclass(frozen=True)
class Placement:
    """How a channel lies to the first file of its case.

    Attributes:
        problems: why the two cannot be channels of one case.
        coverage: share of the first file's voxels that lie within the channel's field of view, where it lies on another grid and is
            resampled; None on the same grid.
    """

    problems: tuple[Problem, ...] = ()
    coverage: float | None = None


def place(path: Path, grid: Grid, native: Native, first: Path, expected: Grid, other: Native) -> Placement:
    """Whether the channel in `path` lies on the grid of `first`, can be resampled onto it, or neither.

    Volumes that say where they lie can be resampled if they overlap. Images in 2D cannot: their files do not say in which plane they lie.
    """
    problems = tuple(grid_problems(path, grid, native, first, expected, other))
    if not problems or not (grid.ndim == expected.ndim == 3 and native.spaced and other.spaced):
        return Placement(problems)
    share = coverage(grid, expected)
    if share > 0:
        return Placement(coverage=share)
    return Placement(
        (
            Problem(
                f"the channel lies elsewhere in the world than {first}: nothing of it overlaps",
                str(path),
                _extent(grid),
                f"a part of {_extent(expected)}",
                "Register the channels, or re-export both in one world frame.",
            ),
        )
    )


def _extent(grid: Grid) -> str:
    low, high = grid.corners().min(axis=0), grid.corners().max(axis=0)
    return f"{', '.join(f'{axis} {a:.6g} to {b:.6g}' for axis, a, b in zip('xyz', low, high, strict=True))} mm"


def coverage(source: Grid, target: Grid) -> float:
    """The share of the voxels of `target`, at up to 64 positions along each axis, that lie within the field of view of `source`."""
    matrix = _between(source, target)
    return float(_inside(matrix, source, [np.unique(np.rint(np.linspace(0, n - 1, min(n, LOOKED_AT)))) for n in target.shape]).mean())


def _between(source: Grid, target: Grid) -> NDArray[np.float64]:
    """`(d + 1, d + 1)`: index in `target` to index in `source`."""
    return np.asarray(np.linalg.inv(source.affine) @ target.affine)


def _inside(matrix: NDArray[np.float64], source: Grid, positions: Sequence[NDArray[np.float64]]) -> NDArray[np.bool_]:
    """Which of the target's voxels at the product of `positions` lie within the source, to the outer edges of its outer voxels."""
    d = source.ndim
    axes = np.meshgrid(*positions, indexing="ij", sparse=True)
    inside = np.ones(tuple(len(p) for p in positions), bool)
    for row, n in zip(matrix[:d], source.shape, strict=True):
        index = sum((weight * axis for weight, axis in zip(row[:d], axes, strict=True)), start=np.asarray(row[d]))
        inside &= (index >= -0.5 - ROUNDING) & (index <= n - 0.5 + ROUNDING)
    return inside


def resample(values: Array, source: Grid, target: Grid, out: Array) -> None:
    """Write into `out` what `values` are at the voxels of `target`, linear in world coordinates, slab by slab: both may lie in files.

    The field of view ends with the outer edges of the outer voxels, whose outer halves have the values of their centres. Beyond it
    stands the smallest of `values`: air in CT, nothing in MR and PET.

    Args:
        values: `(*source.shape)`, 3D.
        out: `(*target.shape)`, floating point.
    """
    from scipy import ndimage

    d = target.ndim
    matrix = _between(source, target)
    if values.dtype.kind == "b" or values.dtype == np.float16:
        values = values.astype(np.float32)
    lowest = min(float(values[rows].min()) for rows in row_slabs(values.shape))
    release(values)
    for rows in row_slabs(target.shape):
        shape = (rows.stop - rows.start, *target.shape[1:])
        start = matrix[:d, d] + matrix[:d, 0] * rows.start
        # Between "constant" and "nearest" lies what is wanted: the outer halves of the outer voxels are known, what is beyond is not.
        slab = ndimage.affine_transform(
            values, matrix[:d, :d], start, output_shape=shape, output=np.float32, order=1, mode="nearest", prefilter=False
        )
        positions = [np.arange(n, dtype=np.float64) for n in target.shape]
        positions[0] = positions[0][rows]
        ends = [p[[0, -1]] for p in positions]
        if not _inside(matrix, source, ends).all():  # a field of view is convex: with its corners, the whole slab is inside
            slab[~_inside(matrix, source, positions)] = lowest
        out[rows] = slab
        release(values)
        release(out)


def field_of_view(source: Grid, target: Grid, scratch: Scratch = IN_MEMORY) -> NDArray[np.bool_]:
    """Which voxels of `target` `resample` takes from `source`; `(*target.shape)`, in `scratch`, slab by slab."""
    matrix = _between(source, target)
    inside = scratch.zeros(target.shape, np.bool_)
    for rows in row_slabs(target.shape):
        positions = [np.arange(n, dtype=np.float64) for n in target.shape]
        positions[0] = positions[0][rows]
        inside[rows] = _inside(matrix, source, positions)
        release(inside)
    return inside


def nearest(image: Image, grid: Grid) -> Array:
    """The values of an image at the nearest of its voxels to each voxel of `grid`, 0 outside; for labels. `(C, *grid.shape)`."""
    from scipy import ndimage

    matrix = _between(image.grid, grid)
    d = grid.ndim
    planes = [
        ndimage.affine_transform(c, matrix[:d, :d], matrix[:d, d], output_shape=grid.shape, order=0, mode="grid-constant", cval=0)
        for c in image.array
    ]
    return np.stack(planes)


@dataclass(frozen=True)
class Moved:
    """Channels of one file that are resampled onto the grid of the first: their position among all, and `Placement.coverage`."""

    case: str
    channels: tuple[int, ...]
    coverage: float


def moved_channels(moved: Iterable[Moved], channels: Sequence[Channel], cases: int) -> Problem | None:
    """The one warning about everything in a dataset that is resampled onto another grid; None where nothing is.

    Args:
        channels: of the dataset, the reference first.
        cases: how many there are in all.
    """
    worst: dict[int, Moved] = {}
    affected = set()
    for item in moved:
        affected.add(item.case)
        for k in item.channels:
            worst[k] = min(worst.get(k, item), item, key=lambda m: (m.coverage, m.case))
    if not affected:
        return None
    names = {k: channels[k].name if k < len(channels) else f"channel {k}" for k in sorted(worst)}
    shares = ", ".join(f"{name} at least {_percent(worst[k].coverage)} (case '{worst[k].case}')" for k, name in names.items())
    return Problem(
        f"lies on another grid than the reference channel '{channels[0].name}' and is resampled onto it when a case is read",
        f"channel {', '.join(names.values())}",
        f"{len(affected)} of {cases} cases; of the reference's field of view {shares} is covered",
        "",
        "Beyond its own field of view a channel holds its smallest value.",
    )


def _percent(share: float) -> str:
    """Rounded down, so that 100 % is all."""
    return f"{int(share * 1000) / 10:g} %"


def channels_by_file(counts: Sequence[int]) -> list[tuple[int, ...]]:
    """Positions of the channels of each file among all channels of a case, from their number in each file."""
    return [tuple(range(stop - n, stop)) for n, stop in zip(counts, itertools.accumulate(counts), strict=True)]
