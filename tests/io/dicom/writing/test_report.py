"""Reports hold what was measured, refer to the segments beside them, and are valid."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest

from medseg.io.dicom.writing.report import Report
from medseg.io.exports import find_export
from tests.io.dicom.phantoms import PATIENT
from tests.io.dicom.predicted import enhanced, letter, predicted, series

Program = Callable[[str], Path]


def measured(group: Any) -> dict[str, tuple[float, str]]:
    """Name (and statistic) -> value and unit."""
    found = {}
    for one in group.get_measurements():
        derivation = "" if one.derivation is None else f" {one.derivation.meaning}"
        found[f"{one.name.meaning}{derivation}"] = (float(one.value), one.unit.value)
    return found


def errors(dciodvfy: Path, file: Path) -> list[str]:
    told = subprocess.run([dciodvfy, file], capture_output=True, text=True, check=False)
    return [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")]


def test_measurements_and_references(tmp_path: Path, program: Program) -> None:
    volume = series(tmp_path / "in")
    labels = letter(volume.grid.shape)
    labels[labels == 2] = 0
    result = predicted(volume, labels)
    assert Report().targets(result.files, True) == (Path("case.sr.dcm"), Path("case.seg.dcm"))
    Report().write(result, tmp_path / "out")
    file, other = (tmp_path / "out" / name for name in ("case.sr.dcm", "case.seg.dcm"))
    for one in (file, other):
        assert errors(program("dciodvfy"), one) == []
    segmentation = pydicom.dcmread(other)
    report = highdicom.sr.srread(file)
    for keyword in (*PATIENT, "StudyInstanceUID", "AccessionNumber"):
        assert report[keyword].value == segmentation[keyword].value
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 3
    values = np.random.default_rng(0).integers(0, 1000, volume.grid.shape).astype(np.int16)
    for k, group in enumerate(groups):
        segment = segmentation.SegmentSequence[k]
        assert (group.tracking_uid, group.tracking_identifier) == (segment.TrackingUID, segment.TrackingID)
        mask = labels == k + 1
        found = measured(group)
        assert found["Volume"] == (pytest.approx(mask.sum() * 3 * 0.8 * 0.7 / 1000, rel=1e-6), "ml")
        if not mask.any():
            assert list(found) == ["Volume"]
            continue
        assert found["Attenuation Coefficient Mean"] == (pytest.approx(values[mask].mean(), rel=1e-6), "[hnsf'U]")
        assert found["Attenuation Coefficient Minimum"][0] == values[mask].min()
        assert found["Attenuation Coefficient Maximum"][0] == values[mask].max()
        assert found["Long axis"][0] >= found["Short axis"][0] > 0
        assert found["Maximum 3D Diameter of a Mesh"][0] >= found["Long axis"][0] - 1e-6
    liver, kidney, cyst = groups
    assert liver.finding_type.meaning == "Liver"
    assert (kidney.finding_sites[0].value.meaning, kidney.finding_sites[0].laterality.meaning) == ("Kidney", "Left")
    assert (cyst.finding_type.meaning, cyst.finding_category.meaning) == ("Cyst", "Morphologically Abnormal Structure")
    assert (cyst.finding_sites[0].value.meaning, cyst.finding_sites[0].laterality.meaning) == ("Kidney", "Right")
    text = str(pydicom.dcmread(file))
    assert segmentation.SOPInstanceUID in text
    evidence = pydicom.dcmread(file).CurrentRequestedProcedureEvidenceSequence
    assert {item.SeriesInstanceUID for study in evidence for item in study.ReferencedSeriesSequence} == {
        volume.series.uid,
        segmentation.SeriesInstanceUID,
    }


def test_the_segment_that_is_meant_is_named(tmp_path: Path) -> None:
    volume = series(tmp_path / "in")
    Report().write(predicted(volume, letter(volume.grid.shape)), tmp_path / "out")
    report = pydicom.dcmread(tmp_path / "out" / "case.sr.dcm")
    segmentation = pydicom.dcmread(tmp_path / "out" / "case.seg.dcm")
    named = [
        (item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID, item.ReferencedSOPSequence[0].ReferencedSegmentNumber)
        for part in report.ContentSequence
        if part.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements"
        for group in part.ContentSequence
        for item in group.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Referenced Segment"
    ]
    assert named == [(segmentation.SOPInstanceUID, k) for k in (1, 2, 3)]


def test_values_without_a_unit_are_not_reported(tmp_path: Path) -> None:
    volume = series(tmp_path / "in", modality="MR")
    Report().write(predicted(volume, letter(volume.grid.shape)), tmp_path / "out")
    (group, *_) = highdicom.sr.srread(tmp_path / "out" / "case.sr.dcm").content.get_volumetric_roi_measurement_groups()
    assert list(measured(group)) == ["Volume", "Long axis", "Short axis", "Maximum 3D Diameter of a Mesh"]


def test_enhanced_files_and_nothing_found(tmp_path: Path, program: Program) -> None:
    volume = enhanced(tmp_path / "in")
    Report().write(predicted(volume, np.zeros(volume.grid.shape, np.uint8)), tmp_path / "out")
    for name in ("case.sr.dcm", "case.seg.dcm"):
        assert errors(program("dciodvfy"), tmp_path / "out" / name) == []
    groups = highdicom.sr.srread(tmp_path / "out" / "case.sr.dcm").content.get_volumetric_roi_measurement_groups()
    assert [measured(group) for group in groups] == [{"Volume": (0.0, "ml")}] * 3


def test_images_in_2d_have_areas(tmp_path: Path, program: Program) -> None:
    removed = dict.fromkeys(("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness"))
    volume = series(tmp_path / "in", shape=(1, 10, 9), modality="OT", **removed)
    labels = letter((4, 10, 9))[1]
    Report().write(predicted(volume, labels), tmp_path / "out")
    assert errors(program("dciodvfy"), tmp_path / "out" / "case.sr.dcm") == []
    content = highdicom.sr.srread(tmp_path / "out" / "case.sr.dcm").content
    (liver,) = content.get_planar_roi_measurement_groups()
    assert measured(liver)["Area"] == (pytest.approx((labels == 1).sum() * 0.8 * 0.7), "mm2")
    assert len(content.get_image_measurement_groups()) == 2
    assert isinstance(find_export("sr"), Report)
