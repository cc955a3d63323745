"""The masks of COCO's annotations and results: polygons or run lengths, and what can be wrong with them."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import numpy as np

from medseg.io.rle import FARTHEST, Rle, union

HIGHEST = 2**63 - 1


def is_id(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number from 0 on, of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= HIGHEST


def no_mask(segmentation: Any, shape: tuple[int, int]) -> tuple[str, str, str] | None:
    """Why an annotation says nothing of its pixels: what, details, what was expected."""
    height, width = shape
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != [height, width]:
            return "run lengths of another size than their image", f" ({size!r})", "'size' of height and width, as its image"
        if not isinstance(counts, str) and not (isinstance(counts, list) and all(is_id(n) for n in counts)):
            return "run lengths that are none", f" ({repr(counts)[:40]})", "'counts', a text or numbers from 0 on"
        if isinstance(counts, list) and sum(counts) != height * width:
            return "run lengths that do not fill their image", f" ({sum(counts)} of {height * width} pixels)", "as many as it has pixels"
        return None
    if not isinstance(segmentation, list) or not segmentation:
        return "annotations without a mask", "", "'segmentation': polygons or run lengths"
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not _are_near(polygon):
            return "polygons that are none", f" ({repr(polygon)[:40]})", f"x, y of three points or more, all nearer than {FARTHEST} pixels"
    return None


def mask_of(segmentation: Any, shape: tuple[int, int]) -> Rle:
    """The pixels of polygons or run lengths as in a file, which are sound (`no_mask`). Raises ImageError."""
    if isinstance(segmentation, list):
        return union([Rle.of_polygon(polygon, shape) for polygon in segmentation])
    counts = segmentation["counts"]
    return Rle.of_string(counts, shape) if isinstance(counts, str) else Rle(shape, np.array(counts, np.int64))


def reach(segmentation: Any, shape: tuple[int, int]) -> str:
    """Whether polygons lie `inside` an image, `across` its border by more than a pixel, or `outside`."""
    if not isinstance(segmentation, list):
        return "inside"
    points = np.concatenate([np.asarray(polygon, float).reshape(-1, 2) for polygon in segmentation])
    low, high, size = points.min(0), points.max(0), np.array(shape[::-1])
    if (low >= size).any() or (high <= 0).any():
        return "outside"
    return "across" if (low < -1).any() or (high > size + 1).any() else "inside"


def corners(bbox: object) -> tuple[float, ...] | None:
    """The corners (y, x, y, x) of COCO's x, y, width, height; None for what is none."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in bbox):
        return None
    x, y, width, height = map(float, bbox)
    return y, x, y + height, x + width


def _are_near(values: list[Any]) -> bool:
    if not set(map(type, values)) <= {int, float}:
        return False
    return min(values) > -FARTHEST and max(values) < FARTHEST and not math.isnan(sum(values))  # beside NaN, minima mean nothing
