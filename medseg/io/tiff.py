"""TIFF through tifffile: 2D, stacks and channels; spacing where ImageJ or OME metadata give it, otherwise 1."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import tifffile
from PIL import Image as Pillow

from medseg.errors import ImageError
from medseg.geometry import Array, Grid
from medseg.io.format import Format, Header, Image, Native, check_grid, zero_spacing
from medseg.scratch import IN_MEMORY, Scratch, copy, release

MICRO = ("um", "µm", "\u03bcm", "\\u00b5m", "micron", "microns", "micrometer")  # ImageJ also escapes the sign
UNITS = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1000.0, "nm": 1e-6, "nanometer": 1e-6, **dict.fromkeys(MICRO, 1e-3)}


@final
class Tiff(Format):
    """`.tif` and `.tiff`."""

    name = "TIFF"

    def header(self, path: Path, label: bool = False) -> Header:
        """See `Format.header`."""
        with _opened(path) as file:
            return _header(path, file)[0]

    def read(self, path: Path, label: bool = False, scratch: Scratch = IN_MEMORY) -> Image:
        """See `Format.read`."""
        with _opened(path) as file:
            header, order = _header(path, file)
            series = file.series[0]
            pages = [p for p in series.pages if p is not None]
            if len(pages) == 1 and pages[0].compression == tifffile.COMPRESSION.LZW:
                # LZW is frequent, and tifffile reads it only with another package.
                with Pillow.open(path) as picture:
                    values = np.array(picture)
                values = values.reshape(series.shape) if values.size == int(np.prod(series.shape)) else _not_readable(path)
            else:  # into a plain view, because tifffile would wait for the disk
                values = series.asarray(out=np.asarray(scratch.zeros(series.shape, series.dtype.newbyteorder("="))))
        squeezed = values.reshape([n for n, letter in zip(values.shape, series.axes, strict=True) if letter in order])
        letters = [letter for letter in series.axes if letter in order]
        array = squeezed.transpose([letters.index(letter) for letter in order])
        if order[0] not in "CS":
            array = array[None]
        array = array[: header.channels]
        if array.dtype == bool:
            array = array.view(np.uint8)
        if not array.flags.c_contiguous:
            channels = scratch.zeros(array.shape, array.dtype)
            for source, target in zip(array, channels, strict=True):
                copy(source, target)
            array = channels
        release(array)
        return Image(array, header.grid, header.native)

    def write(self, path: Path, array: Array, grid: Grid, like: Path | None) -> None:
        """See `Format.write`. An ImageJ file, which is how spacing in mm is kept; larger integers, which that does not know, in an OME file."""
        kind = array.dtype
        if kind == np.int16 or (kind.itemsize > 2 and kind.kind in "iu"):
            if array.min(initial=0) < 0 or array.max(initial=0) > 2**32 - 1:
                raise ImageError.of("TIFF label maps hold values from 0 to 4294967295", where=str(path), fix="Write .nii.gz.")
            kind = np.dtype(np.uint16 if array.max(initial=0) < 2**16 else np.uint32)
            array = array.view(kind) if kind.itemsize == array.itemsize else array.astype(kind)
        axes = ("Z" if grid.ndim == 3 else "") + ("C" if array.shape[0] > 1 else "") + "YX"
        data = array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, 1) if grid.ndim == 3 else array
        metadata: dict[str, Any] = {"axes": axes, "unit": "mm"}
        if grid.ndim == 3:
            metadata["spacing"] = grid.spacing[0]
        spaced = True
        if like is not None:
            with _opened(like) as file:
                spaced = _spacing(file)[1]
        if not spaced:
            metadata = {"axes": axes}
        resolution = (1 / grid.spacing[-1], 1 / grid.spacing[-2])
        if array.dtype == np.uint32:
            sizes = zip("ZYX"[-grid.ndim :], grid.spacing, strict=True) if spaced else ()
            told = {key: value for axis, size in sizes for key, value in ((f"PhysicalSize{axis}", size), (f"PhysicalSize{axis}Unit", "mm"))}
            tifffile.imwrite(path, data, ome=True, metadata={"axes": axes, **told})
            return
        tifffile.imwrite(path, data, imagej=True, resolution=resolution, metadata=metadata)


def _not_readable(path: Path) -> Array:
    raise ImageError.of("this LZW-compressed TIFF cannot be read", where=str(path), fix="Save it with Deflate or without compression.")


def _header(path: Path, file: Any) -> tuple[Header, str]:
    """The header, and the axes to bring the values to: channels first, then z, y, x."""
    series = file.series[0]
    sizes = dict(zip(series.axes, series.shape, strict=True))
    kept = {letter: n for letter, n in sizes.items() if n > 1 or letter in "YXZ"}
    depth = [letter for letter in kept if letter in "ZIQT"]
    colour = [letter for letter in kept if letter in "CS"]
    other = [letter for letter in kept if letter not in "ZIQTCSYX"]
    if other or len(depth) > 1 or len(colour) > 1 or "Y" not in kept or "X" not in kept or series.dtype.kind not in "iufb":
        raise ImageError.of(
            "has a shape that is no image",
            where=str(path),
            found=f"axes {series.axes} of {' x '.join(str(n) for n in series.shape)}, {series.dtype}",
            expected="YX, ZYX, and one axis of channels",
            fix="Split time series and positions into one file each.",
        )
    order = "".join([*colour, *depth, "Y", "X"])
    spacing, spaced = _spacing(file)
    shape = tuple(int(sizes[letter]) for letter in [*depth, "Y", "X"])
    spacing = spacing[-len(shape) :]
    if not all(np.isfinite(v) and v > 0 for v in spacing):
        raise zero_spacing(path, spacing)
    grid = Grid.plain(shape, spacing)
    check_grid(path, grid)
    channels = int(sizes[colour[0]]) if colour else 1
    if colour == ["S"] and channels == 4:
        channels = 3  # transparency carries no signal
    dtype = "uint8" if series.dtype == bool else series.dtype.newbyteorder("=").name
    return Header(shape, channels, grid, dtype, Native("TIFF", dtype, spaced)), order


def _spacing(file: Any) -> tuple[tuple[float, ...], bool]:
    """`(z, y, x)` in mm, and whether the file says it."""
    if file.is_ome and file.ome_metadata:
        found = {}
        for axis in "ZYX":
            size = re.search(rf'PhysicalSize{axis}="([^"]+)"', file.ome_metadata)
            named = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', file.ome_metadata)
            if size:
                found[axis] = float(size.group(1)) * UNITS.get(named.group(1) if named else "um", 1e-3)
        if "Y" in found and "X" in found:
            return (found.get("Z", 1.0), found["Y"], found["X"]), True
    meta = file.imagej_metadata or {}
    unit = UNITS.get(str(meta.get("unit", "")).lower())
    tags = file.pages[0].tags
    if unit is None or "XResolution" not in tags or "YResolution" not in tags:
        return (1.0, 1.0, 1.0), False
    pairs = [tags[name].value for name in ("YResolution", "XResolution")]
    if any(0 in pair for pair in pairs):
        return (1.0, 1.0, 1.0), False
    y, x = (unit * pair[1] / pair[0] for pair in pairs)
    return (float(meta.get("spacing", 1.0)) * unit, y, x), True


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with tifffile.TiffFile(path) as file:
            yield file
    except FileNotFoundError:
        raise ImageError.of("the file does not exist", where=str(path), fix="Check the path, or restore the file.") from None
    except (OSError, ValueError, KeyError, IndexError, tifffile.TiffFileError) as error:
        text = str(error)
        missing = "imagecodecs" in text
        raise ImageError.of(
            "uses a compression that needs another package" if missing else "is truncated or damaged",
            where=str(path),
            found=text.split("\n")[0][:200],
            fix="pip install imagecodecs, or save it with Deflate." if missing else "Export or download it again.",
        ) from None
