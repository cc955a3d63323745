"""Predictions as RT structure sets: what is written is what was predicted, on the right slices of the right patient."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medseg.dataset import CaseFiles, LabelClass, Labels
from medseg.geometry import Array
from medseg.io.dicom.reading.reader import scan
from medseg.io.dicom.reading.structures import read_structures
from medseg.io.dicom.volume import Source, Volume
from medseg.io.dicom.writing.preview import Preview, key_slices
from medseg.io.dicom.writing.rtstruct import RtStruct
from medseg.io.exports import Maker, Result
from medseg.prediction import Prediction
from tests.io.dicom.phantoms import ORIENTATIONS, PATIENT, grid_of, write_series

SHAPE = (5, 18, 15)
LABELS = Labels(
    classes=(
        LabelClass(name="GTV tumour", values=(1,)),
        LabelClass(name="left kidney", values=(2,)),
        LabelClass(name="nothing", values=(3,)),
    )
)
MAKER = Maker("Kidney model", "1.2", "abcdef0123456789")


def study(folder: Path, orientation: str = "axial") -> Volume:
    array = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)
    write_series(folder / "ct", array, grid_of(SHAPE, orientation))
    (volume,) = scan(folder / "ct").volumes
    return volume


def prediction() -> Array:
    """Holes with islands, several components, corners that touch, voxels at all borders; no symmetry."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, :4, :5] = 1
    labels[1, 2:15, 1:12] = 2
    labels[1, 4:13, 3:10] = 0
    labels[1, 6:9, 5:8] = 2
    labels[1, 17, 14] = labels[1, 16, 13] = 1
    labels[2] = np.random.default_rng(1).integers(0, 3, SHAPE[1:])
    labels[4, 9:, 12:] = 2
    return labels


def write(volume: Volume, labels: Array, out: Path, export: type[RtStruct] | type[Preview] = RtStruct) -> Path:
    files = CaseFiles(id="case", images=(volume.path,), group="case")
    assert export().problems(files) == ()
    export().write(Result(files, Prediction("case", labels), volume.grid, LABELS, MAKER), out)
    (target,) = export().targets(files, probabilities=False)
    assert [path.name for path in out.iterdir()] == [target.name]
    return out / target


@pytest.mark.parametrize("orientation", sorted(ORIENTATIONS))
def test_reading_gives_the_labels_back(tmp_path: Path, orientation: str) -> None:
    volume, labels = study(tmp_path, orientation), prediction()
    warnings: list = []
    found = read_structures(Source(write(volume, labels, tmp_path / "out")), volume, warnings=warnings)
    assert list(found) == ["GTV tumour", "left kidney", "nothing"]
    for value, mask in enumerate(found.values(), 1):
        assert np.array_equal(mask, labels == value)
    assert warnings == []


def test_it_refers_to_the_slices_patient_and_study(tmp_path: Path) -> None:
    volume, labels = study(tmp_path, "oblique"), prediction()
    data = pydicom.dcmread(write(volume, labels, tmp_path / "out"))
    source = pydicom.dcmread(volume.sources[0].path)
    for keyword in (*PATIENT, "StudyInstanceUID", "StudyDate", "AccessionNumber", "FrameOfReferenceUID"):
        assert data[keyword].value == source[keyword].value
    assert data.SeriesInstanceUID != source.SeriesInstanceUID
    (world,) = data.ReferencedFrameOfReferenceSequence
    assert world.FrameOfReferenceUID == source.FrameOfReferenceUID
    (series,) = world.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    uids = [frame.sop_uid for frame in volume.frames[0]]
    assert [item.ReferencedSOPInstanceUID for item in series.ContourImageSequence] == uids
    positions = {uid: pydicom.dcmread(volume.frames[0][z].source.path) for z, uid in enumerate(uids)}
    normal = np.cross(source.ImageOrientationPatient[:3], source.ImageOrientationPatient[3:])
    for region in data.ROIContourSequence[:2]:
        for contour in region.ContourSequence:
            own = positions[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            assert contour.NumberOfContourPoints == len(points)
            assert np.abs((points - np.array(own.ImagePositionPatient, float)) @ normal).max() < 1e-3
    assert "ContourSequence" not in data.ROIContourSequence[2]


def test_names_colours_and_terms(tmp_path: Path) -> None:
    volume, labels = study(tmp_path), prediction()
    data = pydicom.dcmread(write(volume, labels, tmp_path / "out"))
    assert [item.ROIName for item in data.StructureSetROISequence] == list(LABELS.names)
    assert [int(item.ROINumber) for item in data.StructureSetROISequence] == [1, 2, 3]
    assert {item.ROIGenerationAlgorithm for item in data.StructureSetROISequence} == {"AUTOMATIC"}
    voxel = float(np.prod(volume.grid.spacing)) / 1000
    assert [float(item.ROIVolume) for item in data.StructureSetROISequence] == pytest.approx(
        [float((labels == value).sum()) * voxel for value in (1, 2, 3)], rel=1e-4
    )
    colours = [tuple(item.ROIDisplayColor) for item in data.ROIContourSequence]
    assert len(set(colours)) == 3
    tumour, kidney, _ = data.RTROIObservationsSequence
    assert tumour.RTROIInterpretedType == "GTV"
    assert kidney.RTROIInterpretedType == "ORGAN"
    (code,) = kidney.RTROIIdentificationCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("64033007", "SCT")
    assert data.ApprovalStatus == "UNAPPROVED"
    assert (data.Manufacturer, data.SoftwareVersions, data.DeviceSerialNumber) == ("medseg", "1.2", "abcdef0123456789")


def test_the_same_prediction_is_the_same_object(tmp_path: Path) -> None:
    volume, labels = study(tmp_path), prediction()
    first, again = (pydicom.dcmread(write(volume, labels, tmp_path / name)) for name in ("a", "b"))
    labels[0, 0, 0] = 0
    other = pydicom.dcmread(write(volume, labels, tmp_path / "c"))
    assert first.SOPInstanceUID == again.SOPInstanceUID != other.SOPInstanceUID
    assert first.SOPInstanceUID.startswith("2.25.")


def test_refused_of_files_that_are_no_dicom(tmp_path: Path) -> None:
    files = CaseFiles(id="case", images=(tmp_path / "x.nii.gz",), group="case")
    assert [problem.what for problem in RtStruct().problems(files)] == [problem.what for problem in Preview().problems(files)]
    assert len(RtStruct().problems(files)) == 1


def test_preview_shows_slices_and_no_text_of_the_patient(tmp_path: Path) -> None:
    volume, labels = study(tmp_path), prediction()
    path = write(volume, labels, tmp_path / "out", Preview)
    data = pydicom.dcmread(path)
    assert data.BurnedInAnnotation == "NO"
    assert data.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7.4"
    frames = data.pixel_array
    chosen = key_slices(labels, LABELS)
    assert chosen == [0, 1, 2, 4]
    assert frames.shape[0] == len(chosen) == len(data.SourceImageSequence)
    assert [item.ReferencedSOPInstanceUID for item in data.SourceImageSequence] == [volume.frames[0][z].sop_uid for z in chosen]
    coloured = (np.ptp(frames[..., : frames.shape[1] - 60, :, :].astype(int), axis=-1) > 30).any(axis=(1, 2))
    assert coloured.all()
    empty = pydicom.dcmread(write(volume, np.zeros_like(labels), tmp_path / "empty", Preview))
    assert empty.NumberOfFrames == 1
    picture = empty.pixel_array.reshape(-1, *empty.pixel_array.shape[-2:])
    assert not (np.ptp(picture[: len(picture) - 60].astype(int), axis=-1) > 30).any()


@pytest.mark.parametrize("export", [RtStruct, Preview])
def test_valid_by_another_program(tmp_path: Path, export: type[RtStruct] | type[Preview], program) -> None:
    found = subprocess.run(
        [program("dciodvfy"), "-new", str(write(study(tmp_path, "oblique"), prediction(), tmp_path / "out", export))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in (found.stdout + found.stderr).splitlines() if line.startswith("Error")] == []
