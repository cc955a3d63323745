"""One image of a file as its header describes it: where it lies, what splits it from its neighbours, and when it was taken."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydicom import Dataset

from medseg.errors import ImageError, Problem
from medseg.io.dicom.groups import find, moment, number, private, seconds, text, whole
from medseg.io.dicom.reading.mosaic import is_mosaic, mosaic_of
from medseg.io.dicom.reading.places import Place, impossible, place_of
from medseg.io.dicom.reading.sources import held_bytes, pixels_missing
from medseg.io.dicom.reading.suv import is_uptake, uptake_problems
from medseg.io.dicom.reading.values import scaling, value_type
from medseg.io.dicom.volume import Frame, Series, Source

MOST = 10**6  # frames and pixels along an edge; a header that promises more is damaged


@dataclass(frozen=True)
class Plane:
    """A frame and its header.

    Attributes:
        frame: where its pixels are.
        series: what it belongs to.
        shape: rows, columns.
        samples: 1, or 3 for colour.
        dtype: numpy name of its values.
        place: where it lies.
        marks: what may differ between volumes of one series: image type, echo, kernel; by name.
        clock: what may tell time points apart, by name.
        warnings: oddities.
        errors: why it cannot be used.
        owner: a digest of the Patient ID.
    """

    frame: Frame
    series: Series
    shape: tuple[int, int]
    samples: int
    dtype: str
    place: Place
    marks: dict[str, Any] = field(default_factory=dict)
    clock: dict[str, float] = field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()
    errors: tuple[Problem, ...] = ()
    owner: str = ""

    @property
    def solid(self) -> bool:
        """Whether it is a slice of something in 3D."""
        return self.place.position is not None and self.place.axes is not None


def read_planes(header: Dataset, source: Source) -> list[Plane]:
    """The images of a file.

    Raises:
        ImageError: the header contradicts itself.
    """
    series = read_series(header)
    rows, columns = whole(header.get("Rows")) or 0, whole(header.get("Columns")) or 0
    stated = header.get("NumberOfFrames")
    count = 1 if stated is None or stated == "" else whole(stated) or 0
    if not (0 < rows < MOST and 0 < columns < MOST and 0 < count < MOST):
        raise ImageError.of(
            "the size of the image is impossible",
            where=str(source),
            found=f"{rows} x {columns} pixels, {text(stated) or 1} frames",
            expected="positive whole numbers",
            fix="Export it again, or repair the header.",
        )
    multi = stated not in (None, "") and (count > 1 or "PerFrameFunctionalGroupsSequence" in header)
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if multi and frames is not None and len(frames) != count:
        raise ImageError.of(
            "the number of frames contradicts the functional groups",
            where=str(source),
            found=f"{count} frames, {len(frames)} groups",
            expected="as many",
            fix="Export it again.",
        )
    problem = _not_held(header, source, count, (rows, columns))
    if problem is not None and count > 1:  # no planes are made of what is not there
        raise ImageError([problem])
    errors = () if problem is None else (problem,)
    if is_mosaic(header):
        mosaic = mosaic_of(header, source)
        (plane,) = checked([_plane(header, source, series, None, mosaic.shape, errors)])
        plane = replace(plane, warnings=(*plane.warnings, *mosaic.warnings))
        return [
            _moved(plane, Frame(source, plane.frame.sop_class, plane.frame.sop_uid, None, tile), place)
            for tile, place in enumerate(mosaic.places)
        ]
    return checked([_plane(header, source, series, index if multi else None, (rows, columns), errors) for index in range(count)])


def checked(planes: list[Plane]) -> list[Plane]:
    """The same planes. Raises ImageError for one that lies nowhere."""
    for plane in planes:
        problem = impossible(plane.place, str(plane.frame.source))
        if problem is not None:
            raise ImageError([problem])
    return planes


def _not_held(header: Dataset, source: Source, count: int, shape: tuple[int, int]) -> Problem | None:
    """What is wrong with a file that is too small for the pixels that its header promises."""
    missing = pixels_missing(header, source)
    if missing <= 0:
        return None
    if getattr(header, "pixels_at", 0) >= held_bytes(source):
        return Problem("holds no pixels", str(source), expected="pixel data", fix="Export it again, with images.")
    return Problem(
        "the header promises more pixels than the file can hold",
        str(source),
        f"{held_bytes(source)} bytes, at least {missing} too few",
        f"{count} frames of {shape[0]} x {shape[1]} pixels" if count > 1 else f"{shape[0]} x {shape[1]} pixels",
        "The file is truncated or damaged: export or download it again.",
    )


def _moved(plane: Plane, frame: Frame, place: Place) -> Plane:
    return replace(plane, frame=frame, place=place)


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


def _plane(header: Dataset, source: Source, series: Series, index: int | None, shape: tuple[int, int], errors: Sequence[Problem]) -> Plane:
    place = place_of(header, index)
    scale = scaling(header, index, flat=place.position is None or place.axes is None)
    warnings: Sequence[Problem] = uptake_problems(header)
    dtype = "float32" if is_uptake(header) else value_type(header, scale).name
    return Plane(
        frame=Frame(source, text(header.get("SOPClassUID")), text(header.get("SOPInstanceUID")), index),
        series=series,
        shape=shape,
        samples=3 if (whole(header.get("SamplesPerPixel")) or 1) > 1 or scale.palette else 1,
        dtype=dtype,
        place=place,
        marks=_marks(header, index),
        clock=_clock(header, index),
        warnings=tuple(warnings),
        errors=(*_unusable(header), *errors),
        owner=hashlib.blake2b(text(header.get("PatientID")).encode(), digest_size=8).hexdigest(),
    )


def _marks(header: Dataset, index: int | None) -> dict[str, Any]:
    kinds = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence", "XAXRFFrameCharacteristicsSequence")
    kind = text(find(header, index, "FrameType", *kinds)) if index is not None else ""
    return {
        "image type": kind or text(header.get("ImageType")),
        "component": text(find(header, index, "ComplexImageComponent", "MRImageFrameTypeSequence")),
        "echo": number(header.get("EchoNumbers")),
        "echo time": number(find(header, index, "EffectiveEchoTime", "MREchoSequence") if index is not None else header.get("EchoTime")),
        "inversion time": number(
            find(header, index, "InversionTimes", "MRModifierSequence") if index is not None else header.get("InversionTime")
        ),
        "tube voltage": number(find(header, index, "KVP", "CTXRayDetailsSequence")),
        "kind of image": whole(private(header, 0x0043, "GEMS_PARM_01", 0x2F)),  # GE: magnitude, phase, real, imaginary; ImageType is equal
        "stack": text(find(header, index, "StackID", "FrameContentSequence")) if index is not None else "",
        "kernel": text(find(header, index, "ConvolutionKernel", "CTReconstructionSequence")),
    }


CLOCKS = {
    "TemporalPositionIndex": ("FrameContentSequence",),
    "TemporalPositionIdentifier": (),
    "TemporalPositionTimeOffset": ("TemporalPositionSequence",),
    "TriggerTime": (),
    "NominalCardiacTriggerDelayTime": ("CardiacSynchronizationSequence", "CardiacTriggerSequence"),
    "NominalPercentageOfCardiacPhase": ("CardiacSynchronizationSequence",),
    "FrameReferenceTime": (),
    "AcquisitionNumber": (),
    "FrameAcquisitionNumber": ("FrameContentSequence",),
    "DiffusionBValue": ("MRDiffusionSequence",),
    "InstanceNumber": (),
}
ORDER = (
    "TemporalPositionIndex",
    "TemporalPositionIdentifier",
    "TemporalPositionTimeOffset",
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "NominalPercentageOfCardiacPhase",
    "FrameReferenceTime",
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    "acquired",
    "DiffusionBValue",
    "InstanceNumber",
    "file",
    "content",
    "frame",
)
"""Which clock is asked first for the order of images at one position."""


def _clock(header: Dataset, index: int | None) -> dict[str, float]:
    clock = {name: number(find(header, index, name, *groups)) for name, groups in CLOCKS.items()}
    stamp = find(header, index, "FrameAcquisitionDateTime", "FrameContentSequence") or header.get("AcquisitionDateTime")
    clock["acquired"] = moment_of(stamp, header.get("AcquisitionDate"), header.get("AcquisitionTime"))
    clock["content"] = seconds(header.get("ContentDate"), header.get("ContentTime"))
    clock["interval"] = number(header.get("NominalInterval"))
    clock["b"] = clock["DiffusionBValue"] if clock["DiffusionBValue"] is not None else _b_value(header)
    if index is not None:
        clock["frame"] = float(index)
        clock.pop("InstanceNumber")  # of the file, not of the frame
        clock["file"] = number(header.get("InstanceNumber"))
    return {name: value for name, value in clock.items() if value is not None}


B_VALUES = ((0x0019, "SIEMENS MR HEADER", 0x0C), (0x0043, "GEMS_PARM_01", 0x39), (0x2001, "Philips Imaging DD 001", 0x03),
            (0x0065, "Image Private Header", 0x09))  # fmt: skip
"""Where vendors keep the b-value: Siemens, GE, Philips, United Imaging."""


def _b_value(header: Dataset) -> float | None:
    """The diffusion b-value as vendors keep it. It names time points and does not order them: several directions share it."""
    for group, creator, element in B_VALUES:
        value = number(private(header, group, creator, element))
        if value is not None:
            return value % 1e9  # GE adds this to b-values of newer sequences
    return None


def moment_of(stamp: Any, date: Any, time: Any) -> float | None:
    """Seconds, of a date and time in one element where there is one, else in two."""
    return moment(stamp) if stamp else seconds(date, time)


def _unusable(header: Dataset) -> list[Problem]:
    problems = []
    allocated, kept, high = (whole(header.get(keyword)) for keyword in ("BitsAllocated", "BitsStored", "HighBit"))
    if allocated and kept and high is not None and not kept - 1 <= high < allocated:
        found = f"High Bit {high}, {kept} of {allocated} bits stored"
        fix = "Repair the header (HighBit, BitsStored), or export the image again."
        problems.append(Problem("the bits of a value are impossible", found=found, expected=f"High Bit {kept - 1}", fix=fix))
    if "TotalPixelMatrixColumns" in header:
        problems.append(
            Problem(
                "is a whole-slide image in tiles",
                found=f"{text(header.get('TotalPixelMatrixRows'))} x {text(header.get('TotalPixelMatrixColumns'))} pixels in all",
                expected="an image in one piece",
                fix="Export the region of interest as TIFF.",
            )
        )
    return problems
