"""RT structure sets made for tests, element by element."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian

from medseg.geometry import Grid
from medseg.io.dicom.volume import Source, Volume
from tests.io.dicom.phantoms import PATIENT, uid

STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
Contour = tuple[str, Any]
"""Geometric type, and points `(N, 3)` in LPS millimetres or text as it stands in the file."""


def box(grid: Grid, z: float, y: tuple[float, float], x: tuple[float, float]) -> Contour:
    """A rectangle on slice `z`, in voxels of a grid."""
    corners = [(z, y[0], x[0]), (z, y[0], x[1]), (z, y[1], x[1]), (z, y[1], x[0])]
    return ("CLOSED_PLANAR", grid.world(np.array(corners, float)))


def write_rtstruct(
    path: Path, rois: Sequence[tuple[str, Sequence[Contour]]], volume: Volume, world: str | None = None, series: str | None = None
) -> Source:
    """An RTSTRUCT of regions `(name, contours)` about a volume; `world` and `series` are other UIDs than its own."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = STORAGE
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid("rt", path)
    data.Modality = "RTSTRUCT"
    for keyword, value in PATIENT.items():
        setattr(data, keyword, value)
    data.StudyInstanceUID = volume.series.study
    data.SeriesInstanceUID = uid("rt series", path)
    reference, study, item = Dataset(), Dataset(), Dataset()
    item.SeriesInstanceUID = series or volume.series.uid
    study.RTReferencedSeriesSequence = [item]
    reference.FrameOfReferenceUID = world or volume.series.world
    reference.RTReferencedStudySequence = [study]
    data.ReferencedFrameOfReferenceSequence = [reference]
    regions, contoured = [], []
    for number, (name, contours) in enumerate(rois, 1):
        region, drawn = Dataset(), Dataset()
        region.ROINumber, region.ROIName, region.ReferencedFrameOfReferenceUID = number, name, world or volume.series.world
        drawn.ReferencedROINumber = number
        drawn.ContourSequence = []
        for kind, points in contours:
            contour = Dataset()
            contour.ContourGeometricType = kind
            if isinstance(points, str):
                contour.add_new(0x30060050, "DS", points.split("\\"))
            else:
                contour.NumberOfContourPoints = len(points)
                contour.ContourData = [f"{v:.9g}" for v in np.ravel(points)]
            drawn.ContourSequence.append(contour)
        regions.append(region)
        contoured.append(drawn)
    data.StructureSetROISequence, data.ROIContourSequence = regions, contoured
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return Source(path)
