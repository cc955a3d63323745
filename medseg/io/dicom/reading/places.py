"""Where a frame lies: from the file, its functional groups, or the offsets that dose grids and tomographic NM images keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medseg.errors import Problem
from medseg.io.dicom.groups import Vector, find, number, text, vector, whole

STACKED = ("CT", "MR", "PT", "NM")  # modalities whose images are slices even where only a slice location says so
FARTHEST = 1e6  # millimetres from the origin of the patient
FINEST, WIDEST = 1e-6, 1e4  # millimetres between pixels
CENTIMETRES = 3  # PhysicalUnitsXDirection


@dataclass(frozen=True)
class Place:
    """Where a frame lies.

    Attributes:
        position: centre of the first pixel, LPS millimetres; None where the file does not say.
        axes: direction of rows and of columns, six numbers; None where the file does not say.
        spacing: millimetres between rows and between columns; None where the file does not say.
        step: millimetres between slices, or their thickness, as the file says.
        guessed: only a slice location is known.
    """

    position: Vector | None
    axes: Vector | None
    spacing: tuple[float, float] | None
    step: float | None = None
    guessed: bool = False


def normal_of(axes: Vector) -> NDArray[np.float64]:
    """The unit vector along which slices ascend: the cross product of row and column direction."""
    cross = np.cross(axes[:3], axes[3:])
    return np.asarray(cross / (np.linalg.norm(cross) or 1.0))


def place_of(header: Dataset, index: int | None) -> Place:
    """Where a frame lies, as far as the file says."""
    position = vector(find(header, index, "ImagePositionPatient", "PlanePositionSequence"), 3)
    axes = vector(find(header, index, "ImageOrientationPatient", "PlaneOrientationSequence"), 6)
    if position is None and axes is None:  # ultrasound volumes: in the frame of reference of the transducer
        position = vector(find(header, index, "ImagePositionVolume", "PlanePositionVolumeSequence"), 3)
        axes = vector(find(header, index, "ImageOrientationVolume", "PlaneOrientationVolumeSequence"), 6)
    step = number(find(header, index, "SpacingBetweenSlices", "PixelMeasuresSequence"))
    thickness = number(find(header, index, "SliceThickness", "PixelMeasuresSequence"))
    if index is not None and "PerFrameFunctionalGroupsSequence" not in header:
        position, axes = _offset(header, index, position, axes, step)
    axes = None if axes is None else _plane_directions(axes)
    modality = text(header.get("Modality"))
    guessed = False
    if (position is None or axes is None) and modality in STACKED and index is None:
        location = number(header.get("SliceLocation"))
        if location is not None:
            position, axes, guessed = (0.0, 0.0, location), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), True
    return Place(position, axes, _spacing(header, index), _thickness(step, thickness), guessed)


def _plane_directions(axes: Vector) -> Vector | None:
    """Two directions that span a plane, each of length 1; None where six numbers are none."""
    along_row, along_column = np.asarray(axes[:3]), np.asarray(axes[3:])
    lengths = float(np.linalg.norm(along_row)), float(np.linalg.norm(along_column))
    if any(abs(length - 1) >= 0.1 for length in lengths) or abs(along_row @ along_column) >= 0.1:
        return None
    return tuple(float(v) for v in (*along_row / lengths[0], *along_column / lengths[1]))


def impossible(place: Place, where: str) -> Problem | None:
    """What is wrong with a position or a distance that no scanner gives: damaged text, which arithmetic would turn into anything."""
    far = place.position is not None and not all(abs(v) <= FARTHEST for v in place.position)
    wide = place.spacing is not None and not all(FINEST <= v <= WIDEST for v in place.spacing)
    if not far and not wide:
        return None
    found = [f"position {' '.join(f'{v:.4g}' for v in place.position or ())}"] if far else []
    found += [f"pixels {' x '.join(f'{v:.4g}' for v in place.spacing or ())} mm apart"] if wide else []
    fix = "Repair the header, or export the image again."
    return Problem(
        "lies nowhere where a patient can", where, ", ".join(found), f"up to {FARTHEST:.0e} mm, {FINEST:g} to {WIDEST:g} mm", fix
    )


def _thickness(*stated: float | None) -> float | None:
    """The first that is possible."""
    return next((abs(value) for value in stated if value is not None and FINEST <= abs(value) <= WIDEST), None)


def _offset(
    header: Dataset, index: int, position: Vector | None, axes: Vector | None, step: float | None
) -> tuple[Vector | None, Vector | None]:
    """Classic multi-frame: doses and NM list their frames from the first on; other frames share a place only if there is but one."""
    offsets = header.get("GridFrameOffsetVector")
    if offsets is not None and position is not None and axes is not None and index < len(offsets):
        first = number(offsets[0]) or 0.0
        # Absolute offsets (the first is not 0) are positions along z of the patient, only in axial doses.
        return _along(position, axes, (number(offsets[index]) or 0.0) - first), axes
    detectors: Any = header.get("DetectorInformationSequence")
    if detectors and "TOMO" in text(header.get("ImageType")).split("\\"):
        position = vector(detectors[0].get("ImagePositionPatient"), 3)
        axes = vector(detectors[0].get("ImageOrientationPatient"), 6)
        step = step or number(header.get("SliceThickness"))
        if position is not None and axes is not None and step:
            slices = whole(header.get("NumberOfSlices")) or whole(header.get("NumberOfFrames")) or 1
            return _along(position, axes, step * (index % slices)), axes
    return (position, axes) if header.get("NumberOfFrames") == 1 else (None, None)


def _along(position: Vector, axes: Vector, distance: float) -> Vector:
    return tuple(float(v) for v in np.asarray(position) + normal_of(axes) * distance)


def _spacing(header: Dataset, index: int | None) -> tuple[float, float] | None:
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        found = vector(find(header, index, name, "PixelMeasuresSequence"), 2)
        if found is not None and min(found) > 0:
            return found[0], found[1]
    regions = header.get("SequenceOfUltrasoundRegions")
    if regions and len(regions) == 1 and whole(regions[0].get("PhysicalUnitsXDirection")) == CENTIMETRES:
        rows, columns = number(regions[0].get("PhysicalDeltaY")), number(regions[0].get("PhysicalDeltaX"))
        if rows and columns and whole(regions[0].get("PhysicalUnitsYDirection")) == CENTIMETRES:
            return abs(rows) * 10, abs(columns) * 10
    return None
