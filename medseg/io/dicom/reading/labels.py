"""Label maps that exist only as annotations of DICOM images: which SEG or RTSTRUCT, on which volume's grid, with which values.

A label map is named by a path, like any other, so that it goes through records, processes and caches:

    <folder>/<key>.series/=1-1_3-2/rt/structures.dcm.labels

That is the volume `<folder>/<key>.series`, and of the file `rt/structures.dcm` (as seen from `<folder>`; `^` is the folder above) the first
region as value 1 and the third as value 2. Regions of an RTSTRUCT are numbered as they come, segments of a SEG have their own numbers. There
may be several files, each after its regions. Regions must not overlap; those after `+` instead of `=` may, the later on top.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from medseg.dataset import file_digest
from medseg.errors import ImageError
from medseg.geometry import Array, Grid
from medseg.io.dicom.contours import Mask
from medseg.io.dicom.reading.reader import find_volume, read_dataset, usable
from medseg.io.dicom.reading.segments import CLASSES, read_segmentation
from medseg.io.dicom.reading.structures import read_structure_set
from medseg.io.dicom.volume import LABELS, SUFFIX, Source, Volume
from medseg.io.format import Format, Header, Image, Native, smallest_integer
from medseg.scratch import IN_MEMORY, Scratch

VOLUME = re.compile(rf"^[0-9a-f]{{16}}{re.escape(SUFFIX)}$")
REGIONS = re.compile(r"^(?P<way>[=+])(?P<pairs>(\d+-\d+(_\d+-\d+)*)?)$")
WAYS = ("=", "+")  # before regions that must not overlap, and that may
UP = "^"
LONGEST = 120  # characters of a name in a path; some systems take 255 bytes


@dataclass(frozen=True)
class Part:
    """What one file gives to a label map.

    Attributes:
        source: a SEG or an RTSTRUCT.
        values: number of a region or segment -> value in the label map.
    """

    source: Source
    values: Mapping[int, int]


@dataclass(frozen=True)
class LabelName:
    """What the path of a label map says; `painted` where later regions may lie on top of earlier ones."""

    volume: Path
    parts: tuple[Part, ...]
    painted: bool = False


def label_path(volume: Volume, parts: Sequence[Part], painted: bool = False) -> Path:
    """The name of a label map on the grid of a volume."""
    path = volume.path
    for part in parts:
        pairs = [f"{number}-{value}" for number, value in part.values.items()]
        names, name = [], WAYS[painted]
        for pair in pairs:
            if len(name) + len(pair) > LONGEST:
                names.append(name)
                name = WAYS[painted]
            name += pair if name == WAYS[painted] else f"_{pair}"
        file = os.path.relpath(part.source.path.absolute(), volume.folder.absolute())
        way = [_escaped(name) for name in (*Path(file).parts, *(n for n in part.source.member.split("/") if n))]
        path = path.joinpath(*names, name, *way)
    return path.with_name(path.name + LABELS)


def _escaped(name: str) -> str:
    return UP if name == ".." else "" if name == "." else name[0] + name if name[0] in "=+" + UP else name


def read_name(path: Path) -> LabelName:
    """What the path of a label map says. Raises ImageError for one that no `label_path` is."""
    names = list(path.parts)
    at = next((i for i, name in enumerate(names) if VOLUME.match(name)), None)
    if at is None or not path.name.endswith(LABELS):
        raise _no_label(path)
    volume = Path(*names[: at + 1])
    rest = [*names[at + 1 : -1], path.name.removesuffix(LABELS)]
    parts: list[tuple[dict[int, int], list[str]]] = []
    painted = False
    for name in rest:
        regions = REGIONS.match(name)
        if regions is not None:
            if not parts or parts[-1][1]:
                parts.append(({}, []))
            painted = regions["way"] == WAYS[True]
            pairs = [pair.split("-") for pair in regions["pairs"].split("_") if pair]
            parts[-1][0].update({int(number): int(value) for number, value in pairs})
        elif not parts:
            raise _no_label(path)
        else:
            parts[-1][1].append(name)
    if not parts or not parts[-1][1]:
        raise _no_label(path)
    found = tuple(Part(_source(volume.parent, way), values) for values, way in parts)
    return LabelName(volume, found, painted)


def _source(folder: Path, way: Sequence[str]) -> Source:
    """The file, or the member of an archive, that names lead to from a folder."""
    path = folder
    for i, name in enumerate(way):
        if path.is_file():
            return Source(path, "/".join(_plain(n) for n in way[i:]))
        path = path.parent if name == UP else path / _plain(name)
    return Source(path)


def _plain(name: str) -> str:
    return name[1:] if len(name) > 1 and name[0] == name[1] and name[0] in "=+" + UP else name


def _no_label(path: Path) -> ImageError:
    error = ImageError.of("is no name of a label map in DICOM", where=str(path), expected=f"<volume>{SUFFIX}/=<regions>/<file>{LABELS}")
    assert isinstance(error, ImageError)
    return error


def label_digest(path: Path, of_file: Callable[[Path], str] = file_digest) -> str:
    """16 hexadecimal digits of the annotations and of which of their regions have which values. Raises ImageError."""
    name = read_name(path)
    told = [f"{name.volume.name}/{name.painted}"]
    for part in name.parts:
        told.append(f"{of_file(part.source.path)}/{part.source.member}/{sorted(part.values.items())}")
    return hashlib.blake2b("\n".join(told).encode(), digest_size=8).hexdigest()


@final
class DicomLabels(Format):
    """`.labels`: read only."""

    name = "DICOM"

    def header(self, path: Path, label: bool = False) -> Header:
        """See `Format.header`. The grid is that of the volume; with `label`, what is odd about contours is among the warnings."""
        name = read_name(path)
        for part in name.parts:
            if not part.source.path.is_file():
                raise ImageError.of("the file does not exist", where=str(part.source), fix="Check the path, or restore the file.")
        volume = usable(find_volume(name.volume))
        largest = max((value for part in name.parts for value in part.values.values()), default=0)
        dtype = smallest_integer(np.array([0, largest])).name
        warnings = tuple(text for part in name.parts for text in _warnings(part, volume)) if label else ()
        return Header(volume.grid.shape, 1, volume.grid, dtype, Native(self.name, dtype, volume.spaced, warnings))

    def read(self, path: Path, label: bool = False, scratch: Scratch = IN_MEMORY) -> Image:
        """See `Format.read`."""
        header = self.header(path)
        name = read_name(path)
        volume = find_volume(name.volume)
        array = scratch.zeros(header.shape, np.dtype(header.dtype))
        for part in name.parts:
            for region, value, mask in _masks(part, volume):
                _draw(array, mask, value, region, part.source, name)
        return Image(array[None], header.grid, header.native)

    def write(self, path: Path, array: Array, grid: Grid, like: Path | None) -> None:
        """Not possible. Raises ImageError."""
        raise ImageError.of("an annotation is not written as a label map", where=str(path), expected=".nii.gz, or --format seg")


def _warnings(part: Part, volume: Volume) -> list[str]:
    """What is left out of an RTSTRUCT or odd about it, as far as it concerns the regions that are used."""
    if _kind(part) in CLASSES:
        return []
    drawn = read_structure_set(part.source, volume)
    used = [one.name for place, one in enumerate(drawn.structures, 1) if place in part.values]
    return [str(w) for w in drawn.warnings if "region '" not in w.where or any(w.where.endswith(f"region '{name}'") for name in used)]


def _kind(part: Part) -> object:
    return read_dataset(part.source, tags=["SOPClassUID"]).get("SOPClassUID")


def _masks(part: Part, volume: Volume) -> Iterator[tuple[str, int, Mask]]:
    """Name, value and voxels of each region, in the order of the part."""
    if _kind(part) in CLASSES:
        found = read_segmentation(part.source, volume)
        for number, value in part.values.items():
            if number not in found.names:
                raise _no_region(part.source, number)
            yield found.names[number], value, np.any([one == number for one in found.maps], axis=0)
        return
    drawn = read_structure_set(part.source, volume)
    for number, value in part.values.items():
        if not 0 < number <= len(drawn.structures):
            raise _no_region(part.source, number)
        structure = drawn.structures[number - 1]
        if structure.problems:
            raise ImageError(structure.problems)
        yield structure.name, value, drawn.mask(structure)


def _no_region(source: Source, number: int) -> ImageError:
    error = ImageError.of("has changed: a region is missing", where=str(source), found=f"no region {number}", fix="Plan again.")
    assert isinstance(error, ImageError)
    return error


def _draw(array: Array, mask: Mask, value: int, region: str, source: Source, name: LabelName) -> None:
    if not name.painted:
        both = mask & (array != 0) & (array != value)
        if both.any():
            raise ImageError.of(
                "regions of different classes overlap",
                where=f"{source}, region '{region}'",
                found=f"{int(both.sum())} of its {int(mask.sum())} voxels also have the value {int(array[both][0])}",
                expected="one class for each voxel",
                fix='Say in medseg.json that later classes lie on top of earlier ones ("overlap": "later"), or leave one out.',
            )
    array[mask] = value
