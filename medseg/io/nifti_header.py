"""The fields of a NIfTI header as they stand in the file, and the affine that they say.

nibabel reads the same; but it takes half a second to import (it brings pydicom along) and longer for a small file's header than its voxels
take. Field by field this is nibabel's arithmetic, and the tests hold it to the last bit.
Standard: https://nifti.nimh.nih.gov/nifti-1, https://nifti.nimh.nih.gov/pub/dist/doc/nifti2.h
"""

from __future__ import annotations

from typing import Any, Literal, final

import numpy as np

from medseg.geometry import Array

SIZES: dict[Literal[1, 2], int] = {1: 348, 2: 540}  # bytes by version
_PLACES: dict[Literal[1, 2], dict[str, tuple[str, int]]] = {  # name: type, byte
    1: {
        "dim": ("8i2", 40), "intent_code": ("i2", 68), "datatype": ("i2", 70), "bitpix": ("i2", 72), "pixdim": ("8f4", 76),
        "vox_offset": ("f4", 108), "scl_slope": ("f4", 112), "scl_inter": ("f4", 116), "xyzt_units": ("u1", 123), "cal_max": ("f4", 124),
        "cal_min": ("f4", 128), "qform_code": ("i2", 252), "sform_code": ("i2", 254), "quatern": ("3f4", 256), "qoffset": ("3f4", 268),
        "srow": ("(3,4)f4", 280), "magic": ("S4", 344),
    },
    2: {
        "magic": ("S4", 4), "datatype": ("i2", 12), "bitpix": ("i2", 14), "dim": ("8i8", 16), "pixdim": ("8f8", 104),
        "vox_offset": ("i8", 168), "scl_slope": ("f8", 176), "scl_inter": ("f8", 184), "cal_max": ("f8", 192), "cal_min": ("f8", 200),
        "qform_code": ("i4", 344), "sform_code": ("i4", 348), "quatern": ("3f8", 352), "qoffset": ("3f8", 376), "srow": ("(3,4)f8", 400),
        "xyzt_units": ("i4", 500), "intent_code": ("i4", 504),
    },
}  # fmt: skip
FIELDS = {
    version: np.dtype(
        {
            "names": list(places),
            "formats": [kind for kind, _ in places.values()],
            "offsets": [byte for _, byte in places.values()],
            "itemsize": SIZES[version],
        }
    )
    for version, places in _PLACES.items()
}
COLOURS = {128: 3, 2304: 4}  # data types RGB24 and RGBA32: bytes per voxel
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 32: "c8", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8", 1792: "c16"}
if np.finfo(np.longdouble).nmant == 112:  # IEEE binary128, which few machines have
    TYPES |= {1536: "f16", 2048: "c32"}
ROUNDING: dict[Literal[1, 2], float] = {
    1: 3 * float(np.finfo(np.float32).eps),
    2: 3 * float(np.finfo(np.float64).eps),
}  # in a quaternion's fourth number


@final
class RawHeader:
    """The fields by their names in the standard, triples together (`quatern`, `qoffset`, `srow`); they may be set.

    Args:
        block: 348 bytes of version 1, or 540 of version 2.
        endianness: byte order of the file.
    """

    def __init__(self, block: bytes, version: Literal[1, 2], endianness: Literal["<", ">"]) -> None:
        self.version, self.endianness = version, endianness
        self._block = bytearray(block)
        self._fields = np.frombuffer(self._block, FIELDS[version].newbyteorder(endianness)).reshape(())

    def __getitem__(self, name: str) -> Array:
        return self._fields[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._fields[name] = value

    @property
    def block(self) -> bytes:
        """The header's bytes."""
        return bytes(self._block)

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """Of a stored voxel, in the file's byte order; None where the code has no meaning here."""
        code = int(self["datatype"])
        if code in COLOURS:
            return np.dtype([(name, "u1") for name in "RGBA"[: COLOURS[code]]])
        return np.dtype(TYPES[code]).newbyteorder(self.endianness) if code in TYPES else None

    @dtype.setter
    def dtype(self, dtype: np.dtype[Any]) -> None:
        self["datatype"] = next(code for code, name in TYPES.items() if np.dtype(name) == dtype.newbyteorder("="))
        self["bitpix"] = 8 * dtype.itemsize

    @property
    def scale(self) -> tuple[float, float] | None:
        """Slope and intercept; None where there are none. Raises ValueError for an intercept that is no number."""
        slope, inter = float(self["scl_slope"]), float(self["scl_inter"])
        if slope == 0 or not np.isfinite(slope):
            return None
        if not np.isfinite(inter):
            raise ValueError(f"intercept {inter}")
        return slope, inter

    def sform(self) -> Array:
        """Index to RAS, `(4, 4)`."""
        affine = np.eye(4)
        affine[:3] = self["srow"]
        return affine

    def qform(self, pixdim: Array) -> Array:
        """Index to RAS, `(4, 4)`, of a rotation and voxel sizes.

        Args:
            pixdim: in place of the header's: sign of the third axis, then the size along each.

        Raises:
            ValueError: the quaternion is none.
        """
        affine = np.eye(4)
        affine[:3, :3] = np.dot(_rotation(self["quatern"], self.version), np.diag([*pixdim[1:3], pixdim[3] * pixdim[0]]))
        affine[:3, 3] = self["qoffset"]
        return affine

    def plain(self, pixdim: Array) -> Array:
        """Index to RAS, `(4, 4)`, where the header says nothing: x to the left, the origin in the middle."""
        count = min(int(self["dim"][0]), 3)
        zooms, shape = np.ones(3), np.ones(3)
        zooms[:count], shape[:count] = pixdim[1 : count + 1], self["dim"][1 : count + 1]
        zooms[0] *= -1
        affine = np.diag([*zooms, 1.0])
        affine[:3, 3] = -(shape - 1) / 2 * zooms
        return affine


def _rotation(xyz: Array, version: Literal[1, 2]) -> Array:
    """The matrix of a unit quaternion of which the last three numbers are known, the first being positive; in extended precision."""
    x, y, z = xyz.astype(np.longdouble)
    w2 = 1.0 - np.dot(xyz.astype(np.longdouble), xyz.astype(np.longdouble))
    if abs(w2) < ROUNDING[version]:
        w = np.longdouble(0)
    elif w2 < 0:
        raise ValueError(f"w2 should be positive, but is {w2:e}")
    else:
        w = np.sqrt(w2)
    s = 2.0 / (w * w + x * x + y * y + z * z)
    xs, ys, zs = x * s, y * s, z * s
    wx, wy, wz, xx, xy, xz, yy, yz, zz = w * xs, w * ys, w * zs, x * xs, x * ys, x * zs, y * ys, y * zs, z * zs
    return np.array([[1.0 - (yy + zz), xy - wz, xz + wy], [xy + wz, 1.0 - (xx + zz), yz - wx], [xz - wy, yz + wx, 1.0 - (xx + yy)]])
