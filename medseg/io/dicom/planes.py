"""One image of a file as its header describes it: where it lies, what splits it from its neighbours, and when it was taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.multival import MultiValue

from medseg.io.dicom.groups import find
from medseg.io.dicom.values import scaling, value_type
from medseg.io.dicom.volume import Frame, Series, Source

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Plane:
    """A frame and its header.

    Attributes:
        frame: where its pixels are.
        series: what it belongs to.
        shape: rows, columns.
        samples: 1, or 3 for colour.
        dtype: numpy name of its values.
        position: centre of the first pixel, LPS millimetres; None where the file does not say.
        axes: direction of rows and of columns, six numbers; None where the file does not say.
        spacing: millimetres between rows and between columns; None where the file does not say.
        step: millimetres between slices, as the file says.
        marks: what differs between volumes of one series.
        clock: what may tell time points apart, by name.
    """

    frame: Frame
    series: Series
    shape: tuple[int, int]
    samples: int
    dtype: str
    position: Vector | None
    axes: Vector | None
    spacing: tuple[float, float] | None
    step: float | None
    marks: tuple[Any, ...] = ()
    clock: dict[str, float] = field(default_factory=dict)


def read_planes(header: Dataset, source: Source) -> list[Plane]:
    """The images of a file."""
    series = read_series(header)
    count = whole(header.get("NumberOfFrames")) or 1
    multi = "NumberOfFrames" in header and (count > 1 or "PerFrameFunctionalGroupsSequence" in header)
    return [_plane(header, source, series, index if multi else None) for index in range(count)]


def read_series(header: Dataset) -> Series:
    """What a header says of its series."""
    parts = [
        text(header.get(k)) for k in ("ScanningSequence", "SequenceVariant", "SequenceName", "PulseSequenceName", "ContrastBolusAgent")
    ]
    return Series(
        uid=text(header.get("SeriesInstanceUID")),
        study=text(header.get("StudyInstanceUID")),
        world=text(header.get("FrameOfReferenceUID")),
        modality=text(header.get("Modality")),
        number=whole(header.get("SeriesNumber")),
        description=text(header.get("SeriesDescription")),
        protocol=text(header.get("ProtocolName")),
        sequence=" ".join(part for part in parts if part),
        body=text(header.get("BodyPartExamined")),
        kind=text(header.get("ImageType")),
    )


CLOCK = {
    "TemporalPositionIndex": ("FrameContentSequence",),
    "TemporalPositionIdentifier": (),
    "TriggerTime": (),
    "NominalCardiacTriggerDelayTime": ("CardiacSynchronizationSequence",),
    "AcquisitionNumber": (),
    "DiffusionBValue": ("MRDiffusionSequence",),
    "InstanceNumber": (),
}


def _plane(header: Dataset, source: Source, series: Series, index: int | None) -> Plane:
    position = vector(find(header, index, "ImagePositionPatient", "PlanePositionSequence"), 3)
    axes = vector(find(header, index, "ImageOrientationPatient", "PlaneOrientationSequence"), 6)
    spacing = vector(find(header, index, "PixelSpacing", "PixelMeasuresSequence"), 2)
    step = number(find(header, index, "SpacingBetweenSlices", "PixelMeasuresSequence"))
    thickness = number(find(header, index, "SliceThickness", "PixelMeasuresSequence"))
    clock = {name: number(find(header, index, name, *groups)) for name, groups in CLOCK.items()}
    if index is not None:
        clock["Frame"] = float(index)
    kind = text(find(header, index, "FrameType", "MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence"))
    echo = number(find(header, index, "EffectiveEchoTime", "MREchoSequence")) if index is not None else number(header.get("EchoTime"))
    return Plane(
        frame=Frame(source, text(header.get("SOPClassUID")), text(header.get("SOPInstanceUID")), index),
        series=series,
        shape=(whole(header.get("Rows")) or 0, whole(header.get("Columns")) or 0),
        samples=3 if colours(header) else 1,
        dtype=value_type(header, scaling(header, index)).name,
        position=position,
        axes=axes,
        spacing=(spacing[0], spacing[1]) if spacing else None,
        step=step or thickness,
        marks=(kind or series.kind, number(header.get("EchoNumbers")), echo),
        clock={name: value for name, value in clock.items() if value is not None},
    )


def colours(header: Dataset) -> bool:
    """Whether pixels are read as red, green and blue."""
    return (whole(header.get("SamplesPerPixel")) or 1) > 1 or header.get("PhotometricInterpretation") == "PALETTE COLOR"


def text(value: Any) -> str:
    """An element as one line; several values are joined by backslashes, as in the file."""
    if value is None:
        return ""
    if isinstance(value, (MultiValue, list, tuple)):
        return "\\".join(str(one) for one in value)
    return str(value).strip()


def number(value: Any) -> float | None:
    """An element as a finite number; the first of several."""
    if isinstance(value, (MultiValue, list, tuple)):
        value = value[0] if len(value) else None
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if np.isfinite(result) else None


def whole(value: Any) -> int | None:
    """An element as an integer."""
    result = number(value)
    return None if result is None else int(result)


def vector(values: Any, count: int) -> Vector | None:
    """An element as so many finite numbers."""
    if not isinstance(values, (MultiValue, Sequence)) or len(values) != count:
        return None
    found = [number(value) for value in values]
    return None if any(value is None for value in found) else tuple(float(value) for value in found if value is not None)
