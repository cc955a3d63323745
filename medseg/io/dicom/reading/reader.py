"""Read DICOM images: `scan` says what lies somewhere, `find_volume` knows a volume by its name, `read_voxels` reads it."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydicom import Dataset

from medseg.errors import ImageError
from medseg.geometry import Array, Grid
from medseg.io.dicom.reading import scanning
from medseg.io.dicom.reading.mosaic import tile_of
from medseg.io.dicom.reading.pixels import frames_of
from medseg.io.dicom.reading.sources import read_dataset
from medseg.io.dicom.reading.suv import TIMES, is_uptake, scan_start, uptake_factor
from medseg.io.dicom.reading.tilt import level, to_acquired
from medseg.io.dicom.reading.values import scaling, values_of
from medseg.io.dicom.volume import SUFFIX, WEIGHTED, Frame, Scan, Source, Volume
from medseg.progress import Progress
from medseg.scratch import IN_MEMORY, Scratch, release

REMEMBERED = 256  # volumes whose headers are kept; more are read again

_known: OrderedDict[Path, tuple[str, Volume]] = OrderedDict()


def scan(paths: Iterable[Path] | Path, progress: Progress | None = None) -> Scan:
    """Everything that lies in folders, files, zip archives and DICOMDIRs; see `scanning.scan`. Volumes are remembered by name.

    Raises:
        UsageError: a path that does not exist.
    """
    found = scanning.scan(paths, progress)
    for volume in found.volumes[-REMEMBERED:]:
        _known[volume.path.absolute()] = (_state(volume.sources), volume)
        _known.move_to_end(volume.path.absolute())
    while len(_known) > REMEMBERED:
        _known.popitem(last=False)
    return found


def _state(sources: Iterable[Source]) -> str:
    """What changes when one of the files does: sizes and times."""
    parts = []
    for path in dict.fromkeys(source.path for source in sources):
        seen = path.stat()
        parts.append(f"{path}|{seen.st_size}|{seen.st_mtime_ns}|{seen.st_ctime_ns}")
    return hashlib.blake2b("\n".join(parts).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def find_volume(path: Path) -> Volume:
    """The volume of that name (see `Volume.path`); remembered while its files do not change.

    Raises:
        ImageError: there is none of that name.
    """
    entry = _known.get(path.absolute())
    if entry is not None:
        try:
            if _state(entry[1].sources) == entry[0]:
                return entry[1]
        except OSError:
            pass  # a file is gone: looked for below
        del _known[path.absolute()]
    name, separator, b = path.name.removesuffix(SUFFIX).partition(WEIGHTED)
    if separator and re.fullmatch(r"\d+(\.\d+)?", b):
        return find_volume(path.with_name(f"{name}{SUFFIX}")).weighted(float(b))
    found = scan(path.parent).volumes if path.parent.exists() else ()
    for volume in found:
        if volume.path.name == path.name:
            return volume
    raise ImageError.of(
        "no such DICOM volume",
        where=str(path),
        found=f"{len(found)} other volumes" if found else "no DICOM image",
        expected=f"a name as `medseg inspect` tells it, <folder>/<key>{SUFFIX}",
        fix="Its files were changed, moved or removed: look again with `medseg inspect`.",
    )


def usable(volume: Volume) -> Volume:
    """The volume, if it can be used. Raises ImageError with its errors."""
    if volume.errors:
        raise ImageError(volume.errors)
    return volume


def read_voxels(volume: Volume, scratch: Scratch = IN_MEMORY, suv: bool = True) -> Array:
    """The values of a volume, `(T * samples, *grid.shape)`, slices and time points in its order; each file is read once.

    Args:
        volume: as `scan` or `find_volume` gives it.
        scratch: where the array lies.
        suv: PET in standardised uptake values by body weight; False leaves it as rescaled (Bq/ml, counts).

    Raises:
        ImageError: the volume has errors, its pixels cannot be decoded, or PET lacks what SUV takes.
    """
    usable(volume)
    acquired = volume.tilted or volume.grid
    array = scratch.zeros((len(volume.frames) * volume.samples, *acquired.shape), np.dtype(volume.dtype))
    places: dict[Source, list[tuple[Frame, int, int]]] = defaultdict(list)
    for t, stack in enumerate(volume.frames):
        for z, frame in enumerate(stack):
            places[frame.source].append((frame, t, z))
    uptake = suv and is_uptake(read_dataset(volume.sources[0], tags=["SOPClassUID", "Units"]))
    start = scan_start(read_dataset(source, tags=TIMES) for source in volume.sources) if uptake else None
    for source, wanted in places.items():
        data = read_dataset(source, pixels=True)
        factor = uptake_factor(data, str(source), start) if uptake else 1.0
        _read_file(data, wanted, volume, acquired, array, factor)
        release(array)
    if volume.tilted is None:
        return array
    straight = scratch.zeros((len(array), *volume.grid.shape), array.dtype)
    for values, out in zip(array, straight, strict=True):
        level(values, volume.tilted, volume.grid, out)
        release(straight)
    return straight


def _read_file(data: Dataset, wanted: list[tuple[Frame, int, int]], volume: Volume, grid: Grid, array: Array, factor: float) -> None:
    where, flat = str(wanted[0][0].source), grid.ndim == 2
    order = sorted(wanted, key=lambda one: one[0].index or 0)
    indices = None if order[0][0].index is None else list(dict.fromkeys(frame.index or 0 for frame, _, _ in order))
    frames = frames_of(data, indices, where)
    last: int | None = -1
    values = array[:0]
    for frame, t, z in order:
        if frame.index != last:
            last = frame.index
            values = values_of(next(frames), data, scaling(data, frame.index, flat), array.dtype, where, factor)
        pixels = values if frame.tile is None else tile_of(values, frame.tile, (grid.shape[1], grid.shape[2]))
        channels = np.moveaxis(pixels, -1, 0) if volume.samples > 1 else pixels[None]
        if channels.shape != (volume.samples, *grid.shape[-2:]):
            raise ImageError.of(
                "the pixels do not have the shape that the header promises",
                where=where,
                found=" x ".join(map(str, channels.shape)),
                expected=" x ".join(map(str, (volume.samples, *grid.shape[-2:]))),
                fix="Export it again.",
            )
        block = array[t * volume.samples : (t + 1) * volume.samples]
        if flat:
            block[...] = channels
        else:
            block[:, z] = channels


__all__ = ["find_volume", "read_dataset", "read_voxels", "scan", "to_acquired", "usable"]
