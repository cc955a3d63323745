"""Siemens mosaics: the slices of a volume as tiles of one large image.

The file's position is that of the large image's corner, as if it were one slice; the first tile lies where it would be alone. What the
file keeps in private elements (the CSA header: number of tiles, slice normal) is read by nibabel, whose description is followed:
https://nipy.org/nibabel/dicom/dicom_mosaic.html
"""

from __future__ import annotations

import math
import re
import struct
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import Dataset

from medseg.errors import ImageError, Problem
from medseg.geometry import Array
from medseg.io.dicom.groups import number, private, text, vector, whole
from medseg.io.dicom.reading.places import Place, normal_of, place_of
from medseg.io.dicom.volume import Source

POSITION = re.compile(r"sSliceArray\.asSlice\[(\d+)\]\.sPosition\.d(Sag|Cor|Tra)\s*=\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)")
EVEN = 0.01  # share by which distances of the protocol's slices may differ


@dataclass(frozen=True)
class Mosaic:
    """How a mosaic falls apart: `shape` of a tile, and the places of the tiles in their order in the image; `warnings` of what was taken."""

    shape: tuple[int, int]
    places: tuple[Place, ...]
    warnings: tuple[Problem, ...] = ()


def is_mosaic(header: Dataset) -> bool:
    """Whether the file is a mosaic."""
    return "MOSAIC" in text(header.get("ImageType")).split("\\")


def mosaic_of(header: Dataset, source: Source) -> Mosaic:
    """The tiles of a mosaic; the header is needed with its private elements.

    Raises:
        ImageError: the file does not say how many tiles there are, or where they lie.
    """
    csa = _csa(header)
    count = whole(_csa_value(csa, "NumberOfImagesInMosaic")) or whole(private(header, 0x0019, "SIEMENS MR HEADER", 0x0A)) or 0
    place = place_of(header, None)
    rows, columns = whole(header.get("Rows")) or 0, whole(header.get("Columns")) or 0
    edge = math.ceil(math.sqrt(count)) if count > 0 else 0
    step = number(header.get("SpacingBetweenSlices")) or number(_csa_value(csa, "SpacingBetweenSlices")) or _protocol_step(header)
    stated, step = step is not None, step or place.step
    if not edge or rows % edge or columns % edge or place.position is None or place.axes is None or place.spacing is None or not step:
        raise ImageError.of(
            "is a mosaic whose tiles are not described",
            where=str(source),
            found=f"{rows} x {columns} pixels, {count or 'no number of'} tiles",
            expected="the private CSA header of Siemens, a position, an orientation and a spacing",
            fix="An anonymiser may have removed private elements: export it again with these, or as enhanced MR.",
        )
    shape = (rows // edge, columns // edge)
    normal = normal_of(place.axes)
    told = vector(_csa_list(csa, "SliceNormalVector"), 3)
    if told is not None and float(np.dot(told, normal)) < 0:
        normal = -normal
    axes = np.asarray(place.axes)
    corner = np.asarray(place.position)
    corner = corner + axes[:3] * place.spacing[1] * (columns - shape[1]) / 2 + axes[3:] * place.spacing[0] * (rows - shape[0]) / 2
    places = [Place(tuple(float(v) for v in corner + normal * step * tile), place.axes, place.spacing, abs(step)) for tile in range(count)]
    thick = Problem(
        "the mosaic does not say how far its slices lie apart",
        found=f"{step:g} mm, the thickness of a slice, is taken",
        expected="SpacingBetweenSlices, or positions in the protocol of the CSA header",
        fix="Slices with gaps between them come out too close: compare with the protocol.",
    )
    return Mosaic(shape, tuple(places), () if stated or count == 1 else (thick,))


def tile_of(image: Array, tile: int, shape: tuple[int, int]) -> Array:
    """One tile `(rows, columns)` of a mosaic, tiles being counted row by row."""
    per_row = image.shape[1] // shape[1]
    y, x = (tile // per_row) * shape[0], (tile % per_row) * shape[1]
    return image[y : y + shape[0], x : x + shape[1]]


def _protocol_step(header: Dataset) -> float | None:
    """The distance of slices by the positions that the protocol in the CSA header of the series lists; None where it does not."""
    csa = _csa(header, "series")
    protocol = str(_csa_value(csa, "MrPhoenixProtocol") or _csa_value(csa, "MrProtocol") or "")
    points: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])  # components of 0 are not listed
    for index, axis, value in POSITION.findall(protocol):
        points[int(index)][("Sag", "Cor", "Tra").index(axis)] = float(value)
    if len(points) < 2 or set(points) != set(range(len(points))):
        return None
    steps = np.linalg.norm(np.diff(np.asarray([points[i] for i in range(len(points))]), axis=0), axis=1)
    mean = float(steps.mean())
    return mean if mean > 0 and np.abs(steps - mean).max() <= EVEN * mean else None


def _csa(header: Dataset, kind: str = "image") -> dict[str, Any] | None:
    from nibabel.nicom.csareader import CSAReadError, get_csa_header

    try:
        found: dict[str, Any] | None = get_csa_header(header, kind)
    except (CSAReadError, KeyError, ValueError, TypeError, AttributeError, struct.error):
        return None
    return found


def _csa_list(csa: dict[str, Any] | None, name: str) -> Any:
    return csa["tags"][name]["items"] if csa is not None and name in csa.get("tags", {}) else None


def _csa_value(csa: dict[str, Any] | None, name: str) -> Any:
    items = _csa_list(csa, name)
    return items[0] if items else None
