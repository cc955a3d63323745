"""Slices on a grid: their positions along the normal, gaps, shifts against each other, and the gantry tilt that shears them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Problem
from medseg.geometry import Grid
from medseg.io.dicom.reading.places import Place, normal_of

SAME_PLACE = 1e-2  # of a millimetre: slices that lie closer lie at one position
UNEVEN = 0.2  # share of the distance of slices by which one may deviate
DRIFTED = 0.2  # share of the distance of slices by which one may lie off its place on the even grid
ODD = 0.02  # share from which on it is mentioned
SHEARED = 0.1  # of a pixel: how far the last slice may lie beside the place where an orthogonal grid has it
SHIFTED = 0.25  # of a pixel: how far slices may lie beside the line of the others


@dataclass(frozen=True)
class Stack:
    """Slices that lie on a grid.

    Attributes:
        grid: of the slices as they were acquired.
        level: an orthogonal grid over the same slices, where a tilt shears `grid`; None elsewhere.
        warnings: oddities.
        errors: why there is no grid.
    """

    grid: Grid
    level: Grid | None = None
    warnings: tuple[Problem, ...] = ()
    errors: tuple[Problem, ...] = ()


def heights_of(places: Sequence[Place], axes: tuple[float, ...]) -> NDArray[np.float64]:
    """Positions along the normal, in millimetres."""
    return np.asarray([place.position for place in places], dtype=np.float64) @ normal_of(axes)


def stack_up(places: Sequence[Place], shape: tuple[int, int], what: Sequence[str]) -> Stack:
    """The grid of slices in ascending order.

    Args:
        places: of the slices; all have a position and the same axes.
        shape: rows and columns.
        what: names of the slices, for error texts.
    """
    first = places[0]
    assert first.axes is not None
    normal, axes = normal_of(first.axes), np.asarray(first.axes, dtype=np.float64)
    points = np.asarray([place.position for place in places], dtype=np.float64)
    heights = points @ normal
    rows, columns = first.spacing or (1.0, 1.0)
    warnings: list[Problem] = []
    errors: list[Problem] = []
    if first.spacing is None:
        warnings.append(Problem("the distance of pixels is not stated", expected="PixelSpacing", found="1 mm is taken"))
    if len(places) == 1:
        if first.step is None:
            warnings.append(Problem("the thickness of a single slice is not stated", expected="SliceThickness", found="1 mm is taken"))
        along = normal * (first.step or 1.0)
    else:
        along = (points[-1] - points[0]) / (len(points) - 1)
        errors += _gaps(heights, what) or _drift(heights, what)
        if not errors:
            warnings += _oddities(heights)
            errors += _shifts(points, along, min(rows, columns))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = along, axes[3:] * rows, axes[:3] * columns, points[0]
    grid = Grid((len(places), *shape), affine)
    beside = along - normal * (along @ normal)
    if errors or float(np.linalg.norm(beside)) * (len(places) - 1) <= SHEARED * min(rows, columns):
        return Stack(grid, None, tuple(warnings), tuple(errors))
    angle = float(np.degrees(np.arctan2(np.linalg.norm(beside), along @ normal)))
    tilt = Problem(
        "the slices are sheared by a tilt of the gantry and are resampled onto an orthogonal grid",
        found=f"{angle:.2f} degrees",
        fix="--tilt refuse leaves such series out.",
    )
    return Stack(grid, _level(grid, normal), (*warnings, tilt))


def _gaps(heights: NDArray[np.float64], what: Sequence[str]) -> list[Problem]:
    steps = np.diff(heights)
    usual = float(np.median(steps))
    wide, narrow = np.flatnonzero(steps > usual * (1 + UNEVEN)), np.flatnonzero(steps < usual * (1 - UNEVEN))
    if not len(wide) and not len(narrow):
        return []
    ratios = steps[wide] / usual
    if len(wide) and not len(narrow) and (np.abs(ratios - np.rint(ratios)) < UNEVEN).all() and len(wide) * 3 <= len(steps):
        lost = int((np.rint(ratios) - 1).sum())
        places = ", ".join(f"after slice {i + 1} ({steps[i]:.4g} mm)" for i in wide[:8]) + (", ..." if len(wide) > 8 else "")
        return [
            Problem(
                "slices are missing" if lost > 1 else "a slice is missing",
                what[wide[0]],
                f"{len(heights)} slices with a gap {places}",
                f"{len(heights) + lost} slices, {usual:.4g} mm apart",
                "Export or send the series again; slices were lost on the way.",
            )
        ]
    if len(narrow) and not len(wide) and len(narrow) * 3 <= len(steps):
        return [
            Problem(
                "slices overlap: some lie closer to the next than others do",
                what[narrow[0]],
                f"{steps[narrow].min():.4g} mm after slice {', '.join(str(i + 1) for i in narrow[:8])}",
                f"{usual:.4g} mm",
                "Remove the surplus slices, or split the series into its acquisitions.",
            )
        ]
    return [
        Problem(
            "slices lie unevenly",
            what[0],
            f"distances of {steps.min():.4g} to {steps.max():.4g} mm",
            "one distance",
            "Slices are missing, or two acquisitions are mixed: export the series again, or split it.",
        )
    ]


def _drift(heights: NDArray[np.float64], what: Sequence[str]) -> list[Problem]:
    """Distances that each are close to the usual one may still add up."""
    even = np.linspace(heights[0], heights[-1], len(heights))
    off = np.abs(heights - even)
    worst = int(off.argmax())
    step = float(even[1] - even[0])
    if off[worst] <= DRIFTED * step:
        return []
    steps = np.diff(heights)
    return [
        Problem(
            "slices lie unevenly: on a grid of one distance some would be far off their places",
            what[worst],
            f"distances of {steps.min():.4g} to {steps.max():.4g} mm, slice {worst + 1} lies {off[worst]:.3g} mm off",
            f"one distance, slices at most {DRIFTED * step:.3g} mm off",
            "Two acquisitions are mixed, or the distance changes on the way: split the series where it does.",
        )
    ]


def _oddities(heights: NDArray[np.float64]) -> list[Problem]:
    steps = np.diff(heights)
    mean = float(steps.mean())
    if np.abs(steps - mean).max() <= ODD * mean:
        return []
    return [Problem("slices lie somewhat unevenly", found=f"{steps.min():.4g} to {steps.max():.4g} mm", expected=f"{mean:.4g} mm")]


def _shifts(points: NDArray[np.float64], along: NDArray[np.float64], pixel: float) -> list[Problem]:
    expected = points[0] + np.arange(len(points))[:, None] * along
    direction = along / (np.linalg.norm(along) or 1.0)
    off = points - expected
    off = off - (off @ direction)[:, None] * direction
    worst = float(np.linalg.norm(off, axis=1).max())
    if worst <= max(SHIFTED * pixel, SAME_PLACE):
        return []
    return [
        Problem(
            "slices are shifted against each other",
            found=f"up to {worst:.3g} mm beside the line of the others",
            expected="one line",
            fix="Images of several acquisitions are mixed: split the series.",
        )
    ]


def _level(grid: Grid, normal: NDArray[np.float64]) -> Grid:
    """The orthogonal grid with the same pixels and slice planes that holds every acquired voxel."""
    along, down, right = grid.affine[:3, 0], grid.affine[:3, 1], grid.affine[:3, 2]
    height = float(along @ normal)
    ends = [
        (float((along * (grid.shape[0] - 1)) @ axis / (axis @ axis)) if grid.shape[0] > 1 else 0.0)  # in pixels
        for axis in (down, right)
    ]
    starts = [int(np.floor(min(0.0, end) + 1e-6)) for end in ends]
    stops = [int(np.ceil(max(0.0, end) - 1e-6)) for end in ends]
    shape = (grid.shape[0], grid.shape[1] + stops[0] - starts[0], grid.shape[2] + stops[1] - starts[1])
    affine = grid.affine.copy()
    affine[:3, 0] = normal * height
    affine[:3, 3] = grid.affine[:3, 3] + down * starts[0] + right * starts[1]
    return Grid(shape, affine)
