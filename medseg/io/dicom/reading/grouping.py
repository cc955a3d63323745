"""Planes into volumes: which belong together, in which order, on which grid, and what is wrong where no grid fits."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import Problem
from medseg.geometry import Grid
from medseg.io.dicom.reading.copies import without_copies
from medseg.io.dicom.reading.places import STACKED
from medseg.io.dicom.reading.planes import Plane
from medseg.io.dicom.reading.stacking import SAME_PLACE, Stack, heights_of, stack_up
from medseg.io.dicom.reading.timing import Timed, in_time, times_of, weights_of
from medseg.io.dicom.volume import Other, Volume

PARALLEL = 1e-3  # how far components of directions may differ within a volume
SAME_SPACING = 1e-3  # share by which distances of pixels may differ within a volume
LOCALIZERS = ("LOCALIZER", "SCOUT", "TOPOGRAM")
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture, and the multi-frame kinds of it below


def group(planes: Iterable[Plane]) -> tuple[list[Volume], list[Other]]:
    """The volumes that planes form, in order of series numbers, and what could not be made into any: one series stops no other."""
    series: dict[Any, list[Plane]] = defaultdict(list)
    for plane in planes:
        series[_series_of(plane)].append(plane)
    volumes: list[Volume] = []
    others: list[Other] = []
    for members in [part for one in series.values() for part in _studies(one)]:
        try:
            volumes += _of_series(members)
        except Exception as error:  # whatever headers provoke; the other series are still read
            others.append(_ungrouped(members, error))
    volumes.sort(key=lambda one: (one.series.number is None, one.series.number or 0, one.series.uid, -len(one.frames), one.key))
    return volumes, others


def _series_of(plane: Plane) -> tuple[Any, ...]:
    """What tells series apart: anonymisers give several patients one UID, or remove it; then those of one folder belong together."""
    series, source = plane.series, plane.frame.source
    alone = () if series.uid else (source.path.parent, source.member.rpartition("/")[0], series.number, series.modality)
    return series.uid, plane.owner, alone


def _studies(planes: list[Plane]) -> list[list[Plane]]:
    """Images of a series by study; one part where a program gave every file a study of its own."""
    parts = _split(planes, [plane.series.study for plane in planes])
    return [planes] if _scrambled([plane.series.study for plane in planes], planes) else parts


def _scrambled(values: list[str], planes: list[Plane]) -> bool:
    """Whether a UID that files should share is another one in most of them."""
    count = len(set(values))
    return count > 1 and count * 2 > len({plane.frame.source for plane in planes})


def _ungrouped(planes: list[Plane], error: Exception) -> Other:
    return Other(
        planes[0].frame.source,
        problems=(
            Problem(
                "the images of the series cannot be put together",
                str(planes[0].frame.source),
                f"{len(planes)} images; {type(error).__name__}: {str(error)[:200]}",
                "slices of a volume, or images at several times",
                "Export the series again, or split it.",
            ),
        ),
    )


def _of_series(planes: list[Plane]) -> list[Volume]:
    planes, warnings = without_copies(planes)
    flat: dict[tuple[Any, ...], list[Plane]] = defaultdict(list)
    solid: list[Plane] = []
    for plane in planes:
        if plane.solid:
            solid.append(plane)
        else:
            flat[(plane.frame.sop_uid, plane.frame.source, plane.shape, plane.samples)].append(plane)
    volumes = [_flat(members) for members in flat.values()]
    parts = _alike(solid)
    if len({part[0].place.axes for part in parts}) > 1 and not _localizer(planes[0]):
        warnings = (*warnings, _mixed(parts))
    for part in parts:
        volumes += _solid(part)
    return [replace(volume, warnings=(*warnings, *volume.warnings)) for volume in volumes]


def _mixed(parts: list[list[Plane]]) -> Problem:
    return Problem(
        "the series mixes orientations; each is a volume of its own",
        found=f"{len(parts)} groups of {', '.join(str(len(part)) for part in parts[:8])} images",
        expected="parallel slices",
    )


def _alike(planes: list[Plane]) -> list[list[Plane]]:
    """Planes of one size, orientation, distance of pixels and frame of reference. Numbers are compared, not rounded."""
    groups: list[list[Plane]] = []
    scrambled = _scrambled([plane.series.world for plane in planes], planes)
    for plane in planes:
        for members in groups:
            if _fit(plane, members[0], scrambled):
                members.append(plane)
                break
        else:
            groups.append([plane])
    return groups


def _fit(plane: Plane, other: Plane, scrambled: bool) -> bool:
    if (plane.shape, plane.samples, plane.place.guessed) != (other.shape, other.samples, other.place.guessed):
        return False
    if plane.series.world != other.series.world and not scrambled:
        return False
    one, two = plane.place, other.place
    if (one.spacing is None) != (two.spacing is None):
        return False
    if one.spacing is not None and not np.allclose(one.spacing, two.spacing or (), rtol=SAME_SPACING):
        return False
    return bool(np.abs(np.subtract(one.axes or (), two.axes or ())).max() <= PARALLEL)


def _solid(planes: list[Plane]) -> list[Volume]:
    """Volumes of parallel planes: split by what marks them where they do not form one as they are."""
    stacks = _by_position(planes)
    timed = in_time(stacks)
    stack = stack_up([one[0].place for one in timed.slices], planes[0].shape, [str(one[0].frame.source) for one in timed.slices])
    repeated = max(map(len, stacks)) > 1
    if repeated or stack.errors or timed.errors:
        for name in sorted({name for plane in planes for name in plane.marks}):
            parts = _split(planes, [plane.marks.get(name) for plane in planes])
            if len(parts) > 1 and (repeated or all(_even(part) for part in parts)):
                return [_told(volume, name, part[0].marks.get(name), len(parts)) for part in parts for volume in _solid(part)]
        if stack.errors or timed.errors:
            for clock in ("AcquisitionNumber", "TemporalPositionIdentifier"):
                parts = _split(planes, [plane.clock.get(clock) for plane in planes])
                whole = any if timed.errors else all  # repeated positions are of no use as they are, so one good part is better
                if 1 < len(parts) <= len(planes) // 2 and whole(_even(part) for part in parts):
                    return [volume for part in parts for volume in _solid(part)]
    volumes = [_volume(planes, timed, stack)]
    for z, images in timed.whole:
        alone = Timed([images])
        place = replace(images[0].place, step=images[0].place.step or float(np.linalg.norm(stack.grid.affine[:3, 0])))
        volumes.append(_volume(images, alone, stack_up([place], images[0].shape, [str(images[0].frame.source)]), part=z + 1))
    return volumes


def _told(volume: Volume, name: str, value: Any, count: int) -> Volume:
    """A volume, and what tells it from the others of its series."""
    found = value.replace("\\", ", ") if isinstance(value, str) else f"{value:g}" if value is not None else ""
    note = Problem(f"is one of {count} parts of a series that differ in {name}", found=found or "nothing stated")
    return replace(volume, warnings=(note, *volume.warnings))


def _split(planes: list[Plane], by: list[Any]) -> list[list[Plane]]:
    parts: dict[Any, list[Plane]] = defaultdict(list)
    for plane, value in zip(planes, by, strict=True):
        parts[value].append(plane)
    return list(parts.values())


def _even(planes: list[Plane]) -> bool:
    timed = in_time(_by_position(planes))
    return not timed.errors and not stack_up([one[0].place for one in timed.slices], planes[0].shape, [""] * len(timed.slices)).errors


def _by_position(planes: list[Plane]) -> list[list[Plane]]:
    axes = planes[0].place.axes
    assert axes is not None
    heights = heights_of([plane.place for plane in planes], axes)
    stacks: list[list[Plane]] = []
    last = -np.inf
    for i in np.argsort(heights, kind="stable"):
        if heights[i] - last < SAME_PLACE:
            stacks[-1].append(planes[i])
        else:
            stacks.append([planes[i]])
            last = heights[i]
    return stacks


def _volume(planes: list[Plane], timed: Timed, stack: Stack, part: int = 0) -> Volume:
    used = [plane for images in timed.slices for plane in images]
    first = used[0]
    warnings = [*_notes(planes), *timed.warnings, *stack.warnings]
    if part:
        warnings.append(Problem("is one position of a time series that other positions hold only in part", found=f"position {part}"))
    frames = tuple(tuple(images[t].frame for images in timed.slices) for t in range(len(timed.slices[0])))
    return Volume(
        key=key_of(used),
        folder=common_folder([plane.frame.source.path for plane in used]),
        series=first.series,
        grid=stack.level or stack.grid,
        spaced=not first.place.guessed,
        frames=frames,
        times=times_of(timed.slices),
        weights=weights_of(timed.slices),
        samples=first.samples,
        dtype=common_type(plane.dtype for plane in used),
        tilted=stack.grid if stack.level is not None else None,
        warnings=tuple(warnings),
        errors=tuple(
            dict.fromkeys([*(error for plane in planes for error in plane.errors), *timed.errors, *stack.errors, *_watched(timed)])
        ),
    )


def _watched(timed: Timed) -> tuple[Problem, ...]:
    """CT and PET show one slice again and again only to watch a contrast agent arrive; a cine of one slice is an image in MR and US."""
    (first, *others) = timed.slices[0]
    if len(timed.slices) > 1 or not others or first.series.modality not in ("CT", "PT"):
        return ()
    return (
        Problem(
            "is not a volume but one slice again and again, as bolus tracking and monitoring give it",
            str(first.frame.source),
            f"{len(others) + 1} images at one position",
            "slices at different positions",
            "Use the diagnostic series of the study; if this should be one, its positions are wrong: export it again.",
        ),
    )


def _flat(planes: list[Plane]) -> Volume:
    ordered = sorted(planes, key=lambda plane: (plane.frame.index or 0, plane.frame.tile or 0))
    first = ordered[0]
    return Volume(
        key=key_of(ordered),
        folder=common_folder([plane.frame.source.path for plane in ordered]),
        series=first.series,
        grid=Grid.plain(first.shape, first.place.spacing),
        spaced=False,
        frames=tuple((plane.frame,) for plane in ordered),
        times=times_of([ordered]),
        samples=first.samples,
        dtype=common_type(plane.dtype for plane in ordered),
        warnings=tuple(_notes(ordered)),
        errors=tuple(dict.fromkeys(error for plane in ordered for error in plane.errors)),
    )


def _notes(planes: list[Plane]) -> list[Problem]:
    """What is worth knowing about images before they are used."""
    first = planes[0]
    notes = list(dict.fromkeys(warning for plane in planes for warning in plane.warnings))
    if _localizer(first):
        notes.append(Problem("is a localizer", found=first.series.kind.replace("\\", ", ")))
    if first.frame.sop_class.startswith(SECONDARY):
        notes.append(
            Problem("is a secondary capture: a picture of an image, not the image", found=first.series.description or "no description")
        )
    if not first.solid and first.series.modality in STACKED:
        notes.append(Problem("the files do not say where slices lie; images are read in 2D", expected="position and orientation"))
    if first.place.guessed:
        notes.append(Problem("the files do not say where slices lie; their slice locations order them", expected="ImagePositionPatient"))
    elif first.solid:
        worlds = {plane.series.world for plane in planes}
        if len(worlds) > 1:
            notes.append(Problem("the frame of reference differs within the series", found=f"{len(worlds)} of them", expected="one"))
        levels = len({plane.place.position for plane in planes})
        if levels == 1 and len(planes) > 1:
            notes.append(Problem("is one slice at several times, not a volume in space", found=f"{len(planes)} images at one position"))
        elif levels < 3:
            notes.append(
                Problem("is a single slice" if levels == 1 else "has only two slices", found=f"{levels} positions" if levels > 1 else "")
            )
    return notes


def _localizer(plane: Plane) -> bool:
    words = plane.series.kind.upper().split("\\")
    return any(word in LOCALIZERS for word in words)


def common_type(names: Iterable[str]) -> str:
    """The numpy type that holds values of all these types: never a float for integers that fit into int32."""
    found = np.result_type(*set(names))
    return "float32" if found.kind == "f" or found.itemsize > 4 or found == np.uint32 else found.name


def key_of(planes: Sequence[Plane]) -> str:
    """16 hexadecimal digits that name a volume: of the UIDs of its series and images, whatever else lies beside them."""
    parts = sorted(f"{plane.frame.sop_uid or _name(plane)}/{plane.frame.index}/{plane.frame.tile}" for plane in planes)
    return hashlib.blake2b("\n".join([planes[0].series.uid, *parts]).encode(), digest_size=8).hexdigest()


def _name(plane: Plane) -> str:
    """What names an image without a UID: its file, and whose it is."""
    return f"{plane.frame.source.path.name}/{plane.frame.source.member}/{plane.owner}"


def common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder, or the archive, that holds all files."""
    unique = sorted(set(paths))
    if len(unique) == 1:
        return unique[0] if unique[0].suffix.lower() == ".zip" else unique[0].parent
    return Path(os.path.commonpath([path.parent for path in unique]))
