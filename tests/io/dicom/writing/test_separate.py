"""Objects in DICOM: a segment, region and group of measurements for each, by the programs of others, too."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medseg.dataset import NUMBER_BITS, LabelClass, Labels
from medseg.errors import ImageError
from medseg.io.dicom.reading.segments import read_segmentation
from medseg.io.dicom.volume import Source, Volume
from medseg.io.dicom.writing import segmentation
from medseg.io.dicom.writing.report import Report
from medseg.io.dicom.writing.rtstruct import RtStruct
from medseg.io.dicom.writing.segmentation import LabelMap, Seg
from medseg.io.dicom.writing.separate import separated
from medseg.io.exports import Result
from tests.io.dicom.predicted import predicted, series

LABELS = Labels(classes=(LabelClass(name="kidney", values=(1,)), LabelClass(name="liver cyst", values=(2, 3))), things=("liver cyst",))


def code(value: int, number: int = 0) -> int:
    return value << NUMBER_BITS | number


def scene(shape: tuple[int, ...]) -> np.ndarray:
    """Three cysts, two of which touch, their numbers with a gap; and a kidney."""
    codes = np.zeros(shape, np.int32)
    codes[..., 1:3, 1:4] = code(2, 1)
    codes[..., 1:3, 4:6] = code(2, 2)
    codes[..., 6:8, 1:3] = code(3, 40)
    codes[..., 9, :] = code(1)
    return codes


def found(volume: Volume, empty: bool = False) -> Result:
    codes = scene(volume.grid.shape)
    return predicted(volume, codes * 0 if empty else codes, LABELS)


NAMES = ["liver cyst 1", "liver cyst 2", "liver cyst 40", "kidney"]


def test_each_object_is_a_segment_with_a_track_of_its_own(tmp_path: Path, program: Callable[[str], Path]) -> None:
    volume = series(tmp_path / "in")
    result = found(volume)
    Report().write(result, tmp_path / "out")
    LabelMap().write(result, tmp_path / "out")
    data = pydicom.dcmread(tmp_path / "out" / "case.seg.dcm")
    segments = data.SegmentSequence
    assert [s.SegmentLabel for s in segments] == NAMES
    assert [s.TrackingID for s in segments] == [f"Abdomen {name}" for name in NAMES]
    assert len({s.TrackingUID for s in segments}) == 4
    codes = [s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for s in segments]
    assert codes[0] == codes[1] == codes[2] != codes[3]
    assert len({tuple(s.RecommendedDisplayCIELabValue) for s in segments}) == 4
    numbers = np.zeros(volume.grid.shape, int)
    for number, value in enumerate((code(2, 1), code(2, 2), code(3, 40), code(1)), 1):
        numbers[scene(volume.grid.shape) == value] = number
    for name in ("seg", "labelmap"):
        read = read_segmentation(Source(tmp_path / "out" / f"case.{name}.dcm"), volume)
        assert read.names == dict(enumerate(NAMES, 1))
        assert np.array_equal(read.maps[0], numbers)
    report = pydicom.dcmread(tmp_path / "out" / "case.sr.dcm")
    text = str(report)
    assert all(s.TrackingUID in text for s in segments)
    for name in ("seg", "sr"):
        told = subprocess.run([program("dciodvfy"), tmp_path / "out" / f"case.{name}.dcm"], capture_output=True, text=True, check=False)
        assert [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")] == []


def test_structure_sets_have_a_region_for_each(tmp_path: Path) -> None:
    RtStruct().write(found(series(tmp_path / "in")), tmp_path / "out")
    data = pydicom.dcmread(tmp_path / "out" / "case.rtstruct.dcm")
    assert [roi.ROIName for roi in data.StructureSetROISequence] == NAMES


def test_without_objects_the_classes_are_described(tmp_path: Path) -> None:
    result = found(series(tmp_path / "in"), empty=True)
    for export in (Seg(), LabelMap(), RtStruct(), Report()):
        export.write(result, tmp_path / "out")
    data = pydicom.dcmread(tmp_path / "out" / "case.seg.dcm")
    assert [s.SegmentLabel for s in data.SegmentSequence] == ["kidney", "liver cyst"]
    assert not data.pixel_array.any()


def test_names_that_are_taken_and_labels_without_things(tmp_path: Path) -> None:
    volume = series(tmp_path / "in")
    labels = Labels(classes=(LabelClass(name="cell", values=(1,)), LabelClass(name="cell 1", values=(2,))), things=("cell",))
    codes = np.where(scene(volume.grid.shape) == code(1), code(2), scene(volume.grid.shape) * 0 + code(1, 1)).astype(np.int32)
    assert separated(predicted(volume, codes, labels)).labels.names == ("cell 1", "cell 1 (object)")
    plain = predicted(volume, np.zeros(volume.grid.shape, np.uint8))
    assert separated(plain) is plain


def test_the_same_objects_have_the_same_tracks(tmp_path: Path) -> None:
    volume = series(tmp_path / "in")
    for out in ("a", "b"):
        Seg().write(found(volume), tmp_path / out)
    one, other = (pydicom.dcmread(tmp_path / out / "case.seg.dcm") for out in ("a", "b"))
    assert one.SOPInstanceUID == other.SOPInstanceUID
    assert [s.TrackingUID for s in one.SegmentSequence] == [s.TrackingUID for s in other.SegmentSequence]


def test_probabilities_are_those_of_classes(tmp_path: Path) -> None:
    """Of a dense head offsets come after them."""
    volume = series(tmp_path / "in")
    maps = np.zeros((6, *volume.grid.shape), np.float16)
    maps[1, 0], maps[2, 1], maps[3:] = 0.4, 0.8, 0.6
    result = found(volume)
    Seg().write(dataclasses.replace(result, prediction=dataclasses.replace(result.prediction, probabilities=maps)), tmp_path / "out")
    data = pydicom.dcmread(tmp_path / "out" / "case.probabilities.dcm")
    assert [s.SegmentLabel for s in data.SegmentSequence] == ["kidney", "liver cyst"]
    assert sorted({int(v) for v in np.unique(data.pixel_array)}) == [102, 204]


def test_too_many_masks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = found(series(tmp_path / "in"))
    monkeypatch.setattr(segmentation, "FRAMES", 20 * 90 - 1)  # 5 slices of 4 segments, 10 x 9 pixels each
    with pytest.raises(ImageError, match=r"too many for one DICOM object with a mask for each; found 20 frames.*--format labelmap"):
        Seg().write(result, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    LabelMap().write(result, tmp_path / "out")
    monkeypatch.setattr(segmentation, "FRAMES", 20 * 90)
    Seg().write(result, tmp_path / "out")
    monkeypatch.setattr(segmentation, "SEGMENTS", 3)
    with pytest.raises(ImageError, match="more objects were found than a DICOM segmentation can number; found 4, expected 3"):
        LabelMap().write(result, tmp_path / "out")
