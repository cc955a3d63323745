"""NIfTI-1 and NIfTI-2, plain or gzip. The header is read and written byte by byte, so that nothing of the geometry changes on the way.

A file `(X, Y)` is 2D, `(X, Y, Z)` is 3D (also with Z = 1), `(X, Y, Z, C)` has channels; `(X, Y, Z, 1, C)` is how ITK writes vectors, and
with Z = 1 it is a 2D image with channels. Header extensions are not carried over to predictions: they may hold patient data.
Standard: https://nifti.nimh.nih.gov/nifti-1
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO, Literal, cast, final

import numpy as np

from medseg.errors import ImageError
from medseg.geometry import Array, Grid, Shape
from medseg.io.format import Format, Header, Image, Native, check_grid, numbers, zero_spacing
from medseg.io.nifti_header import COLOURS, SIZES, RawHeader
from medseg.scratch import IN_MEMORY, Scratch, release

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown, metre, millimetre, micrometre
ORDERS: tuple[tuple[Literal["<", ">"], Literal["little", "big"]], ...] = (("<", "little"), (">", "big"))
PIECE = 2**22  # bytes read or written at once


@final
class Nifti(Format):
    """`.nii` and `.nii.gz`."""

    name = "NIfTI"

    def header(self, path: Path, label: bool = False) -> Header:
        """See `Format.header`."""
        with _open(path) as file:
            return self._header(path, _raw_header(path, file))

    def _header(self, path: Path, raw: RawHeader) -> Header:
        shape, channels = _layout(path, raw)
        dtype = _dtype(path, raw)
        affine, warnings = _affine(path, raw, len(shape))
        grid = Grid(shape, affine)
        check_grid(path, grid)
        native = Native(self.name, dtype.name, True, warnings)
        return Header(shape, channels, grid, dtype.name, native)

    def read(self, path: Path, label: bool = False, scratch: Scratch = IN_MEMORY) -> Image:
        """See `Format.read`."""
        with _open(path) as file:
            raw = _raw_header(path, file)
            header = self._header(path, raw)
            values = _voxels(path, raw, file, scratch)
        d = len(header.shape)
        if int(raw["datatype"]) in COLOURS:
            stored = values.reshape(*header.shape, COLOURS[int(raw["datatype"])])
            array = np.ascontiguousarray(np.moveaxis(stored, -1, 0)[:3])  # transparency carries no signal
        else:
            array = values.reshape(header.channels, *header.shape)  # the file varies x fastest and channels slowest
        assert array.ndim == d + 1
        return Image(_scaled(path, raw, array, scratch), header.grid, header.native)

    def write(self, path: Path, array: Array, grid: Grid, like: Path | None, interval: float = 0.0) -> None:
        """See `Format.write`; where the channels are time points, `interval` is the seconds between them."""
        if like is None:
            raw = _new_header(grid)
        else:
            with _open(like) as file:
                raw = _raw_header(like, file)
        _set_voxels(raw, array)
        if interval > 0:
            raw["pixdim"][4] = interval
            raw["xyzt_units"] = 2 + 8  # millimetres and seconds
        body = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder(raw.endianness))
        with path.open("wb") as written:
            if path.name.lower().endswith(".gz"):
                # No time and no name in the stream: same prediction, same bytes.
                with gzip.GzipFile("", "wb", 4, written, mtime=0) as stream:
                    _dump(cast("IO[bytes]", stream), raw, body)
            else:
                _dump(written, raw, body)


def _dump(file: IO[bytes], raw: RawHeader, body: Array) -> None:
    file.write(raw.block)
    file.write(b"\0\0\0\0")  # no extensions
    view = body.data.cast("B")
    for start in range(0, len(view), PIECE):
        file.write(view[start : start + PIECE])
        release(body)


def _open(path: Path) -> IO[bytes]:
    try:
        return cast("IO[bytes]", gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from None


def _raw_header(path: Path, file: IO[bytes]) -> RawHeader:
    """The header as it stands in the file, which is read from its beginning."""
    try:
        start = file.read(540)
    except gzip.BadGzipFile:
        raise _not_gzip(path) from None
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None
    for version, size in SIZES.items():
        for order, name in ORDERS:
            if start[:4] == size.to_bytes(4, name) and len(start) >= size:
                raw = RawHeader(start[:size], version, order)
                if bytes(raw["magic"].item()).startswith(b"n+"):
                    return raw
                raise ImageError.of(
                    "is an Analyze header or one half of a NIfTI pair",
                    where=str(path),
                    expected="single-file NIfTI ('n+1')",
                    fix="Convert it to .nii.gz (nibabel.save).",
                )
    fix = "The file is gzip-compressed: rename it to .nii.gz." if start[:2] == b"\x1f\x8b" else "Re-export or download the file again."
    raise ImageError.of(
        "is not a NIfTI file", where=str(path), found=_begin(start), expected="a header of 348 or 540 bytes with magic 'n+1'", fix=fix
    )


def _begin(start: bytes) -> str:
    return f"{len(start)} bytes that begin with {start[:4].hex(' ')}" if start else "an empty file"


def _not_gzip(path: Path) -> ImageError:
    with path.open("rb") as file:
        start = file.read(540)
    plain = len(start) >= 4 and int.from_bytes(start[:4], "little") in (348, 540)
    return cast(
        ImageError,
        ImageError.of(
            "is not gzip-compressed although its name ends in .gz",
            where=str(path),
            found="an uncompressed NIfTI file" if plain else _begin(start[:8]),
            expected="gzip data (1f 8b)",
            fix="Rename it to .nii." if plain else "Download or export the file again.",
        ),
    )


def _unreadable(path: Path, error: Exception) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return cast(ImageError, ImageError.of("the file does not exist", where=str(path), fix="Check the path, or restore the file."))
    damaged = isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile))
    return cast(
        ImageError,
        ImageError.of(
            "is truncated or damaged" if damaged else "cannot be read",
            where=str(path),
            found=(error.strerror if isinstance(error, OSError) else "") or str(error),
            fix="Download or export the file again." if damaged else "",
        ),
    )


def _layout(path: Path, raw: RawHeader) -> tuple[Shape, int]:
    """Spatial shape `(Z, Y, X)` or `(Y, X)` and number of channels."""
    count = int(raw["dim"][0])
    dim = [int(n) for n in raw["dim"][1 : 1 + max(0, min(count, 7))]]
    while len(dim) > 4 and dim[-1] == 1:
        dim.pop()
    bad = not 2 <= count <= 7 or min(dim) < 1
    colours = COLOURS.get(int(raw["datatype"]))
    if not bad and len(dim) <= 3:
        return tuple(reversed(dim)), min(colours or 1, 3)
    if not bad and len(dim) == 4 and (colours is None or dim[3] == 1):
        return tuple(reversed(dim[:3])), min(colours or dim[3], 3) if colours else dim[3]
    if not bad and len(dim) == 5 and dim[3] == 1 and colours is None:
        spatial = dim[:2] if dim[2] == 1 else dim[:3]
        return tuple(reversed(spatial)), dim[4]
    raise ImageError.of(
        "has a shape that is no image",
        where=str(path),
        found=" x ".join(str(n) for n in dim) or f"{count} dimensions",
        expected="(X, Y), (X, Y, Z) or (X, Y, Z, channels)",
        fix="Split time series into one file per time point.",
    )


def _dtype(path: Path, raw: RawHeader) -> np.dtype:
    """The type of the values as read, after scaling."""
    stored = raw.dtype
    if stored is None or (stored.fields is None and stored.kind not in "iuf"):
        raise ImageError.of(
            "holds values that are no real numbers",
            where=str(path),
            found=f"data type {int(raw['datatype'])}" + (f" ({stored})" if stored is not None else ""),
            expected="integers or floats",
            fix="Export magnitudes or labels as integers or floats.",
        )
    if stored.fields is not None:
        return np.dtype(np.uint8)
    if _scale(path, raw) is not None:
        return np.dtype(np.float32)
    return np.dtype(np.float64) if stored.itemsize > 8 else np.dtype(stored.newbyteorder("="))


def _scale(path: Path, raw: RawHeader) -> tuple[float, float] | None:
    try:
        scale = raw.scale
    except ValueError:
        raise ImageError.of(
            "the intensity scaling in the header is impossible",
            where=str(path),
            found=f"scl_slope {float(raw['scl_slope'])}, scl_inter {float(raw['scl_inter'])}",
            expected="finite numbers",
            fix="Re-export the image.",
        ) from None
    return None if scale == (1, 0) else scale


def _scaled(path: Path, raw: RawHeader, array: Array, scratch: Scratch) -> Array:
    scale = None if int(raw["datatype"]) in COLOURS else _scale(path, raw)
    if scale is None:
        return array
    # In float64 slice by slice: a CT with slope 1 stays exact, and memory holds one copy of the image.
    scaled = scratch.zeros(array.shape, np.float32)
    for channel, out in zip(array, scaled, strict=True):
        for plane, target in zip(channel, out, strict=True):
            target[...] = plane.astype(np.float64) * scale[0] + scale[1]
        release(array)
        release(scaled)
    return scaled


def _voxels(path: Path, raw: RawHeader, file: IO[bytes], scratch: Scratch) -> Array:
    stored = raw.dtype
    assert stored is not None  # `_dtype` has checked it
    count = int(np.prod([int(n) for n in raw["dim"][1 : 1 + int(raw["dim"][0])]], dtype=np.int64))
    _check_size(path, count * stored.itemsize)
    buffer = scratch.zeros((count * stored.itemsize,), np.uint8)
    view = buffer.data
    got = 0
    try:
        file.seek(max(int(np.nan_to_num(raw["vox_offset"])), len(raw.block)))
        while got < len(view):
            step = file.readinto(view[got : got + PIECE])  # type: ignore[attr-defined]
            if not step:
                raise EOFError(f"{got} of {len(view)} bytes of voxels")
            got += step
            release(buffer)
        if path.name.lower().endswith(".gz"):
            while file.read(2**20):  # to the end of the stream, where gzip checks its sum
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None
    if stored.fields is not None:
        return buffer
    values: Array = buffer.view(stored)
    native = np.dtype(np.float64) if stored.itemsize > 8 else stored.newbyteorder("=")
    converted: Array = values.astype(native, copy=False)
    return converted


def _check_size(path: Path, needed: int) -> None:
    """Refuse a header that promises more than the file can hold before room is made for it (deflate shrinks to 1/1032 at best)."""
    size = path.stat().st_size
    if needed > size * (1032 if path.name.lower().endswith(".gz") else 1):
        raise _unreadable(path, EOFError(f"{size} bytes, where the header promises {needed} bytes of voxels"))


def _affine(path: Path, raw: RawHeader, d: int) -> tuple[Array, tuple[str, ...]]:
    """Index in array order to LPS millimetres, and warnings. The sform counts where its code is positive, then the qform."""
    spacing = tuple(float(v) for v in raw["pixdim"][1 : 1 + d])
    if not all(np.isfinite(v) and v > 0 for v in spacing):
        raise zero_spacing(path, spacing)
    pixdim = raw["pixdim"].copy()
    if pixdim[0] not in (1, -1):
        pixdim[0] = 1  # the standard: 0 means 1
    if d == 2:
        pixdim[3] = 1  # unused, and often 0
    warnings: list[str] = []
    has_s, has_q = int(raw["sform_code"]) > 0, int(raw["qform_code"]) > 0
    try:
        qform = raw.qform(pixdim) if has_q else None
    except ValueError as error:
        if not has_s:
            raise ImageError.of(
                "the orientation (qform) in the header is impossible",
                where=str(path),
                found=f"quaternion {numbers(raw['quatern'])}",
                expected="a unit quaternion",
                fix="Re-export the image, or repair its header.",
            ) from None
        warnings.append(f"the qform is impossible ({error}); the sform counts")
        qform = None
    ras = raw.sform() if has_s else qform if qform is not None else raw.plain(pixdim)
    if has_s and qform is not None and np.isfinite(ras).all():
        shape = _layout(path, raw)[0]
        far = float(np.linalg.norm((qform - ras) @ np.array([*reversed(shape), *([0] * (3 - d)), 1.0])))
        if far > 0.1 * min(spacing):
            warnings.append(f"sform and qform differ by {far:.3g} mm at the far corner; the sform counts")
    if not has_s and not has_q:
        warnings.append("the header says no orientation (sform and qform codes are 0); axes are taken as left, anterior, superior")
    lps = RAS_TO_LPS @ np.asarray(ras, dtype=np.float64)
    scale = MILLIMETRES.get(int(raw["xyzt_units"]) & 7, 1.0)
    lps[:3] *= scale
    if d == 3:
        return lps[:, [2, 1, 0, 3]], tuple(warnings)
    flat = lps[np.ix_([0, 1, 3], [1, 0, 3])]
    true = np.linalg.norm(lps[:3, [1, 0]], axis=0)
    if np.isfinite(lps).all() and not np.allclose(np.linalg.norm(flat[:2, :2], axis=0), true, rtol=1e-3):
        return Grid.plain((1, 1), (float(true[0]), float(true[1]))).affine, tuple(
            warnings
        )  # a plane that is not axial: spacing is what counts
    return flat, tuple(warnings)


def _set_voxels(raw: RawHeader, array: Array) -> None:
    """Make a header describe `(K, *shape)`; geometry fields stay untouched."""
    spatial = list(reversed(array.shape[1:]))
    padding = [1, 1] if len(spatial) == 2 else []
    dim = [*spatial, *padding, array.shape[0]] if array.shape[0] > 1 else spatial
    raw["dim"] = [len(dim), *dim, *([1] * (7 - len(dim)))]
    raw.dtype = array.dtype
    raw["scl_slope"], raw["scl_inter"] = 1, 0
    raw["cal_min"] = raw["cal_max"] = 0
    raw["intent_code"] = 1007 if len(dim) == 5 else 0
    raw["vox_offset"] = len(raw.block) + 4


def _new_header(grid: Grid) -> RawHeader:
    from nibabel import Nifti1Header

    made = Nifti1Header(endianness="<")
    made.set_data_shape(tuple(reversed(grid.shape)))
    d = grid.ndim
    affine = np.eye(4)
    if d == 3:
        affine[:] = RAS_TO_LPS @ grid.affine[:, [2, 1, 0, 3]]
    else:
        affine[np.ix_([0, 1, 3], [0, 1, 3])] = np.diag([-1.0, -1.0, 1.0]) @ grid.affine[:, [1, 0, 2]]
    made.set_sform(affine, code=1)
    made.set_qform(affine, code=1, strip_shears=True)
    made.set_zooms(tuple(reversed(grid.spacing)))
    made.set_xyzt_units("mm")
    return RawHeader(made.binaryblock, 1, "<")
