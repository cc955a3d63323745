"""The same image twice: files that were copied into several folders, or exported twice under other UIDs."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from typing import Any

from medseg.errors import ImageError, Problem
from medseg.io.dicom.reading.planes import Plane
from medseg.io.dicom.reading.sources import read_dataset
from medseg.io.dicom.volume import Source

COUNTED = ("InstanceNumber", "content")
"""Clocks that an export sets anew."""


def without_copies(planes: list[Plane]) -> tuple[list[Plane], tuple[Problem, ...]]:
    """The planes of a series without copies, and what is said about these.

    A SOP Instance UID names one image: another file with it, the same place and the same numbers is a copy. Files with other UIDs are
    compared pixel by pixel where nothing else tells them apart, or only an instance number that a second export has counted on: there,
    where positions hold more images than others do, or every position holds the same surplus.
    """
    seen: dict[Any, Plane] = {}
    for plane in planes:
        place = plane.place.position, plane.shape
        clock = plane.clock.get("InstanceNumber"), plane.clock.get("TriggerTime"), plane.clock.get("AcquisitionNumber")
        own = plane.frame.source if not plane.frame.sop_uid else ""
        seen.setdefault((plane.frame.sop_uid, own, plane.frame.index, plane.frame.tile, place, clock), plane)
    kept = list(seen.values())
    single = [plane for plane in kept if plane.solid and plane.frame.index is None and plane.frame.tile is None]
    dropped: set[Source] = set()
    for members in _indistinct(single, ()):
        dropped |= _repeats(members)
    dropped |= _surplus([plane for plane in single if plane.frame.source not in dropped])
    kept = [plane for plane in kept if plane.frame.source not in dropped]
    lost = len({plane.frame.source for plane in planes} - {plane.frame.source for plane in kept})
    if not lost:
        return kept, ()
    remaining = {plane.frame.source for plane in kept}
    example = next(plane for plane in planes if plane.frame.source not in remaining)
    return kept, (Problem("images are there more than once; one of each is read", str(example.frame.source), f"{lost} copies"),)


def _indistinct(planes: list[Plane], besides: tuple[str, ...]) -> list[list[Plane]]:
    """Groups of planes that lie at one place and are the same in all numbers besides those named."""
    groups: dict[Any, list[Plane]] = defaultdict(list)
    for plane in planes:
        clock = frozenset((name, value) for name, value in plane.clock.items() if name not in besides)
        groups[(plane.place, plane.shape, clock, frozenset(plane.marks.items()))].append(plane)
    return [members for members in groups.values() if len(members) > 1]


def _repeats(planes: list[Plane]) -> set[Source]:
    """The files among these whose pixels another one before them has."""
    if len(planes) < 2:
        return set()
    contents: set[str] = set()
    repeats: set[Source] = set()
    for plane in planes:
        content = _content(plane.frame.source)
        if content in contents:
            repeats.add(plane.frame.source)
        contents.add(content)
    return repeats


def _surplus(planes: list[Plane]) -> set[Source]:
    """Copies whose instance numbers differ. Time points may be equal where nothing moves, so what is left must be as many everywhere."""
    counts = Counter(plane.place for plane in planes)
    if not counts or max(counts.values()) < 2:
        return set()
    fewest = min(counts.values())
    even = fewest == max(counts.values())
    groups = _indistinct(planes, COUNTED)
    if even and (len(counts) < 2 or {members[0].place for members in groups} != counts.keys()):
        return set()
    found: set[Source] = set()
    lost: Counter[Any] = Counter()
    for members in groups:
        place = members[0].place
        if even or counts[place] > fewest:
            repeats = _repeats(members)
            if even and not repeats:
                return set()
            found |= repeats
            lost[place] += len(repeats)
    left = {count - lost[place] for place, count in counts.items()}
    return found if len(left) == 1 else set()


def _content(source: Source) -> str:
    try:
        data = read_dataset(source, pixels=True)
    except ImageError:
        return str(source)
    pixels = data.get("PixelData")
    return hashlib.blake2b(pixels, digest_size=16).hexdigest() if pixels else str(source)
