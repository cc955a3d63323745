"""From stored numbers to what they mean: rescale slope and intercept, lookup tables, palettes, and the type that holds the result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from medseg.errors import ImageError
from medseg.geometry import Array
from medseg.io.dicom.groups import find, number, text, whole


@dataclass(frozen=True)
class Scaling:
    """How stored values of one frame become values: `slope * stored + intercept`.

    Attributes:
        slope: of the file or the frame; the dose grid scaling of a dose.
        intercept: of the file or the frame.
        table: a modality lookup table stands instead.
        palette: stored values are indices of colours.
        inverted: the smallest value is the brightest; it becomes the largest.
    """

    slope: float = 1.0
    intercept: float = 0.0
    table: bool = False
    palette: bool = False
    inverted: bool = False

    @property
    def exact(self) -> bool:
        """Whether integers stay integers."""
        return float(self.slope).is_integer() and float(self.intercept).is_integer()


def scaling(header: Dataset, index: int | None, flat: bool = False) -> Scaling:
    """The scaling of a frame, from the file or from its functional groups.

    Args:
        header: of the file; needs no pixels.
        index: of the frame; None in files of one image.
        flat: an image in 2D. Where its smallest value is the brightest (MONOCHROME1) it is inverted, so that bone is bright in every
            radiograph; volumes keep their values, which are quantities.
    """
    photometric = text(header.get("PhotometricInterpretation"))
    slope = number(find(header, index, "RescaleSlope", "PixelValueTransformationSequence"))
    intercept = number(find(header, index, "RescaleIntercept", "PixelValueTransformationSequence"))
    if text(header.get("Modality")) == "RTDOSE":
        slope = number(header.get("DoseGridScaling"))
    return Scaling(
        slope or 1.0,
        intercept or 0.0,
        table=bool(header.get("ModalityLUTSequence")),
        palette=photometric == "PALETTE COLOR",
        inverted=flat and photometric == "MONOCHROME1",
    )


def value_type(header: Dataset, scale: Scaling) -> np.dtype:
    """The type that holds every value of a frame: an integer where the scaling is whole, else float32."""
    if scale.palette:
        return np.dtype(np.uint8)
    if scale.table:
        entries = header.ModalityLUTSequence[0].get("LUTDescriptor") or (0, 0, 16)
        return smallest(0, 2 ** int(entries[2]) - 1)
    if "FloatPixelData" in header or "DoubleFloatPixelData" in header or not scale.exact or not whole(header.get("BitsAllocated")):
        return np.dtype(np.float32)
    ends = [value * int(scale.slope) + int(scale.intercept) for value in _stored(header)]
    return smallest(min(ends), max(ends))


def _stored(header: Dataset) -> tuple[int, int]:
    """The range of stored values."""
    allocated = whole(header.get("BitsAllocated")) or 16
    bits = min(whole(header.get("BitsStored")) or allocated, allocated)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if whole(header.get("PixelRepresentation")) == 1 else (0, 2**bits - 1)


def smallest(low: int, high: int) -> np.dtype:
    """The smallest of uint8, int16, uint16, int32 and float32 that holds the range."""
    for kind in (np.uint8, np.int16, np.uint16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.float32)


def values_of(stored: Array, data: Dataset, scale: Scaling, dtype: np.dtype, where: str, factor: float = 1.0) -> Array:
    """The values of a frame, as `dtype`: `(rows, columns)`, or `(rows, columns, 3)` for colour.

    Args:
        stored: the frame, from `pixels.frames_of`.
        data: its file.
        scale: its scaling.
        dtype: of the volume.
        where: for error texts.
        factor: by which values are multiplied in the end, for SUV.

    Raises:
        ImageError: a value lies outside the range that the header promises, or a lookup table cannot be applied.
    """
    try:
        if scale.palette:
            colours: Array = np.asarray(apply_color_lut(stored, data))[..., :3]
            if colours.dtype.itemsize == 2:
                colours = colours >> 8
            return np.asarray(colours, dtype=np.uint8)
        if scale.table:
            return np.asarray(apply_modality_lut(stored, data)).astype(dtype)
    except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise ImageError.of("a lookup table cannot be applied", where=where, found=str(error)[:200], fix="Export it again.") from None
    if scale.inverted:
        low, high = _stored(data)
        stored = low + high - stored.astype(np.int64)
    if dtype.kind == "f":
        real: Array = (stored.astype(np.float64) * scale.slope + scale.intercept) * factor
        return real.astype(dtype)
    if scale == Scaling() and stored.dtype == dtype:
        return stored
    result: Array = stored.astype(np.int64) * int(scale.slope) + int(scale.intercept)
    limits = np.iinfo(dtype)
    if result.size and (result.min() < limits.min or result.max() > limits.max):
        raise ImageError.of(
            "values lie outside the range that the header promises",
            where=where,
            found=f"{result.min()} to {result.max()}",
            expected=f"{limits.min} to {limits.max}, from {data.get('BitsStored')} bits stored",
            fix="Repair the header (BitsStored, PixelRepresentation), or export the image again.",
        )
    return result.astype(dtype)
