"""The same image twice: files that were copied into several folders, or exported twice under other UIDs."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any

from medseg.errors import ImageError, Problem
from medseg.io.dicom.planes import Plane
from medseg.io.dicom.sources import read_dataset
from medseg.io.dicom.volume import Source


def without_copies(planes: list[Plane]) -> tuple[list[Plane], tuple[Problem, ...]]:
    """The planes of a series without copies, and what is said about these.

    A SOP Instance UID names one image: another file with it, the same place and the same numbers is a copy. Files with other UIDs are
    compared pixel by pixel where nothing else tells them apart.
    """
    seen: dict[Any, Plane] = {}
    for plane in planes:
        place = plane.place.position, plane.shape
        clock = plane.clock.get("InstanceNumber"), plane.clock.get("TriggerTime"), plane.clock.get("AcquisitionNumber")
        own = plane.frame.source if not plane.frame.sop_uid else ""
        seen.setdefault((plane.frame.sop_uid, own, plane.frame.index, plane.frame.tile, place, clock), plane)
    kept = list(seen.values())
    indistinct: dict[Any, list[Plane]] = defaultdict(list)
    for plane in kept:
        if plane.solid and plane.frame.index is None and plane.frame.tile is None:
            indistinct[(plane.place, tuple(plane.clock.items()), tuple(plane.marks.items()))].append(plane)
    dropped: set[Source] = set()
    for members in indistinct.values():
        if len(members) > 1:
            contents: set[str] = set()
            for plane in members:
                content = _content(plane.frame.source)
                if content in contents:
                    dropped.add(plane.frame.source)
                contents.add(content)
    kept = [plane for plane in kept if plane.frame.source not in dropped]
    lost = len({plane.frame.source for plane in planes} - {plane.frame.source for plane in kept})
    if not lost:
        return kept, ()
    remaining = {plane.frame.source for plane in kept}
    example = next(plane for plane in planes if plane.frame.source not in remaining)
    return kept, (Problem("images are there more than once; one of each is read", str(example.frame.source), f"{lost} copies"),)


def _content(source: Source) -> str:
    try:
        data = read_dataset(source, pixels=True)
    except ImageError:
        return str(source)
    pixels = data.get("PixelData")
    return hashlib.blake2b(pixels, digest_size=16).hexdigest() if pixels else str(source)
