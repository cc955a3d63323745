"""What an object takes over from the images that it was made of: patient, study, and where its slices lie.

Real files break rules. What an object must have and its images lack is left empty, which the standard allows, or filled in; `Origin.filled`
says what. Nothing else of the patient is changed.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from pydicom import Dataset, config
from pydicom.multival import MultiValue

from medseg.errors import ImageError, Problem
from medseg.geometry import Array, Grid
from medseg.io.dicom.groups import find, number, text, vector
from medseg.io.dicom.reading.sources import read_dataset
from medseg.io.dicom.volume import Frame, Source, Volume
from medseg.scratch import release, row_slabs

REQUIRED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
            "AccessionNumber")  # fmt: skip
"""What every object must have, if only empty (type 2)."""
OPTIONAL = ("IssuerOfPatientID", "TypeOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "EthnicGroup", "PatientComments",
            "PatientIdentityRemoved", "DeidentificationMethod", "LongitudinalTemporalInformationModified", "StudyDescription",
            "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID",
            "ClinicalTrialSiteName", "ClinicalTrialSubjectID")  # fmt: skip
"""What objects of a patient and a study share where it is known."""
TRIAL = ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialSubjectID")  # with all of them, or without the module
PLACE = ("ImagePositionPatient", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "NumberOfFrames", "SOPInstanceUID")
STORAGE = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4", "PT": "1.2.840.10008.5.1.4.1.1.128",
           "OT": "1.2.840.10008.5.1.4.1.1.7"}  # fmt: skip
LONG = ("PatientComments",)  # with lines
CODED = ("PatientSex", "PatientAge", "PatientSize", "PatientWeight")
SHORT = 16  # characters of a short string
LARGEST = 2**31 - 1  # an integer string

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Origin:
    """The images that an object refers to, as it needs them.

    Attributes:
        volume: the images; an object lies on `volume.frames[0]`, the first of several time points.
        common: the elements of patient and study, clean.
        shape: of the acquired slices, `(Z, Y, X)` or `(Y, X)`.
        world: Frame of Reference UID; empty for images in 2D.
        axes: directions of rows and of columns, six numbers; empty for images in 2D.
        positions: of the first pixel of each slice, LPS millimetres; empty for images in 2D.
        spacing: millimetres between rows and between columns; None where that is not known.
        step: millimetres between slices, along the normal.
        thickness: of a slice, in millimetres.
        slices: the images of the slices, all with UIDs.
        filled: what was missing or impossible in the files, and what stands for it.
    """

    volume: Volume
    common: Dataset
    shape: tuple[int, ...]
    world: str
    axes: tuple[float, ...]
    positions: tuple[Point, ...]
    spacing: tuple[float, float] | None
    step: float
    thickness: float
    slices: tuple[Frame, ...]
    filled: tuple[Problem, ...]

    def uid(self, *parts: str) -> str:
        """A UID that follows from the images and `parts`: the same object gets the same one whenever it is made."""
        own = (f"{frame.sop_uid}/{frame.index}/{frame.tile}" for frame in self.slices)
        return derived_uid(self.volume.series.uid, *own, *parts)

    def number(self, kind: int) -> int:
        """The number of the series of a kind of objects: that of the images, a hundred times, and the kind's."""
        wanted = (self.volume.series.number or 0) * 100 + kind
        return wanted if 0 < wanted <= LARGEST else kind


def derived_uid(*parts: str) -> str:
    """A UID below 2.25, as UUIDs have, from a digest of 128 bits."""
    return f"2.25.{int.from_bytes(hashlib.blake2b('|'.join(parts).encode(), digest_size=16).digest())}"


def array_digest(array: Array) -> str:
    """32 hexadecimal digits of an array's type, shape and values, whatever their order in memory."""
    digest = hashlib.blake2b(f"{array.dtype.newbyteorder('=')}{array.shape}".encode(), digest_size=16)
    for rows in row_slabs(array.shape):
        digest.update(np.ascontiguousarray(array[rows]).data)
        release(array)
    return digest.hexdigest()


def no_place(volume: Volume) -> tuple[Problem, ...]:
    """Why no object can refer to slices of this volume: it cannot be used, or nobody knows where its slices lie."""
    if volume.errors:
        return volume.errors
    if volume.grid.ndim == 3 and not volume.spaced:
        return (
            Problem(
                "the files do not say where their slices lie, so nothing can be placed on them",
                str(volume.path),
                "no Image Position (Patient)",
                fix="Ask for --format nifti.",
            ),
        )
    return ()


def origin_of(volume: Volume) -> Origin:
    """What objects about this volume need; reads headers only.

    Raises:
        ImageError: a file cannot be read, or nothing can be placed on the volume.
    """
    if problems := no_place(volume):
        raise ImageError(problems)
    filled: list[str] = []
    acquired = volume.tilted or volume.grid
    first = volume.frames[0][0]
    header = read_dataset(first.source)
    with config.disable_value_validation():
        common = _common(header, volume, filled)
        spacing = vector(find(header, first.index, "PixelSpacing", "PixelMeasuresSequence"), 2)
        thickness = number(find(header, first.index, "SliceThickness", "PixelMeasuresSequence"))
        flat = acquired.ndim == 2
        axes = vector(find(header, first.index, "ImageOrientationPatient", "PlaneOrientationSequence"), 6)
        if first.tile is not None or not axes or not _unit(axes):
            axes = () if flat else tuple(_round(v) for v in (*acquired.direction[:, 2], *acquired.direction[:, 1]))
        if first.tile is not None or (spacing is None and not flat):
            spacing = acquired.spacing[-2], acquired.spacing[-1]
        world = "" if flat else volume.series.world
        if not flat and not world:
            world = derived_uid("world", volume.series.uid)
            filled.append("Frame of Reference UID: a new one, the files have none")
        positions = () if flat else _positions(volume, acquired)
        if flat:  # without positions, an object must have this, if only empty
            orientation = text(header.get("PatientOrientation"))
            common.PatientOrientation = orientation.split("\\") if re.fullmatch(r"[APLRHF]+\\[APLRHF]+", orientation) else None
    step = _step(acquired)
    slices = _slices(volume, filled)
    return Origin(
        volume=volume,
        common=common,
        shape=acquired.shape,
        world=world,
        axes=() if flat else axes,
        positions=positions,
        spacing=None if spacing is None else (spacing[0], spacing[1]),
        step=step,
        thickness=thickness or step,
        slices=slices,
        filled=(Problem("elements that DICOM objects must have were missing or impossible", str(volume.path), "; ".join(filled)),)
        if filled
        else (),
    )


def _common(header: Dataset, volume: Volume, filled: list[str]) -> Dataset:
    common = Dataset()
    for keyword in REQUIRED:
        value = _value(header, keyword)
        if keyword in ("PatientID", "StudyDate") and not value:
            filled.append(f"{keyword}: empty")
        elif value is None and keyword in header:
            filled.append(f"{keyword}: empty, its value is impossible")
        if keyword == "StudyID" and value is not None and len(value) > SHORT:
            value = value[:SHORT]
            filled.append(f"StudyID: cut to {SHORT} characters")
        setattr(common, keyword, value or "")
    trial = all(_value(header, keyword) for keyword in TRIAL)
    for keyword in OPTIONAL:
        value = _value(header, keyword)
        if value and (trial or not keyword.startswith("ClinicalTrial")):
            setattr(common, keyword, value)
    if common.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in common:
        common.DeidentificationMethod = "as the images"  # conditionally required, and often forgotten
    study = volume.series.study
    if not study:
        study = derived_uid("study", volume.series.uid)
        filled.append("Study Instance UID: a new one, the files have none")
    common.StudyInstanceUID = study
    series = volume.series.uid
    if not series:
        series = derived_uid("series", *(frame.sop_uid for frame in volume.frames[0]))
        filled.append("Series Instance UID: a new one, the files have none")
    common.SeriesInstanceUID = series
    common.Modality = volume.series.modality or "OT"
    common.SpecificCharacterSet = "ISO_IR 192"
    common.PositionReferenceIndicator = text(header.get("PositionReferenceIndicator"))
    return common


def _value(header: Dataset, keyword: str) -> str | None:
    """An element as text that may be written, otherwise as it stands: `AB  12` is another patient than `AB 12`. None where it cannot be."""
    try:
        element = header.get(keyword)
        parts = element if isinstance(element, MultiValue) else [element]
        value = "\\".join("" if part is None else str(part) for part in parts).rstrip(" \0")
    except Exception:  # an element whose bytes are none of its type; pydicom raises many things
        return None
    value = "".join(c for c in value if unicodedata.category(c) not in ("Cc", "Cs") or (c in "\r\n\t\f" and keyword in LONG))
    if keyword in CODED or keyword.endswith(("Date", "Time")):
        value = value.strip()
    if keyword.endswith("Date"):
        value = value.replace(".", "")  # as before 1993
        return value if re.fullmatch(r"(\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01]))?", value) else None
    if keyword.endswith("Time"):
        value = value.replace(":", "")
        return value if re.fullmatch(r"(([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?)?", value) else None
    if keyword == "PatientSex":
        return value.upper() if value.upper() in ("", "M", "F", "O") else None
    if keyword == "PatientAge":
        return value if re.fullmatch(r"\d{3}[DWMY]", value) else None
    if keyword in ("PatientSize", "PatientWeight"):
        return value if number(value) is not None and len(value) <= 16 else None
    return value


def _slices(volume: Volume, filled: list[str]) -> tuple[Frame, ...]:
    """References must have a class and a UID, which some programs that hide identities remove."""
    frames = volume.frames[0]
    if missing := sum(not frame.sop_uid for frame in frames):
        filled.append(f"SOP Instance UID of {missing} images: new ones, so references to them lead nowhere")
    if any(not frame.sop_class for frame in frames):
        filled.append("SOP Class UID: that of the modality")
    own = STORAGE.get(volume.series.modality, STORAGE["OT"])
    return tuple(
        replace(
            frame,
            sop_class=frame.sop_class or own,
            sop_uid=frame.sop_uid or derived_uid("instance", volume.series.uid, volume.key, str(z)),
        )
        for z, frame in enumerate(frames)
    )


def _positions(volume: Volume, acquired: Grid) -> tuple[Point, ...]:
    """Of every slice, from its own header; a tile of a mosaic has none, its position follows from the grid."""
    headers: dict[Source, Dataset] = {}
    positions: list[Point] = []
    for z, frame in enumerate(volume.frames[0]):
        found = None
        if frame.tile is None:
            if frame.source not in headers:
                headers = {frame.source: read_dataset(frame.source, tags=PLACE)}
            found = vector(find(headers[frame.source], frame.index, "ImagePositionPatient", "PlanePositionSequence"), 3)
        if found is None:
            found = tuple(_round(v) for v in acquired.world((z, 0, 0)))
        positions.append((found[0], found[1], found[2]))
    return tuple(positions)


def _step(acquired: Grid) -> float:
    if acquired.ndim == 2:
        return 1.0
    normal = np.cross(acquired.direction[:, 2], acquired.direction[:, 1])
    return _round(abs(float(normal @ acquired.affine[:3, 0])) / float(np.linalg.norm(normal)))


def _unit(axes: Iterable[float]) -> bool:
    rows, columns = np.reshape(np.asarray(list(axes)), (2, 3))
    return bool(np.allclose([rows @ rows, columns @ columns, rows @ columns], [1, 1, 0], atol=1e-2))


def _round(value: float) -> float:
    """To what 16 characters hold."""
    return float(f"{value:.9g}")
