"""Label maps that exist only as annotations in COCO files. `<file>.json/<image id>.coco` names one, like any other file.

Objects become codes (`Labels`), numbered from 1 on in each image, in the order of the file. Where they overlap, smaller ones lie on top,
of equal ones the later. Crowds and what is void get the ignore value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import MOST_OBJECTS, NUMBER_BITS, file_digest
from medseg.errors import DatasetError, ImageError, Problem
from medseg.geometry import Array, Grid
from medseg.io.coco.annotations import Annotations, Picture, read_annotations, shown
from medseg.io.coco.masks import corners, mask_of, reach
from medseg.io.format import Format, Header, Image, Native, numbers
from medseg.io.raster import Raster, joined
from medseg.io.rle import Rle
from medseg.scratch import IN_MEMORY, Scratch

SUFFIX = ".coco"


def label_path(file: Path, image: int) -> Path:
    """The name of the label map of an image."""
    return file / f"{image}{SUFFIX}"


def files_of(path: Path) -> tuple[Path, ...]:
    """The files behind a label map: the JSON, and of panoptic segments the PNG. None where it cannot be read."""
    try:
        found, picture = _find(path)
    except ImageError:
        return ()
    return (found.path, *(() if found.kind != "panoptic" else (_map_of(found, picture),)))


def image_id(path: Path) -> int:
    """Of a label map's name. Raises ImageError where it is none."""
    text = path.name.removesuffix(SUFFIX)
    if not path.name.endswith(SUFFIX) or not text.isdecimal():
        raise ImageError.of("is no name of a label map in COCO", where=str(path), expected=f"FILE.json/ID{SUFFIX}")
    return int(text)


def label_digest(path: Path, of_file: Callable[[Path], str] = file_digest) -> str:
    """16 hexadecimal digits of the annotations of one image, and of which categories have which values. Raises ImageError."""
    found, picture = _find(path)
    told = [json.dumps([found.values, picture.shape, found.of(picture)], sort_keys=True)]
    if found.kind == "panoptic":
        told += [of_file(_map_of(found, picture)), str(sorted(c.id for c in found.categories.values() if c.thing))]
    return hashlib.blake2b("\n".join(told).encode(), digest_size=8).hexdigest()


def _find(path: Path) -> tuple[Annotations, Picture]:
    identity = image_id(path)
    try:
        found = read_annotations(path.parent)
    except DatasetError as error:
        raise ImageError(error.problems) from None
    if identity not in found.pictures:
        raise ImageError.of("has changed: an image is missing", where=str(path.parent), found=f"no image {identity}", fix="Plan again.")
    return found, found.pictures[identity]


def _map_of(found: Annotations, picture: Picture) -> Path:
    entries = found.of(picture)
    if not entries:
        raise ImageError.of("the image is not annotated", where=f"{found.path}, '{picture.file}'", fix="Add its segments, or leave it out.")
    name: str = entries[0]["file_name"].replace("\\", "/")
    return found.maps / name


@dataclass(frozen=True)
class Annotated:
    """An object, or a crowd of them, of a class value; `box` is its lower and its upper corner (y, x) where the file gives one."""

    value: int
    mask: Rle
    crowd: bool
    box: tuple[float, ...] | None


def annotated(path: Path) -> list[Annotated] | None:
    """The objects of a label map as they are annotated, also what lies beneath others; None where they are no masks of a COCO file.

    Raises:
        ImageError: an annotation cannot be drawn.
    """
    if not path.name.endswith(SUFFIX):
        return None
    found, picture = _find(path)
    if found.kind != "instances":
        return None
    values = found.values
    return [
        Annotated(
            values[one["category_id"]], mask_of(one["segmentation"], picture.shape), bool(one.get("iscrowd", 0)), corners(one.get("bbox"))
        )
        for one in found.of(picture)
    ]


@final
class CocoLabels(Format):
    """`.coco`: read only."""

    name = "COCO"

    def header(self, path: Path, label: bool = False) -> Header:
        """See `Format.header`. What is odd about the objects is told with the image, since only drawing them tells it."""
        found, picture = _find(path)
        listed = f"{found.path}, image {picture.id} ({picture.file})"
        return Header(picture.shape, 1, Grid.plain(picture.shape), "int32", Native(self.name, "int32", False, (), listed))

    def read(self, path: Path, label: bool = False, scratch: Scratch = IN_MEMORY) -> Image:
        """See `Format.read`."""
        found, picture = _find(path)
        drawn = _drawn(found, picture)
        return Image(scratch.keep(drawn.codes[None]), Grid.plain(picture.shape), Native(self.name, "int32", False, drawn.warnings))

    def write(self, path: Path, array: Array, grid: Grid, like: Path | None) -> None:
        """Not possible. Raises ImageError."""
        raise ImageError.of("an annotation is not written as a label map", where=str(path), expected=".png, or --format coco")


@dataclass(frozen=True)
class _Drawn:
    """A label map in memory `(height, width)`, and what is odd about it."""

    codes: NDArray[np.int32]
    warnings: tuple[str, ...]


def _drawn(found: Annotations, picture: Picture) -> _Drawn:
    return _segments(found, picture) if found.kind == "panoptic" else _instances(found, picture)


def _instances(found: Annotations, picture: Picture) -> _Drawn:
    problems: list[Problem] = []
    masks: list[tuple[Mapping[str, Any], Rle]] = []
    cut: list[str] = []
    for place, entry in enumerate(found.of(picture)):
        told = f"annotation {entry.get('id', f'at place {place}')}"
        where = f"{found.path}, {told} of '{picture.file}'"
        try:
            mask = mask_of(entry["segmentation"], picture.shape)
        except ImageError as error:
            problems += [Problem(p.what, where, p.found, p.expected, p.fix) for p in error.problems]
            continue
        lies = reach(entry["segmentation"], picture.shape)
        if lies == "outside":
            problems.append(
                Problem(
                    "lies outside its image",
                    where,
                    expected=f"polygons within {numbers(picture.shape[::-1])} pixels",
                    fix="The image may have been scaled or cut after it was annotated.",
                )
            )
        if lies == "across":
            cut.append(told)
        masks.append((entry, mask))
    if problems:
        raise ImageError(problems)
    codes, warnings = _painted(found, picture, masks, cut)
    return _Drawn(np.ascontiguousarray(codes), warnings)


def _painted(
    found: Annotations, picture: Picture, masks: list[tuple[Mapping[str, Any], Rle]], cut: list[str]
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    values = found.values
    canvas = np.zeros(picture.shape[0] * picture.shape[1], np.int32)  # column by column, as run lengths go
    for entry, mask in masks:
        if entry.get("iscrowd", 0):
            canvas[_pixels(mask)] = found.ignore << NUMBER_BITS
    objects = [(entry, mask) for entry, mask in masks if not entry.get("iscrowd", 0)]
    empty = [f"annotation {entry.get('id')}" for entry, mask in objects if not mask.area]
    objects = [(entry, mask) for entry, mask in objects if mask.area]
    if len(objects) > MOST_OBJECTS:
        raise _too_many(found, picture, len(objects))
    codes = [values[entry["category_id"]] << NUMBER_BITS | number for number, (entry, _) in enumerate(objects, 1)]
    taken = np.zeros(len(canvas), bool)
    shared = 0
    for k in sorted(range(len(objects)), key=lambda k: -objects[k][1].area):  # stable: of equal ones the later lies on top
        inside = _pixels(objects[k][1])
        shared += int(np.count_nonzero(taken[inside]))
        taken[inside] = True
        canvas[inside] = codes[k]
    there = set(np.unique(canvas).tolist())
    hidden = [f"annotation {entry.get('id')}" for (entry, _), code in zip(objects, codes, strict=True) if code not in there]
    told = [
        ("objects cover no pixel, and are left out", empty),
        ("objects lie wholly beneath smaller ones, and are left out", hidden),
        ("objects reach out of their image, and are cut", cut),
    ]
    warnings = [f"{text}: {shown(items)}" for text, items in told if items]
    if shared:
        warnings.append(f"objects overlap in {shared} pixels, where the smaller one lies on top")
    return canvas.reshape(picture.shape, order="F"), tuple(warnings)


def _too_many(found: Annotations, picture: Picture, count: int) -> ImageError:
    error = ImageError.of("holds too many objects", where=f"{found.path}, '{picture.file}'", found=str(count), expected=f"{MOST_OBJECTS}")
    assert isinstance(error, ImageError)
    return error


def _pixels(mask: Rle) -> NDArray[np.int64]:
    """The positions of its pixels, column by column."""
    starts, stops = mask.runs
    lengths = stops - starts
    first: NDArray[np.int64] = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return first + np.arange(len(first))


def _segments(found: Annotations, picture: Picture) -> _Drawn:
    file = _map_of(found, picture)
    header = Raster().header(file)  # before pixels are unpacked
    if header.channels != 3 or header.dtype != "uint8":
        raise ImageError.of(
            "is no panoptic map",
            where=str(file),
            found=f"{header.channels} channel of {header.dtype}",
            expected="a PNG in colour, of 8 bits: id = R + 256 G + 65536 B",
        )
    if header.shape != picture.shape:
        raise ImageError.of(
            "has another size than its image",
            where=str(file),
            found=numbers(header.shape),
            expected=f"{numbers(picture.shape)} (rows, columns), as {found.path.name} says",
        )
    image = Raster().read(file)
    ids, places = np.unique(joined(image.array), return_inverse=True)
    listed = {segment["id"]: segment for segment in found.of(picture)[0]["segments_info"]}
    strange = [str(i) for i in ids.tolist() if i and i not in listed]
    if strange:
        raise ImageError.of(
            "holds segments that the JSON does not list",
            where=str(file),
            found=f"ids {shown(strange)}",
            expected=f"those of '{picture.file}' in {found.path.name}; 0 is void",
        )
    codes = dict.fromkeys([0], found.ignore << NUMBER_BITS)
    number = 0
    present = set(ids.tolist())
    for identity, segment in listed.items():
        if identity not in present:
            continue
        value = found.values[segment["category_id"]]
        if segment.get("iscrowd", 0):
            codes[identity] = found.ignore << NUMBER_BITS
        elif found.categories[segment["category_id"]].thing:
            number += 1
            codes[identity] = value << NUMBER_BITS | number
        else:
            codes[identity] = value << NUMBER_BITS
    if number > MOST_OBJECTS:
        raise _too_many(found, picture, number)
    table = np.array([codes[i] for i in ids.tolist()], np.int32)
    missing = [str(i) for i in listed if i not in present]
    warnings = (f"segments have no pixel, and are left out: ids {shown(missing)}",) if missing else ()
    return _Drawn(table[places.reshape(picture.shape)], warnings)
