"""Planes into volumes: what belongs together, in which order, on which grid, and what is wrong where no grid fits."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import Problem
from medseg.geometry import Grid
from medseg.io.dicom.planes import CLOCK, Plane
from medseg.io.dicom.volume import Volume

SAME_PLACE = 1e-2  # of a millimetre: slices that lie closer lie at one position
EVEN = 0.02  # share of the spacing by which positions may deviate from an even grid


def group(planes: Sequence[Plane]) -> list[Volume]:
    """The volumes that planes form, in order of series numbers."""
    groups: dict[Any, list[Plane]] = defaultdict(list)
    for plane in planes:
        groups[_group_key(plane)].append(plane)
    volumes = [_volume(members) for members in groups.values()]
    return sorted(volumes, key=lambda one: (one.series.number is None, one.series.number or 0, one.series.uid, one.key))


def _group_key(plane: Plane) -> tuple[Any, ...]:
    axes = None if plane.axes is None else tuple(round(value, 3) + 0.0 for value in plane.axes)
    spacing = None if plane.spacing is None else tuple(round(value, 4) for value in plane.spacing)
    alone = plane.frame.sop_uid if plane.position is None or plane.axes is None else ""
    return (plane.series.uid, plane.series.world, axes, plane.shape, spacing, plane.samples, plane.marks, alone)


def _volume(planes: list[Plane]) -> Volume:
    first = planes[0]
    planes = _unique(planes)
    dtype = np.result_type(*{plane.dtype for plane in planes}).name
    common: dict[str, Any] = {
        "key": key_of(planes),
        "folder": common_folder([plane.frame.source.path for plane in planes]),
        "series": first.series,
        "samples": first.samples,
        "dtype": dtype,
    }
    if first.position is None or first.axes is None:
        ordered = sorted(planes, key=lambda plane: plane.frame.index or 0)
        grid = Grid.plain(first.shape, first.spacing)
        singles = tuple((plane.frame,) for plane in ordered)
        return Volume(**common, grid=grid, spaced=first.spacing is not None, frames=singles, times=tuple(map(float, range(len(singles)))))
    errors: list[Problem] = []
    stacks, heights = _stacked(planes)
    counts = {len(stack) for stack in stacks}
    if len(counts) > 1:
        errors.append(
            Problem("positions hold different numbers of images", found=", ".join(map(str, sorted(counts))), expected="one number")
        )
    step = float(np.median(np.diff(heights))) if len(heights) > 1 else first.step or 1.0
    if len(heights) > 1 and np.abs(np.diff(heights) - step).max() > EVEN * step:
        errors.append(
            Problem(
                "slices are missing, or lie unevenly",
                found=f"distances of {np.diff(heights).min():.4g} to {np.diff(heights).max():.4g} mm",
                expected="one distance",
            )
        )
    times = min(counts)
    frames = tuple(tuple(stack[t].frame for stack in stacks) for t in range(times))
    grid = _grid([stack[0] for stack in stacks], step)
    return Volume(**common, grid=grid, spaced=True, frames=frames, times=tuple(map(float, range(times))), errors=tuple(errors))


def _unique(planes: list[Plane]) -> list[Plane]:
    kept = {
        (plane.frame.sop_uid, plane.frame.index, plane.position, plane.clock.get("InstanceNumber")): plane for plane in reversed(planes)
    }
    return list(reversed(kept.values()))


def _stacked(planes: list[Plane]) -> tuple[list[list[Plane]], list[float]]:
    """Planes by position along the normal, each position in order of time; and the positions."""
    normal = normal_of(planes[0])
    ordered = sorted(((float(np.dot(plane.position or (), normal)), plane) for plane in planes), key=lambda one: one[0])
    stacks: list[list[Plane]] = []
    heights: list[float] = []
    for height, plane in ordered:
        if stacks and height - heights[-1] < SAME_PLACE:
            stacks[-1].append(plane)
        else:
            stacks.append([plane])
            heights.append(height)
    for name in [*CLOCK, "Frame"]:
        if all(len({plane.clock.get(name) for plane in stack} - {None}) == len(stack) for stack in stacks):
            for stack in stacks:
                stack.sort(key=lambda plane: plane.clock[name])
            break
    return stacks, heights


def normal_of(plane: Plane) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The unit vector along which slices ascend."""
    axes = np.asarray(plane.axes, dtype=np.float64)
    cross = np.cross(axes[:3], axes[3:])
    return np.asarray(cross / (np.linalg.norm(cross) or 1.0))


def _grid(slices: list[Plane], step: float) -> Grid:
    first, last = slices[0], slices[-1]
    axes = np.asarray(first.axes, dtype=np.float64)
    rows, columns = first.spacing or (1.0, 1.0)
    start = np.asarray(first.position, dtype=np.float64)
    affine = np.eye(4)
    affine[:3, 0] = (np.asarray(last.position) - start) / (len(slices) - 1) if len(slices) > 1 else normal_of(first) * step
    affine[:3, 1] = axes[3:] * rows
    affine[:3, 2] = axes[:3] * columns
    affine[:3, 3] = start
    return Grid((len(slices), *first.shape), affine)


def key_of(planes: Sequence[Plane]) -> str:
    """16 hexadecimal digits that name a volume: of the UIDs of its series and images, whatever else lies beside them."""
    parts = sorted(f"{plane.frame.sop_uid}/{plane.frame.index}/{plane.frame.tile}" for plane in planes)
    return hashlib.blake2b("\n".join([planes[0].series.uid, *parts]).encode(), digest_size=8).hexdigest()


def common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder, or the archive, that holds all files."""
    unique = sorted(set(paths))
    if len(unique) == 1:
        return unique[0] if unique[0].suffix.lower() == ".zip" else unique[0].parent
    return Path(os.path.commonpath([path.parent for path in unique]))
