"""PNG, JPEG and BMP through Pillow. They hold no geometry: spacing is 1 (their resolution is meant for printing).

Transparency is dropped from images, colours stay as stored; palettes become colours in images and indices in labels.
Numbers of 24 bits are colours: R + 256 G + 65536 B, as in COCO's panoptic maps.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from medseg.errors import ImageError
from medseg.geometry import Array, Grid
from medseg.io.format import Format, Header, Image, Native
from medseg.scratch import IN_MEMORY, Scratch, release, row_slabs

GRAY = {"1": "uint8", "L": "uint8", "LA": "uint8", "I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}
DAMAGE = (OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError)


@final
class Raster(Format):
    """`.png`, `.jpg`, `.jpeg` and `.bmp`."""

    name = "raster"

    def header(self, path: Path, label: bool = False) -> Header:
        """See `Format.header`."""
        with _opened(path) as picture:
            channels = _channels(picture, label)
            dtype = GRAY.get(picture.mode, "uint8")
            shape = (picture.height, picture.width)
        return Header(shape, channels, Grid.plain(shape), dtype, Native(self.name, dtype, False))

    def read(self, path: Path, label: bool = False, scratch: Scratch = IN_MEMORY) -> Image:
        """See `Format.read`."""
        with _opened(path) as picture:
            channels = _channels(picture, label)
            mode = picture.mode
            if (mode == "P" and not label) or (mode not in GRAY and mode not in ("P", "RGB", "RGBA")):
                picture = picture.convert("RGB")
            expansion = _expansion(path) if label and mode == "L" else 1
            array: Array | None = None
            for rows in row_slabs((picture.height, picture.width)):
                part = np.asarray(picture.crop((0, rows.start, picture.width, rows.stop)))
                part = np.moveaxis(part, -1, 0)[:channels] if part.ndim == 3 else part[None]
                kind = np.dtype(np.uint8) if part.dtype == bool else part.dtype.newbyteorder("=")
                array = scratch.zeros((len(part), picture.height, picture.width), kind) if array is None else array
                array[:, rows] = part // expansion if expansion > 1 else part
                release(array)
        assert array is not None  # pictures have pixels
        return Image(array, Grid.plain(array.shape[1:]), Native(self.name, array.dtype.name, False))

    def write(self, path: Path, array: Array, grid: Grid, like: Path | None) -> None:
        """See `Format.write`. One channel of uint8, in PNG of uint16 where the array is or needs it, or colours `(3, *shape)` uint8."""
        png = path.name.lower().endswith(".png")
        most = 65535 if png else 255
        if array.shape[0] not in (1, 3) or grid.ndim != 2 or array.min(initial=0) < 0 or array.max(initial=0) > most:
            raise ImageError.of(
                "the format cannot hold this label map",
                where=str(path),
                found=f"{grid.ndim}D, values {array.min(initial=0)} to {array.max(initial=0)}",
                expected=f"2D, values 0 to {most}",
                fix="Write .tif or .nii.gz.",
            )
        kind = np.uint8 if array.max(initial=0) <= 255 and not (png and array.dtype == np.uint16) else np.uint16
        values = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
        Pillow.fromarray(np.ascontiguousarray(values.astype(kind))).save(path)


@contextmanager
def _opened(path: Path) -> Iterator[Pillow.Image]:
    limit = Pillow.MAX_IMAGE_PIXELS
    Pillow.MAX_IMAGE_PIXELS = None  # whole-slide regions are large on purpose
    try:
        if path.name.lower().endswith(".png"):
            _refuse_deep_colour(path)
        with Pillow.open(path) as picture:
            yield picture
    except FileNotFoundError:
        raise ImageError.of("the file does not exist", where=str(path), fix="Check the path, or restore the file.") from None
    except UnidentifiedImageError:
        with path.open("rb") as file:
            if file.read(132)[128:] == b"DICM":
                raise ImageError.of("is DICOM under a wrong suffix", where=str(path), fix="Rename it to .dcm.") from None
        raise ImageError.of(
            "is not an image of its suffix", where=str(path), found=f"{path.stat().st_size} bytes", fix="Export or download it again."
        ) from None
    except DAMAGE as error:
        raise ImageError.of("is truncated or damaged", where=str(path), found=str(error), fix="Export or download it again.") from None
    finally:
        Pillow.MAX_IMAGE_PIXELS = limit


def _png_kind(path: Path) -> tuple[int, int]:
    """Bit depth and colour type of a PNG (its header chunk is always the first)."""
    with path.open("rb") as file:
        start = file.read(26)
    return (start[24], start[25]) if len(start) == 26 and start[12:16] == b"IHDR" else (8, 0)


def _refuse_deep_colour(path: Path) -> None:
    depth, colour = _png_kind(path)
    if depth == 16 and colour != 0:
        raise ImageError.of(
            "16-bit colour PNG cannot be read without loss", where=str(path), expected="8-bit colour or 16-bit gray", fix="Save it as TIFF."
        )


def _expansion(path: Path) -> int:
    """Pillow stretches gray of 2 and 4 bits to 0..255; labels want the stored values back."""
    if not path.name.lower().endswith(".png"):
        return 1
    depth, colour = _png_kind(path)
    return {2: 85, 4: 17}.get(depth, 1) if colour == 0 else 1


def _channels(picture: Pillow.Image, label: bool) -> int:
    if picture.mode in GRAY or (label and picture.mode == "P"):
        return 1
    if picture.mode == "P":
        palette = np.array(cast("list[int]", picture.getpalette("RGB"))).reshape(-1, 3)
        return 1 if (palette == palette[:, :1]).all() else 3
    return 3


def joined(colours: NDArray[Any]) -> NDArray[np.int32]:
    """The numbers that colours `(3, *shape)` stand for: R + 256 G + 65536 B."""
    numbers: NDArray[np.int32] = colours[2].astype(np.int32)
    for channel in (colours[1], colours[0]):
        numbers <<= 8
        numbers |= channel
    return numbers


def coloured(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """The colours `(3, *shape)` of numbers up to 24 bits, as `joined` reads them."""
    colours = np.empty((3, *ids.shape), np.uint8)
    for rows in row_slabs(ids.shape):
        for k, channel in enumerate(colours):
            channel[rows] = ids[rows] >> 8 * k & 255
    return colours
