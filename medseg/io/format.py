"""What every file format gives and takes: an image with its grid, a header without voxels, and a writer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from medseg.errors import ImageError
from medseg.geometry import Array, Grid, Shape
from medseg.scratch import IN_MEMORY, Scratch, release, row_slabs

SINGULAR = 1e-4  # |det| of the unit axes below which they no longer span space


@dataclass(frozen=True)
class Native:
    """What a file says beside its voxels.

    Attributes:
        format: name of the format.
        dtype: numpy name of the type of the values as they are read.
        spaced: whether the file says where its voxels lie; photographs do not, and their grid has spacing 1.
        warnings: oddities that do not prevent reading.
        listed: for label maps in a file that lists many, which image this one is of, and where it is told how large that is.
    """

    format: str
    dtype: str
    spaced: bool
    warnings: tuple[str, ...] = ()
    listed: str = ""


@dataclass(frozen=True)
class Header:
    """An image file without its voxels: `shape` is spatial, `(Z, Y, X)` or `(Y, X)`."""

    shape: Shape
    channels: int
    grid: Grid
    dtype: str
    native: Native


@dataclass(frozen=True)
class Image:
    """An image in memory: `array` is `(C, *grid.shape)` of any real type, `grid` is in LPS millimetres; `fields` as in `Case`."""

    array: Array
    grid: Grid
    native: Native
    fields: tuple[Grid | None, ...] = ()


class Format(ABC):
    """One file format, chosen by suffix."""

    name: ClassVar[str]

    @abstractmethod
    def header(self, path: Path, label: bool = False) -> Header:
        """The header, without reading voxels; `label` reads palettes as indices. Raises ImageError."""

    @abstractmethod
    def read(self, path: Path, label: bool = False, scratch: Scratch = IN_MEMORY) -> Image:
        """The image; `label` reads palettes as indices. Raises ImageError.

        The array comes from `scratch`. NIfTI is read piece by piece; other formats' libraries hold the whole image while they read.
        """

    @abstractmethod
    def write(self, path: Path, array: Array, grid: Grid, like: Path | None) -> None:
        """Write `(K, *shape)` to the path as it is (not atomically); the file holds a `(*shape)` map when K is 1.

        Args:
            grid: the geometry, where `like` is None.
            like: a file of this format whose geometry is taken over to the bit.
        """


def smallest_integer(array: Array) -> np.dtype:
    """The smallest of uint8, int16, uint16, int32 and int64 that holds every value."""
    low, high = 0, 0
    for rows in row_slabs(array.shape) if array.size else ():
        low, high = min(low, int(array[rows].min())), max(high, int(array[rows].max()))
        release(array)
    for kind in (np.uint8, np.int16, np.uint16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.int64)


def check_grid(path: Path, grid: Grid) -> None:
    """Refuse a grid that no voxel can lie on.

    Raises:
        ImageError: NaN in the affine, spacing that is zero, or axes that lie in one plane.
    """
    if not np.isfinite(grid.affine).all():
        raise ImageError.of(
            "the affine holds NaN or infinite values",
            where=str(path),
            found=numbers(grid.affine[: grid.ndim].ravel()),
            expected="finite numbers",
            fix="Re-export the image, or repair the header (nibabel: image.set_sform, image.set_qform).",
        )
    if min(grid.spacing) <= 0:
        raise zero_spacing(path, grid.spacing)
    if abs(float(np.linalg.det(grid.direction))) < SINGULAR:
        raise ImageError.of(
            "the affine is singular: two axes of the image point the same way",
            where=str(path),
            found=numbers(grid.affine[: grid.ndim, : grid.ndim].ravel()),
            expected="independent axes",
            fix="Re-export the image from its source, or repair the orientation in its header.",
        )


def zero_spacing(path: Path, spacing: tuple[float, ...]) -> ImageError:
    """The error for spacing that is zero, negative or not a number; `spacing` is shown as the file has it."""
    error = ImageError.of(
        "the voxel spacing is impossible",
        where=str(path),
        found=f"{numbers(spacing)} mm",
        expected="positive millimetres along every axis",
        fix="Write the true spacing into the header, or re-export the image.",
    )
    assert isinstance(error, ImageError)
    return error


def numbers(values: object) -> str:
    """Numbers for an error text, short: `0.5 x 1 x 3`."""
    return " x ".join(f"{float(v):.6g}" for v in np.asarray(values).ravel())
