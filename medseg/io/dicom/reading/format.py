"""DICOM volumes as images: what stands behind a `.series` name."""

from __future__ import annotations

from pathlib import Path
from typing import final

from medseg.errors import ImageError
from medseg.geometry import Array, Grid
from medseg.io.dicom.reading.reader import find_volume, read_voxels, usable
from medseg.io.dicom.volume import Volume
from medseg.io.format import Format, Header, Image, Native
from medseg.scratch import IN_MEMORY, Scratch


@final
class Dicom(Format):
    """`.series`: read only. Label maps for such an image are NIfTI, or what `medseg.io.exports` writes."""

    name = "DICOM"

    def header(self, path: Path, label: bool = False) -> Header:
        """See `Format.header`."""
        return _header(usable(find_volume(path)))

    def read(self, path: Path, label: bool = False, scratch: Scratch = IN_MEMORY) -> Image:
        """See `Format.read`."""
        volume = usable(find_volume(path))
        return Image(read_voxels(volume, scratch), volume.grid, _header(volume).native)

    def write(self, path: Path, array: Array, grid: Grid, like: Path | None) -> None:
        """Not possible. Raises ImageError."""
        raise ImageError.of(
            "a DICOM series is not written as an image", where=str(path), expected="a label map as .nii.gz, or --format seg"
        )


def _header(volume: Volume) -> Header:
    native = Native(Dicom.name, volume.dtype, volume.spaced, tuple(str(warning) for warning in volume.warnings))
    return Header(volume.grid.shape, len(volume.frames) * volume.samples, volume.grid, volume.dtype, native)
