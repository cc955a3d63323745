"""DICOM volumes, and the segmentations and structure sets about them, as NIfTI files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from medseg.errors import ImageError, Problem, UsageError
from medseg.geometry import Array, Grid
from medseg.io.dicom.naming import file_stems
from medseg.io.dicom.reading.annotations import annotated
from medseg.io.dicom.reading.reader import read_voxels
from medseg.io.dicom.reading.segments import read_segmentation
from medseg.io.dicom.reading.structures import read_structures
from medseg.io.dicom.volume import Annotation, Scan, Volume
from medseg.io.nifti import Nifti
from medseg.progress import Progress, Silent
from medseg.record import write_atomic, write_text

Tilt = Literal["resample", "refuse"]
Pet = Literal["suv", "raw"]


@dataclass(frozen=True)
class Converted:
    """What came of a conversion.

    Attributes:
        written: the volumes and their files.
        failed: the volumes that could not be written, and why.
        labels: the annotations, each with the files of its label maps; beside each lies a `.json` with the names of its values.
        left: the annotations that could not be written, and why.
    """

    written: list[tuple[Volume, Path]] = field(default_factory=list)
    failed: list[tuple[Volume, tuple[Problem, ...]]] = field(default_factory=list)
    labels: list[tuple[Annotation, Path]] = field(default_factory=list)
    left: list[tuple[Annotation, tuple[Problem, ...]]] = field(default_factory=list)


def refusals(volume: Volume, tilt: Tilt) -> tuple[Problem, ...]:
    """Why a volume is not used: its errors, and its tilt where tilts are refused."""
    if volume.errors or tilt == "resample" or volume.tilted is None:
        return volume.errors
    return (
        Problem(
            "the slices are sheared by a tilt of the gantry", str(volume.path), fix="--tilt resample brings it onto an orthogonal grid."
        ),
    )


def convert(
    scan: Scan, out: Path, tilt: Tilt = "resample", pet: Pet = "suv", overwrite: bool = False, progress: Progress | None = None
) -> Converted:
    """Write every volume that can be used as NIfTI, each atomically; time points are the fourth axis, with their interval.

    Segmentations and structure sets become label maps on the grids of their volumes. Parts that overlap go into files of their own;
    fractional segmentations count from one half on.

    Args:
        scan: what was found.
        out: folder; made if need be.
        tilt: whether volumes of a tilted gantry are brought onto an orthogonal grid, or left out.
        pet: whether PET is written as SUV by body weight, or as rescaled.
        overwrite: replace files that are there.
        progress: told of every volume.

    Raises:
        UsageError: files that would be written are there already; all of them.
        ResourceError: the folder cannot be written.
    """
    result = Converted()
    stems = file_stems(scan.volumes)
    files = {volume.key: out / f"{stem}.nii.gz" for volume, stem in zip(scan.volumes, stems, strict=True)}
    work: list[Volume] = []
    for volume in scan.volumes:
        if problems := refusals(volume, tilt):
            result.failed.append((volume, problems))
        else:
            work.append(volume)
    drawn = _on_volumes(scan, work, files, result)
    taken = [file for file in (*(files[volume.key] for volume in work), *(file for _, _, file in drawn)) if file.exists()]
    if taken and not overwrite:
        raise UsageError([Problem("exists already", str(file), fix="Choose another folder, or pass --overwrite.") for file in taken])
    for volume in (progress or Silent()).track(work, len(work), "converting"):
        try:
            array = narrowed(read_voxels(volume, suv=pet == "suv"))
        except ImageError as error:
            result.failed.append((volume, error.problems))
            continue
        except MemoryError:
            result.failed.append((volume, _too_large(volume)))
            continue
        _write(files[volume.key], array, volume.grid, interval_of(volume.times))
        result.written.append((volume, files[volume.key]))
    for annotation, volume, file in drawn:
        try:
            maps, names = label_maps(annotation, volume)
        except ImageError as error:
            result.left.append((annotation, error.problems))
            continue
        for number, labels in enumerate(maps, 1):
            target = file if number == 1 else file.with_name(file.name.replace(".nii.gz", f"_{number}.nii.gz"))
            if target.exists() and not overwrite:  # how many there are is known only now
                result.left.append((annotation, (Problem("exists already", str(target), fix="Pass --overwrite."),)))
                continue
            _write(target, labels[None], volume.grid)
            told = {str(value): names[value] for value in np.unique(labels).tolist() if value}
            write_text(target.with_name(target.name.replace(".nii.gz", ".json")), json.dumps(told, indent=2, ensure_ascii=False) + "\n")
            result.labels.append((annotation, target))
    return result


def _write(file: Path, array: Array, grid: Grid, interval: float = 0.0) -> None:
    write_atomic(file, lambda path: Nifti().write(path, array, grid, None, interval))


def _on_volumes(scan: Scan, usable: list[Volume], files: dict[str, Path], result: Converted) -> list[tuple[Annotation, Volume, Path]]:
    """Each annotation with every usable volume that it is about, and the file of its first label map; others are noted as left out."""
    drawn: list[tuple[Annotation, Volume, Path]] = []
    counts: Counter[str] = Counter()
    for annotation in scan.annotations:
        if annotation.errors:
            result.left.append((annotation, annotation.errors))
            continue
        there = annotated(annotation, scan.volumes)
        about = [volume for volume in usable if volume.key in there and volume.spaced and volume.grid.ndim == 3]
        if not about:
            what = f"the images that it is about {'cannot be used' if there else 'are not among these files'}"
            result.left.append((annotation, (Problem(what, str(annotation.source), fix="Convert both together."),)))
        for volume in about:
            stem = f"{files[volume.key].name.removesuffix('.nii.gz')}_{annotation.kind.lower()}"
            counts[stem] += 1
            number = f"-{counts[stem]}" if counts[stem] > 1 else ""
            drawn.append((annotation, volume, files[volume.key].with_name(f"{stem}{number}.nii.gz")))
    return drawn


def label_maps(annotation: Annotation, volume: Volume) -> tuple[list[Array], dict[int, str]]:
    """An annotation as label maps `(*volume.grid.shape)`, as few as its overlaps allow, and what their values are called.

    Raises:
        ImageError: it cannot be read, or does not lie on the volume.
    """
    if annotation.kind == "SEG":
        found = read_segmentation(annotation.source, volume, threshold=0.5)
        return list(found.maps), found.names
    masks = read_structures(annotation.source, volume)
    dtype = np.uint8 if len(masks) < 256 else np.uint16
    maps: list[Array] = []
    for value, mask in enumerate(masks.values(), 1):
        free = next((one for one in maps if not (one[mask] > 0).any()), None)
        if free is None:
            free = np.zeros(mask.shape, dtype)
            maps.append(free)
        free[mask] = value
    return maps, dict(enumerate(masks, 1))


def _too_large(volume: Volume) -> tuple[Problem, ...]:
    size = " x ".join(map(str, (len(volume.frames), *volume.grid.shape)))
    return (Problem("does not fit into memory", str(volume.path), f"{size} voxels"),)


def narrowed(array: Array) -> Array:
    """Integers of 32 bits as 16 where these hold every value: headers promise more room than most CT takes."""
    limits = np.iinfo(np.int16)
    if array.dtype == np.int32 and array.size and limits.min <= array.min() and array.max() <= limits.max:
        return array.astype(np.int16)
    return array


def interval_of(times: Sequence[float]) -> float:
    """Seconds between time points, the median; 0 for one."""
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0
