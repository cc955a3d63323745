"""From stored numbers to what they mean: rescale slope and intercept, lookup tables, and the type that holds the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import Dataset

from medseg.geometry import Array
from medseg.io.dicom.groups import find


@dataclass(frozen=True)
class Scaling:
    """How stored values of one frame become values: `slope * stored + intercept`."""

    slope: float = 1.0
    intercept: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether integers stay integers."""
        return float(self.slope).is_integer() and float(self.intercept).is_integer()


def scaling(header: Dataset, index: int | None) -> Scaling:
    """The scaling of a frame, from the file or from its functional groups."""
    slope = _number(find(header, index, "RescaleSlope", "PixelValueTransformationSequence"), 1.0)
    intercept = _number(find(header, index, "RescaleIntercept", "PixelValueTransformationSequence"), 0.0)
    return Scaling(slope or 1.0, intercept)


def _number(value: Any, default: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return default
    return number if np.isfinite(number) else default


def value_type(header: Dataset, scale: Scaling) -> np.dtype:
    """The type that holds every value of a frame: an integer where the scaling is whole, else float32."""
    if "FloatPixelData" in header or "DoubleFloatPixelData" in header or not scale.whole:
        return np.dtype(np.float32)
    bits = int(header.get("BitsStored") or header.get("BitsAllocated") or 16)
    signed = int(header.get("PixelRepresentation") or 0) == 1
    stored = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ends = [value * int(scale.slope) + int(scale.intercept) for value in stored]
    return smallest(min(ends), max(ends))


def smallest(low: int, high: int) -> np.dtype:
    """The smallest of uint8, int16, uint16, int32 and float32 that holds the range."""
    for kind in (np.uint8, np.int16, np.uint16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.float32)


def scaled(stored: Array, scale: Scaling, dtype: np.dtype) -> Array:
    """The values of a frame, as `dtype`."""
    if scale == Scaling():
        return stored.astype(dtype, copy=False)
    if dtype.kind in "iu":
        return (stored.astype(np.int64) * int(scale.slope) + int(scale.intercept)).astype(dtype)
    return (stored.astype(np.float64) * scale.slope + scale.intercept).astype(dtype)
