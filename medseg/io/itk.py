"""NRRD and MetaImage through SimpleITK. The fourth axis of 4D files, or the components of vectors, are the channels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import SimpleITK as sitk  # noqa: N813

from medseg.errors import ImageError
from medseg.geometry import Array, Grid
from medseg.io.format import Format, Header, Image, Native, check_grid, zero_spacing
from medseg.scratch import IN_MEMORY, Scratch


@final
class Itk(Format):
    """`.nrrd`, `.mha` and `.mhd`."""

    name = "ITK"

    def header(self, path: Path, label: bool = False) -> Header:
        """See `Format.header`."""
        with _refusals(path):
            reader = _reader(path)
            size, components = reader.GetSize(), reader.GetNumberOfComponents()
            spacing, origin, direction = reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection()
            pixel = reader.GetPixelID()
        return _header(path, size, components, spacing, origin, direction, pixel)

    def read(self, path: Path, label: bool = False, scratch: Scratch = IN_MEMORY) -> Image:
        """See `Format.read`."""
        header = self.header(path, label)
        with _refusals(path):
            image = _reader(path).Execute()
        values = sitk.GetArrayFromImage(image)
        components = image.GetNumberOfComponentsPerPixel()
        array = values.reshape(header.channels, *header.shape) if components == 1 else np.ascontiguousarray(np.moveaxis(values, -1, 0))
        return Image(scratch.keep(array), header.grid, header.native)

    def write(self, path: Path, array: Array, grid: Grid, like: Path | None) -> None:
        """See `Format.write`."""
        d = grid.ndim
        image = sitk.GetImageFromArray(array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, -1), isVector=array.shape[0] > 1)
        if like is not None:
            reader = _reader(like)
            spacing, origin = reader.GetSpacing()[:d], reader.GetOrigin()[:d]
            direction = np.array(reader.GetDirection()).reshape(reader.GetDimension(), -1)[:d, :d]
        else:
            spacing, origin, direction = grid.spacing[::-1], grid.origin, grid.direction[:, ::-1]
        image.SetSpacing(tuple(spacing))
        image.SetOrigin(tuple(origin))
        image.SetDirection(tuple(np.asarray(direction).ravel()))
        if path.name.lower().endswith(".mhd"):
            _write_pair(path, image)
        else:
            sitk.WriteImage(image, str(path), useCompression=True)


def _write_pair(path: Path, image: Any) -> None:
    """A `.mhd` names its data file, which ITK would call after the temporary header: write both parts here, the data first."""
    whole = path.with_name(path.name + ".mha")
    try:
        sitk.WriteImage(image, str(whole), useCompression=True)
        content = whole.read_bytes()
    finally:
        whole.unlink(missing_ok=True)
    head, mark, data = content.partition(b"ElementDataFile = LOCAL\n")
    final_name = path.name.split(".partial.", 1)[-1]
    data_name = final_name[: -len(".mhd")] + ".zraw"
    part = path.with_name(path.name + ".zraw")
    part.write_bytes(data)
    os.replace(part, path.with_name(data_name))
    path.write_bytes(head + mark.replace(b"LOCAL", data_name.encode()))


def _reader(path: Path) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _header(path: Path, size: Any, components: int, spacing: Any, origin: Any, direction: Any, pixel: int) -> Header:
    dimension = len(size)
    if dimension not in (2, 3, 4) or (dimension == 4 and components > 1):
        raise ImageError.of(
            "has a shape that is no image",
            where=str(path),
            found=f"{' x '.join(str(n) for n in size)} with {components} components",
            expected="2D, 3D, or 3D with channels",
            fix="Split time series into one file per time point.",
        )
    d = min(dimension, 3)
    channels = int(size[3]) if dimension == 4 else int(components)
    if not all(np.isfinite(v) and v > 0 for v in spacing[:d]):
        raise zero_spacing(path, tuple(spacing[:d]))
    axes = np.array(direction, dtype=np.float64).reshape(dimension, dimension)[:d, :d]
    affine = np.eye(d + 1)
    affine[:d, :d] = (axes * np.array(spacing[:d]))[:, ::-1]
    affine[:d, d] = origin[:d]
    grid = Grid(tuple(int(n) for n in size[:d][::-1]), affine)
    check_grid(path, grid)
    kind = _dtype(path, pixel)
    return Header(grid.shape, channels, grid, kind, Native("ITK", kind, True))


WORDS = {
    f"{bits}-bit {text}": f"{kind}{bits}"
    for text, kind, sizes in (
        ("unsigned integer", "uint", (8, 16, 32, 64)),
        ("signed integer", "int", (8, 16, 32, 64)),
        ("float", "float", (32, 64)),
    )
    for bits in sizes
}


def _dtype(path: Path, pixel: int) -> str:
    text = str(sitk.GetPixelIDValueAsString(pixel))
    name = WORDS.get(text.removeprefix("vector of "))
    if name is None:
        raise ImageError.of("holds values that are no real numbers", where=str(path), found=text, expected="integers or floats")
    return name


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """ITK's exceptions as ImageErrors, and its warnings (which go to the terminal past Python) off."""
    if not path.is_file():
        raise ImageError.of("the file does not exist", where=str(path), fix="Check the path, or restore the file.")
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = next((line for line in reversed(lines) if "rror" in line or "xception" in line), lines[-1] if lines else "")
        raise ImageError.of(
            "is truncated, damaged, or has an impossible header", where=str(path), found=cause[:200], fix="Export or download it again."
        ) from None
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
