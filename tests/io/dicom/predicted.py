"""Predictions on phantoms, and phantoms that are multi-frame files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from medseg.dataset import CaseFiles, LabelClass, Labels
from medseg.geometry import Array, Grid
from medseg.io.dicom.reading.reader import scan
from medseg.io.dicom.settings import DicomSettings
from medseg.io.dicom.volume import Volume
from medseg.io.exports import Maker, Result
from medseg.prediction import Prediction
from tests.io.dicom.phantoms import grid_of, slice_dataset, write_series

CLASSES = ("liver", "left kidney", "right kidney cyst")
DIRECTIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "axial, rows flipped": ((1, 0, 0), (0, -1, 0)),
    "axial, columns flipped": ((-1, 0, 0), (0, 1, 0)),
    "axial, both flipped": ((-1, 0, 0), (0, -1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "sagittal, mirrored": ((0, -1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "coronal, mirrored": ((-1, 0, 0), (0, 0, -1)),
    "axial, transposed": ((0, 1, 0), (1, 0, 0)),
    "oblique": ((0.8, 0.6, 0), (-0.36, 0.48, -0.8)),
}


def grid_along(shape: Sequence[int], name: str) -> Grid:
    """A grid whose rows and columns have the named directions."""
    along_row, along_column = (np.asarray(v, dtype=np.float64) for v in DIRECTIONS[name])
    affine = np.eye(4)
    affine[:3, 0] = np.cross(along_row, along_column) * 3
    affine[:3, 1] = along_column * 0.8
    affine[:3, 2] = along_row * 0.7
    affine[:3, 3] = (-12.5, 20.25, -7.75)
    return Grid(tuple(shape), affine)


def letter(shape: Sequence[int]) -> Array:
    """An F in class 1, a corner in class 2, a dot in class 3: nothing about it is symmetric, and no two slices are alike."""
    labels = np.zeros(shape, np.uint8)
    stack = labels if labels.ndim == 3 else labels[None]
    stack[1:4, 1:9, 2] = 1
    stack[1:4, 1, 2:7] = 1
    stack[1:3, 4, 2:5] = 1
    stack[0, -2:, -3:] = 2
    stack[-1, 2, -2] = 3
    return labels


def series(folder: Path, shape: Sequence[int] = (5, 10, 9), grid: Grid | None = None, modality: str = "CT", **tags: Any) -> Volume:
    """The volume of a phantom."""
    grid = grid or grid_of(shape)
    values = np.random.default_rng(0).integers(0, 1000, grid.shape).astype(np.int16)
    write_series(folder, values, grid, modality=modality, **tags)
    (volume,) = scan(folder).volumes
    return volume


def enhanced(folder: Path, shape: Sequence[int] = (5, 10, 9), times: int = 1) -> Volume:
    """The volume of an enhanced MR file whose frames come in no order; of the last time point first."""
    grid = grid_along(shape, "oblique")
    values = np.random.default_rng(0).integers(0, 1000, grid.shape).astype(np.int16)
    folder.mkdir(parents=True)
    data = slice_dataset(str(folder), values, grid, 0, "MR", "1", {})
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(data, keyword)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.4.1")
    shared, groups, pixels = Dataset(), [], []
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [*grid.direction[:, 2], *grid.direction[:, 1]]
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = list(grid.spacing[1:])
    shared.PixelMeasuresSequence[0].SliceThickness = grid.spacing[0]
    order = np.random.default_rng(1).permutation(shape[0] * times)
    for n in order:
        t, z = divmod(int(n), shape[0])
        group = Dataset()
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = [f"{v:.10g}" for v in grid.world((z, 0, 0))]
        group.FrameContentSequence = [Dataset()]
        group.FrameContentSequence[0].TemporalPositionIndex = t + 1
        group.FrameContentSequence[0].DimensionIndexValues = [t + 1, z + 1]
        groups.append(group)
        pixels.append(values[z].tobytes())
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = groups
    data.NumberOfFrames = len(groups)
    data.PixelData = b"".join(pixels)
    data.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    (volume,) = scan(folder).volumes
    return volume


def predicted(
    volume: Volume,
    labels: Array,
    classes: Sequence[str] | Labels = CLASSES,
    probabilities: Array | None = None,
    settings: DicomSettings | None = None,
) -> Result:
    """A prediction on its way to files; classes have the values 1, 2, ..."""
    known = (
        classes
        if isinstance(classes, Labels)
        else Labels(classes=tuple(LabelClass(name=n, values=(k + 1,)) for k, n in enumerate(classes)))
    )
    return Result(
        CaseFiles(id="case", images=(volume.path,), group="case"),
        Prediction("case", labels, probabilities),
        volume.grid,
        known,
        Maker("Abdomen", "0.1.0", "0123456789abcdef", settings or DicomSettings()),
    )
