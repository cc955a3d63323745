"""DICOM made for tests: classic series with valid headers, any orientation, and identifiers that must never be found elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from medseg.geometry import Array, Grid

PATIENT = {"PatientName": "Planted^Zebulon", "PatientID": "PLANTED-4711", "PatientBirthDate": "19010203", "PatientSex": "O"}
"""Identifiers that every phantom bears."""
UID_ROOT = "2.25.990"
"""How every UID of a phantom begins."""
CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
}
ORIENTATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "feet first": ((-1, 0, 0), (0, 1, 0)),
    "oblique": ((0.8, 0.6, 0), (-0.36, 0.48, -0.8)),
}
"""Directions of rows and of columns."""


def uid(*words: object) -> str:
    """A UID that follows from words."""
    number = int.from_bytes(hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=12).digest(), "big")
    return f"{UID_ROOT}{number}"[:64]


def grid_of(
    shape: Sequence[int],
    orientation: str = "axial",
    spacing: Sequence[float] = (3.0, 0.8, 0.7),
    origin: Sequence[float] = (-12.5, 20.25, -7.75),
) -> Grid:
    """A grid whose slices ascend along the cross product of its rows' and columns' directions, as DICOM volumes are read."""
    along_row, along_column = (np.asarray(v, dtype=np.float64) for v in ORIENTATIONS[orientation])
    affine = np.eye(4)
    affine[:3, 0] = np.cross(along_row, along_column) * spacing[0]
    affine[:3, 1] = along_column * spacing[1]
    affine[:3, 2] = along_row * spacing[2]
    affine[:3, 3] = origin
    return Grid(tuple(shape), affine)


def write_series(folder: Path, array: Array, grid: Grid, modality: str = "CT", series: str = "1", **tags: Any) -> list[Path]:
    """Write a classic series, one file per slice.

    Args:
        folder: made if need be.
        array: `(*grid.shape)` of int16, uint16 or uint8 as stored.
        grid: of the array; its first axis is that of the slices.
        modality: CT, MR, PT or OT.
        series: names the series: another one gives another Series Instance UID; study and frame of reference follow from
            `folder`; the study from the Series Instance UID where `tags` state it.
        tags: DICOM keywords and values for all files; a function is called with the number of the slice, from 0. None removes.

    Returns:
        the files, in the order of slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for z in range(len(array)):
        data = slice_dataset(str(folder), array, grid, z, modality, series, tags)
        paths.append(folder / f"{series}_{z:03d}.dcm")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths


def slice_dataset(study: str, array: Array, grid: Grid, z: int, modality: str, series: str, tags: dict[str, Any]) -> FileDataset:
    """One slice of a series."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(CLASSES[modality])
    meta.MediaStorageSOPInstanceUID = UID(uid(study, series, z))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(None, Dataset(), file_meta=meta, preamble=b"\0" * 128)
    along_row, along_column = grid.direction[:, 2], grid.direction[:, 1]
    values: dict[str, Any] = {
        **PATIENT,
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": uid(study),
        "SeriesInstanceUID": uid(study, series),
        "FrameOfReferenceUID": uid(study, "world"),
        "PositionReferenceIndicator": "",
        "Modality": modality,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "StudyDate": "20200102",
        "StudyTime": "101112",
        "SeriesDate": "20200102",
        "SeriesTime": "101112",
        "ContentDate": "20200102",
        "ContentTime": "101112",
        "AccessionNumber": "PLANTED-ACC",
        "ReferringPhysicianName": "Planted^Referrer",
        "StudyID": "1",
        "Manufacturer": "medseg tests",
        "SeriesNumber": int(series) if series.isdigit() else 1,
        "SeriesDescription": f"phantom {series}",
        "AcquisitionNumber": 1,
        "InstanceNumber": z + 1,
        "PatientPosition": "HFS",
        "ImagePositionPatient": [f"{v:.10g}" for v in grid.world((z, 0, 0))],
        "ImageOrientationPatient": [f"{v:.10g}" for v in (*along_row, *along_column)],
        "PixelSpacing": [f"{v:.10g}" for v in grid.spacing[1:]],
        "SliceThickness": f"{grid.spacing[0]:.10g}",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": grid.shape[1],
        "Columns": grid.shape[2],
        "BitsAllocated": array.dtype.itemsize * 8,
        "BitsStored": array.dtype.itemsize * 8,
        "HighBit": array.dtype.itemsize * 8 - 1,
        "PixelRepresentation": int(array.dtype.kind == "i"),
    }
    if modality in ("CT", "PT"):
        values |= {"RescaleIntercept": "0", "RescaleSlope": "1"}
    if modality == "CT":
        values |= {"KVP": "120", "RescaleType": "HU"}
    if modality == "MR":
        values |= {"ScanningSequence": "SE", "SequenceVariant": "SK", "ScanOptions": "", "MRAcquisitionType": "2D"}
        values |= {"EchoTime": "10", "RepetitionTime": "500", "EchoTrainLength": 1}
    if isinstance(shared := tags.get("SeriesInstanceUID"), str):
        values["StudyInstanceUID"] = uid("study of", shared)  # a series belongs to one study whatever folder its files lie in
    values["PixelData"] = np.ascontiguousarray(array[z].astype(array.dtype.newbyteorder("<"))).tobytes()
    for keyword, value in {**values, **tags}.items():
        chosen = value(z) if callable(value) else value
        if chosen is None:
            if keyword in data:
                delattr(data, keyword)
        else:
            setattr(data, keyword, chosen)
    return data


def write_enhanced(
    path: Path,
    array: Array,
    grid: Grid,
    slopes: Sequence[float] = (1.0,),
    shuffle: Sequence[int] | None = None,
    **tags: Any,
) -> Path:
    """Write an enhanced MR file of `(T, *grid.shape)` int16, one frame per slice and time point.

    Args:
        path: of the file.
        array: stored values.
        grid: of a time point.
        slopes: rescale slopes of the time points, in the frames' own functional groups.
        shuffle: order of the frames in the file.
        tags: as in `write_series`; no functions.
    """
    points, count = array.shape[:2]
    order = list(shuffle or range(points * count))
    first = slice_dataset(str(path), array[0], grid, 0, "MR", "1", {"PixelData": None})
    first.file_meta.MediaStorageSOPClassUID = first.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.4.1")
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(first, keyword)
    shared = Dataset()
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing = [f"{v:.10g}" for v in grid.spacing[1:]]
    measures.SliceThickness = f"{grid.spacing[0]:.10g}"
    orientation.ImageOrientationPatient = [f"{v:.10g}" for v in (*grid.direction[:, 2], *grid.direction[:, 1])]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    frames = []
    for number in order:
        t, z = divmod(number, count)
        frame, place, content, transformation = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [f"{v:.10g}" for v in grid.world((z, 0, 0))]
        content.TemporalPositionIndex = t + 1
        content.DimensionIndexValues = [t + 1, z + 1]
        transformation.RescaleSlope, transformation.RescaleIntercept = str(slopes[t % len(slopes)]), "0"
        transformation.RescaleType = "US"
        frame.PlanePositionSequence, frame.FrameContentSequence = [place], [content]
        frame.PixelValueTransformationSequence = [transformation]
        frames.append(frame)
    first.NumberOfFrames = len(frames)
    first.SharedFunctionalGroupsSequence, first.PerFrameFunctionalGroupsSequence = [shared], frames
    first.PixelData = np.ascontiguousarray(array.reshape(-1, *array.shape[2:])[order].astype("<i2")).tobytes()
    for keyword, value in tags.items():
        setattr(first, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save_as(path, enforce_file_format=True)
    return path
