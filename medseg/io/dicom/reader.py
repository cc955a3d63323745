"""Find and read DICOM images: `scan` says what lies somewhere, `read_voxels` reads one volume of it."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import UID

from medseg.errors import ImageError, MedsegError, Problem
from medseg.geometry import Array
from medseg.io.dicom.annotations import KINDS, read_annotation
from medseg.io.dicom.grouping import group
from medseg.io.dicom.pixels import frames_of
from medseg.io.dicom.planes import Plane, read_planes
from medseg.io.dicom.sources import read_dataset, walk
from medseg.io.dicom.values import scaled, scaling
from medseg.io.dicom.volume import SUFFIX, Annotation, Frame, Other, Scan, Source, Volume
from medseg.progress import Progress, Silent
from medseg.scratch import IN_MEMORY, Scratch, release

REMEMBERED = 256  # volumes whose headers are kept; more are read again

_known: OrderedDict[Path, tuple[str, Volume]] = OrderedDict()


def scan(paths: Iterable[Path] | Path, progress: Progress | None = None) -> Scan:
    """Everything that lies in folders, files, zip archives and DICOMDIRs; headers only.

    Raises:
        UsageError: a path that does not exist.
    """
    sources = list(walk([paths] if isinstance(paths, Path) else list(paths)))
    planes: list[Plane] = []
    others: list[Other] = []
    annotations: list[Annotation] = []
    foreign = 0
    for source in (progress or Silent()).track(sources, len(sources), "reading headers"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = read_dataset(source)
                if not _plausible(header):
                    foreign += 1
                elif header.get("SOPClassUID") in KINDS:
                    annotations.append(read_annotation(header, source))
                elif "Rows" in header and "Columns" in header:
                    planes += read_planes(header, source)
                else:
                    others.append(Other(source, _class_name(header)))
        except MedsegError as error:
            others.append(Other(source, problems=error.problems))
        except Exception as error:  # whatever bytes provoke
            others.append(Other(source, problems=(Problem("the header cannot be read", str(source), f"{type(error).__name__}: {error}"),)))
    volumes = tuple(group(planes))
    for volume in volumes:
        _remember(volume)
    return Scan(volumes, tuple(annotations), tuple(others), foreign)


def _plausible(header: Dataset) -> bool:
    return "SOPClassUID" in header or ("Rows" in header and "Columns" in header)


def _class_name(header: Dataset) -> str:
    uid = header.get("SOPClassUID")
    return str(uid.name) if isinstance(uid, UID) else ""


def state_of(sources: Iterable[Source]) -> str:
    """What changes when one of the files does: sizes and times."""
    parts = []
    for path in dict.fromkeys(source.path for source in sources):
        seen = path.stat()
        parts.append(f"{path}|{seen.st_size}|{seen.st_mtime_ns}|{seen.st_ctime_ns}")
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _remember(volume: Volume) -> None:
    _known[volume.path.absolute()] = (state_of(volume.sources), volume)
    while len(_known) > REMEMBERED:
        _known.popitem(last=False)


def find_volume(path: Path) -> Volume:
    """The volume of that name (see `Volume.path`); remembered while its files do not change.

    Raises:
        ImageError: there is none of that name.
    """
    entry = _known.get(path.absolute())
    if entry is not None:
        try:
            if state_of(entry[1].sources) == entry[0]:
                return entry[1]
        except OSError:
            pass  # a file is gone: found anew, or said below
    _known.pop(path.absolute(), None)
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
    """The values of a volume, `(T * samples, *grid.shape)`, slices and time points in its order.

    Args:
        volume: as `scan` or `find_volume` gives it.
        scratch: where the array lies.
        suv: PET in standardised uptake values; False leaves it as rescaled.

    Raises:
        ImageError: the volume has errors, or its pixels cannot be decoded.
    """
    usable(volume)
    flat = volume.grid.ndim == 2
    array = scratch.zeros((len(volume.frames) * volume.samples, *volume.grid.shape), np.dtype(volume.dtype))
    places: dict[Source, list[tuple[Frame, int, int]]] = defaultdict(list)
    for t, stack in enumerate(volume.frames):
        for z, frame in enumerate(stack):
            places[frame.source].append((frame, t, z))
    for source, wanted in places.items():
        data = read_dataset(source, pixels=True)
        single = wanted[0][0].index is None
        for pixels, (frame, t, z) in zip(frames_of(data, None if single else [f.index or 0 for f, _, _ in wanted]), wanted, strict=True):
            values = scaled(pixels, scaling(data, frame.index), array.dtype)
            channels = np.moveaxis(values, -1, 0) if volume.samples > 1 else values[None]
            block = array[t * volume.samples : (t + 1) * volume.samples]
            if flat:
                block[...] = channels
            else:
                block[:, z] = channels
            release(array)
    return array


__all__ = ["find_volume", "read_dataset", "read_voxels", "scan", "usable"]
