"""DICOM volumes as NIfTI files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from medseg.errors import ImageError, Problem, UsageError
from medseg.geometry import Array
from medseg.io.dicom.naming import file_stems
from medseg.io.dicom.reader import read_voxels
from medseg.io.dicom.volume import Scan, Volume
from medseg.io.nifti import Nifti
from medseg.progress import Progress, Silent
from medseg.record import write_atomic

Tilt = Literal["resample", "refuse"]
Pet = Literal["suv", "raw"]


@dataclass(frozen=True)
class Converted:
    """What came of a conversion.

    Attributes:
        written: the volumes and their files.
        failed: the volumes that could not be written, and why.
    """

    written: list[tuple[Volume, Path]] = field(default_factory=list)
    failed: list[tuple[Volume, tuple[Problem, ...]]] = field(default_factory=list)


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
    files = [out / f"{stem}.nii.gz" for stem in file_stems(scan.volumes)]
    work: list[tuple[Volume, Path]] = []
    for volume, file in zip(scan.volumes, files, strict=True):
        if problems := refusals(volume, tilt):
            result.failed.append((volume, problems))
        else:
            work.append((volume, file))
    taken = [file for _, file in work if file.exists()]
    if taken and not overwrite:
        raise UsageError([Problem("exists already", str(file), fix="Choose another folder, or pass --overwrite.") for file in taken])
    for volume, file in (progress or Silent()).track(work, len(work), "converting"):
        try:
            array = narrowed(read_voxels(volume, suv=pet == "suv"))
        except ImageError as error:
            result.failed.append((volume, error.problems))
            continue
        except MemoryError:
            result.failed.append((volume, _too_large(volume)))
            continue
        interval = interval_of(volume.times)

        def write(path: Path, array: Array = array, volume: Volume = volume, interval: float = interval) -> None:
            Nifti().write(path, array, volume.grid, None, interval)

        write_atomic(file, write)
        result.written.append((volume, file))
    return result


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
