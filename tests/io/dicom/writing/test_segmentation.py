"""Segmentations lie where their images lie, say what they hold, and are valid by the programs of others."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK

from medseg.dataset import CaseFiles, LabelClass, Labels
from medseg.errors import ImageError
from medseg.geometry import Array, Grid
from medseg.io.dicom.reading.segments import read_segmentation, segmentation_header
from medseg.io.dicom.settings import DicomSettings, SegmentTerms, Term
from medseg.io.dicom.volume import Source
from medseg.io.dicom.writing.origin import derived_uid, origin_of
from medseg.io.dicom.writing.preview import preview
from medseg.io.dicom.writing.rtstruct import structure_set
from medseg.io.dicom.writing.segmentation import LabelMap, Seg
from medseg.io.dicom.writing.subject import Subject
from medseg.io.exports import Result, find_export
from tests.io.dicom.phantoms import PATIENT, grid_of
from tests.io.dicom.predicted import DIRECTIONS, enhanced, grid_along, letter, predicted, series

Program = Callable[[str], Path]


def write(result: Result, out: Path) -> tuple[Path, Path]:
    Seg().write(result, out)
    LabelMap().write(result, out)
    return out / "case.seg.dcm", out / "case.labelmap.dcm"


def complaints(dciodvfy: Path, file: Path) -> list[str]:
    told = subprocess.run([dciodvfy, file], capture_output=True, text=True, check=False)
    return [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")]


def world_of(file: Path) -> dict[tuple[float, ...], int]:
    """World position of every labelled voxel -> its segment, by the frames of a file alone; no code of medseg."""
    data = pydicom.dcmread(file)
    shared = data.SharedFunctionalGroupsSequence[0]
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    down, across = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    found = {}
    for frame, group in zip(
        np.atleast_3d(data.pixel_array).reshape(-1, data.Rows, data.Columns), data.PerFrameFunctionalGroupsSequence, strict=True
    ):
        start = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame):
            position = start + axes[3:] * down * row + axes[:3] * across * column
            value = frame[row, column]
            if data.SegmentationType == "BINARY":
                holder = group if "SegmentIdentificationSequence" in group else shared
                value = holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            found[tuple(np.round(position, 2) + 0.0)] = int(value)
    return found


def expected(labels: Array, grid: Grid) -> dict[tuple[float, ...], int]:
    return {tuple(np.round(grid.world(index.astype(float)), 2) + 0.0): int(labels[tuple(index)]) for index in np.argwhere(labels)}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("backwards", [False, True])
def test_an_f_lies_where_it_was_seen(tmp_path: Path, direction: str, backwards: bool) -> None:
    grid = grid_along((5, 10, 9), direction)
    number = (lambda z: 5 - z) if backwards else (lambda z: z + 1)
    volume = series(tmp_path / "in", grid=grid, modality="MR", InstanceNumber=number)
    labels = letter(volume.grid.shape)
    for file in write(predicted(volume, labels), tmp_path / "out"):
        assert world_of(file) == expected(labels, grid)
        found = read_segmentation(Source(file), volume)
        assert np.array_equal(found.maps[0], labels)
        assert len(found.maps) == 1


def test_an_f_on_an_enhanced_file_refers_to_its_frames(tmp_path: Path) -> None:
    volume = enhanced(tmp_path / "in", times=2)
    assert len(volume.frames) == 2
    labels = letter(volume.grid.shape)
    file, labelmap = write(predicted(volume, labels), tmp_path / "out")
    assert world_of(file) == world_of(labelmap) == expected(labels, volume.grid)
    source = pydicom.dcmread(tmp_path / "in" / "enhanced.dcm")
    data = pydicom.dcmread(file)
    assert [item.ReferencedSOPInstanceUID for item in data.SourceImageSequence] == [source.SOPInstanceUID]
    for group in data.PerFrameFunctionalGroupsSequence:
        (item,) = group.DerivationImageSequence[0].SourceImageSequence
        frame = source.PerFrameFunctionalGroupsSequence[item.ReferencedFrameNumber - 1]
        assert item.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert frame.FrameContentSequence[0].TemporalPositionIndex == 1
        assert np.allclose(frame.PlanePositionSequence[0].ImagePositionPatient, group.PlanePositionSequence[0].ImagePositionPatient)


def test_others_read_the_same_voxels(tmp_path: Path, program: Program) -> None:
    converter, checker, dump, convert = map(program, ("segimage2itkimage", "dciodvfy", "dcmdump", "dcmconv"))
    volume = series(tmp_path / "in", grid=grid_along((5, 10, 9), "oblique"), modality="MR")
    labels = letter(volume.grid.shape)
    file, labelmap = write(predicted(volume, labels), tmp_path / "out")
    assert complaints(checker, file) == []
    # dciodvfy of 2024 and before does not know label maps, whose first segment is the background
    assert [line.split(" - ")[1] for line in complaints(checker, labelmap)] == [
        "SegmentNumber not monotonically increasing from one by one",
        "Information Object Not found",
    ]
    for one in (file, labelmap):
        subprocess.run([dump, "-q", one], check=True, capture_output=True)
        subprocess.run([convert, one, tmp_path / "copy.dcm"], check=True, capture_output=True)
        command = [converter, "--inputDICOM", one, "--outputDirectory", tmp_path, "-t", "nrrd", "--mergeSegments", "-p", one.stem]
        subprocess.run(command, check=True, capture_output=True)
        image = SimpleITK.ReadImage(str(next(tmp_path.glob(f"{one.stem}*.nrrd"))))
        array = SimpleITK.GetArrayFromImage(image)
        affine = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        found = {
            tuple(np.round(affine @ index[::-1] + image.GetOrigin(), 2) + 0.0): int(array[tuple(index)]) for index in np.argwhere(array)
        }
        assert found == expected(labels, volume.grid)


def test_highdicom_reads_the_same_voxels(tmp_path: Path) -> None:
    volume = series(tmp_path / "in", grid=grid_along((5, 10, 9), "coronal"), modality="MR")
    labels = letter(volume.grid.shape)
    for file in write(predicted(volume, labels), tmp_path / "out"):
        read = highdicom.seg.segread(file).get_volume(combine_segments=True)
        found = {
            tuple(np.round(read.affine[:3, :3] @ index + read.affine[:3, 3], 2) + 0.0): int(read.array[tuple(index)])
            for index in np.argwhere(read.array)
        }
        assert found == expected(labels, volume.grid)


def test_what_the_object_says(tmp_path: Path) -> None:
    volume = series(tmp_path / "in", SeriesNumber=7)
    file, labelmap = write(predicted(volume, letter(volume.grid.shape)), tmp_path / "out")
    images = sorted((tmp_path / "in").iterdir())
    image = pydicom.dcmread(images[0])
    for data in (pydicom.dcmread(file), pydicom.dcmread(labelmap)):
        for keyword in (*PATIENT, "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "FrameOfReferenceUID"):
            assert data[keyword].value == image[keyword].value, keyword
        assert data.SeriesInstanceUID != image.SeriesInstanceUID
        assert (data.Manufacturer, data.ManufacturerModelName, data.SoftwareVersions) == ("medseg", "Abdomen", "0.1.0")
        assert data.DeviceSerialNumber == "0123456789abcdef"
        (reference,) = data.ReferencedSeriesSequence
        assert reference.SeriesInstanceUID == image.SeriesInstanceUID
        wanted = {pydicom.dcmread(path).SOPInstanceUID for path in images}
        assert {item.ReferencedSOPInstanceUID for item in reference.ReferencedInstanceSequence} == wanted
        liver, kidney, cyst = [item for item in data.SegmentSequence if item.SegmentNumber]
        assert [item.SegmentLabel for item in (liver, kidney, cyst)] == ["liver", "left kidney", "right kidney cyst"]
        assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
        assert liver.SegmentAlgorithmType == "AUTOMATIC"
        assert liver.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "0.1.0 0123456789abcdef"
        assert highdicom.color.CIELabColor.from_dicom_value(liver.RecommendedDisplayCIELabValue).to_rgb() == (221, 130, 101)
        (modifier,) = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
        assert modifier.CodeMeaning == "Left"
        assert cyst.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"
        (region,) = cyst.AnatomicRegionSequence
        assert (region.CodeMeaning, region.AnatomicRegionModifierSequence[0].CodeMeaning) == ("Kidney", "Right")
        assert len({item.TrackingUID for item in (liver, kidney, cyst)}) == 3
    assert pydicom.dcmread(file).SeriesNumber == 791
    assert pydicom.dcmread(labelmap).SeriesNumber == 792
    header = segmentation_header(Source(file))
    assert (header.kind, header.series, header.world) == ("BINARY", (image.SeriesInstanceUID,), image.FrameOfReferenceUID)


def test_frames_of_a_slice_refer_to_its_image_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    volume = series(tmp_path / "in")
    labels = letter(volume.grid.shape)
    file, labelmap = write(predicted(volume, labels), tmp_path / "out")
    uids = {tuple(map(float, one.ImagePositionPatient)): one.SOPInstanceUID for one in map(pydicom.dcmread, (tmp_path / "in").iterdir())}
    data = pydicom.dcmread(file)
    assert data.NumberOfFrames == 3 + 1 + 1
    assert pydicom.dcmread(labelmap).NumberOfFrames == 5
    for group in data.PerFrameFunctionalGroupsSequence:
        (item,) = group.DerivationImageSequence[0].SourceImageSequence
        assert uids[tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))] == item.ReferencedSOPInstanceUID


def test_the_same_prediction_is_the_same_object(tmp_path: Path) -> None:
    volume = series(tmp_path / "in")
    labels = letter(volume.grid.shape)
    probabilities = np.stack([labels == 0, labels == 1, labels == 2, labels == 3]).astype(np.float16)
    objects = []
    other = labels.copy()
    other[0, 0, 0] = 1
    for k, array in enumerate((labels, labels.copy(), other)):
        Seg().write(predicted(volume, array, probabilities=probabilities), tmp_path / str(k))
        LabelMap().write(predicted(volume, array), tmp_path / str(k))
        objects.append([pydicom.dcmread(file) for file in sorted((tmp_path / str(k)).iterdir())])
    first, again, third = ([one.SOPInstanceUID for one in group] for group in objects)
    assert first == again
    assert len({*first, *third}) == 6
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in (*first, *third))
    tracked = [[item.get("TrackingUID") for item in one.SegmentSequence if item.SegmentNumber] for one in objects[0]]
    assert tracked[0] == tracked[1] == tracked[2]
    assert len({one.SeriesInstanceUID for one in objects[0]}) == 3


def test_nothing_found_is_still_an_object(tmp_path: Path, program: Program) -> None:
    volume = series(tmp_path / "in", shape=(40, 10, 9))
    file, labelmap = write(predicted(volume, np.zeros(volume.grid.shape, np.uint8)), tmp_path / "out")
    assert pydicom.dcmread(file).NumberOfFrames == 3
    assert pydicom.dcmread(labelmap).NumberOfFrames == 1
    for one in (file, labelmap):
        found = read_segmentation(Source(one), volume)
        assert not found.maps[0].any()
        assert list(found.names.values()) == ["liver", "left kidney", "right kidney cyst"]
    assert complaints(program("dciodvfy"), file) == []


def test_probabilities_are_fractions(tmp_path: Path, program: Program) -> None:
    volume = series(tmp_path / "in")
    labels = letter(volume.grid.shape)
    probabilities = np.random.default_rng(0).random((4, *labels.shape)).astype(np.float16)
    probabilities[1:, 0] = 0
    result = predicted(volume, labels, probabilities=probabilities)
    assert Seg().targets(result.files, True) == (Path("case.seg.dcm"), Path("case.probabilities.dcm"))
    Seg().write(result, tmp_path / "out")
    file = tmp_path / "out" / "case.probabilities.dcm"
    assert complaints(program("dciodvfy"), file) == []
    data = pydicom.dcmread(file)
    assert (data.SegmentationType, data.SegmentationFractionalType, data.MaximumFractionalValue) == ("FRACTIONAL", "PROBABILITY", 255)
    assert data.NumberOfFrames == 3 * 4
    z_of = {round(float(volume.grid.world((z, 0, 0))[2]), 3): z for z in range(5)}
    for frame, group in zip(data.pixel_array, data.PerFrameFunctionalGroupsSequence, strict=True):
        segment = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        z = z_of[round(float(group.PlanePositionSequence[0].ImagePositionPatient[2]), 3)]
        assert np.abs(frame / 255 - probabilities[segment, z].astype(float)).max() <= 0.5 / 255 + 1e-3


def test_regions_keep_their_overlap_in_masks_and_are_named_by_what_is_left_in_a_label_map(tmp_path: Path) -> None:
    volume = series(tmp_path / "in")
    regions = Labels(
        classes=(
            LabelClass(name="whole tumor", values=(1, 2, 3)),
            LabelClass(name="tumor core", values=(2, 3)),
            LabelClass(name="ET", values=(3,)),
        ),
        order=(1, 2, 3),
    )
    labels = letter(volume.grid.shape)
    file, labelmap = write(predicted(volume, labels, regions), tmp_path / "out")
    found = read_segmentation(Source(file), volume)
    assert len(found.maps) == 3
    for number, values in ((1, (1, 2, 3)), (2, (2, 3)), (3, (3,))):
        assert np.array_equal(np.any([one == number for one in found.maps], axis=0), np.isin(labels, values))
    assert pydicom.dcmread(file).SegmentsOverlap == "YES"
    shown = read_segmentation(Source(labelmap), volume)
    assert np.array_equal(shown.maps[0], labels)
    assert shown.names == {1: "whole tumor without tumor core, ET", 2: "tumor core without ET", 3: "ET"}


def test_values_of_classes_need_not_be_in_order(tmp_path: Path) -> None:
    volume = series(tmp_path / "in")
    classes = Labels(classes=(LabelClass(name="liver", values=(300,)), LabelClass(name="spleen", values=(7, 8))), ignore=9)
    labels = letter(volume.grid.shape).astype(np.uint16)
    given = np.array([0, 300, 8, 9], np.uint16)[labels]
    for file in write(predicted(volume, given, classes), tmp_path / "out"):
        assert np.array_equal(read_segmentation(Source(file), volume).maps[0], np.array([0, 1, 2, 0])[labels])


def test_codes_are_chosen_in_the_settings(tmp_path: Path) -> None:
    volume = series(tmp_path / "in")
    chosen = SegmentTerms(
        category=Term(value="260787004", meaning="Physical object"), type=Term(value="65818007", meaning="Stent"), color=(9, 8, 7)
    )
    result = predicted(volume, letter(volume.grid.shape), settings=DicomSettings(classes={"liver": chosen}))
    file, _ = write(result, tmp_path / "out")
    (code,) = pydicom.dcmread(file).SegmentSequence[0].SegmentedPropertyTypeCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == ("65818007", "SCT", "Stent")
    assert Seg().warnings(result.files, result.labels, result.maker) == ()


def test_images_in_2d_have_their_own_rules(tmp_path: Path, program: Program) -> None:
    removed = dict.fromkeys(
        ("FrameOfReferenceUID", "PositionReferenceIndicator", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness")
    )
    volume = series(tmp_path / "in", shape=(1, 10, 9), modality="OT", PatientOrientation=["L", "F"], **removed)
    assert volume.grid.ndim == 2
    labels = letter((4, 10, 9))[1]
    file, labelmap = write(predicted(volume, labels), tmp_path / "out")
    assert complaints(program("dciodvfy"), file) == []
    data = pydicom.dcmread(file)
    assert "FrameOfReferenceUID" not in data
    assert list(data.PatientOrientation) == ["L", "F"]
    for one in (file, labelmap):
        assert np.array_equal(read_segmentation(Source(one), volume).maps[0], labels)
    empty, _ = write(predicted(volume, np.zeros_like(labels)), tmp_path / "empty")
    assert complaints(program("dciodvfy"), empty) == []


def test_a_tilted_gantry_gets_its_own_slices_back(tmp_path: Path) -> None:
    grid = grid_of((6, 40, 12), spacing=(3.0, 1.0, 1.0))
    affine = grid.affine.copy()
    affine[:3, 0] += affine[:3, 1]  # each slice lies one row further down
    sheared = Grid(grid.shape, affine)
    volume = series(tmp_path / "in", grid=sheared)
    assert volume.tilted is not None
    labels = np.zeros(volume.grid.shape, np.uint8)
    middle = volume.grid.world(np.argwhere(np.ones(volume.grid.shape)).astype(float)).reshape(*volume.grid.shape, 3)
    labels[np.abs(middle[..., 1] - middle[..., 1].mean()) < 6] = 1
    file, _ = write(predicted(volume, labels, ("liver",)), tmp_path / "out")
    marked = np.array(list(world_of(file)))
    assert np.abs(marked[:, 1] - middle[..., 1].mean()).max() < 6.01
    data = pydicom.dcmread(file)
    images = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, (tmp_path / "in").iterdir())}
    for group in data.PerFrameFunctionalGroupsSequence:
        (item,) = group.DerivationImageSequence[0].SourceImageSequence
        assert item.SpatialLocationsPreserved == "YES"
        image = images[item.ReferencedSOPInstanceUID]
        assert np.allclose(image.ImagePositionPatient, group.PlanePositionSequence[0].ImagePositionPatient)


def test_what_broken_images_lack_is_filled_and_told(tmp_path: Path, program: Program) -> None:
    lacking = dict.fromkeys(
        ("PatientID", "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName", "FrameOfReferenceUID")
    )
    odd = {"PatientBirthDate": "1901.02.03", "PatientSex": "m", "PatientName": "Müller^Jürgen", "SpecificCharacterSet": "ISO_IR 100"}
    with pydicom.config.disable_value_validation():
        volume = series(tmp_path / "in", **lacking, **odd)
    result = predicted(volume, letter(volume.grid.shape))
    (problem,) = Seg().warnings(result.files, result.labels, result.maker)
    for told in ("PatientID: empty", "StudyDate: empty", "Frame of Reference UID: a new one"):
        assert told in problem.found
    file, labelmap = write(result, tmp_path / "out")
    assert complaints(program("dciodvfy"), file) == []
    data = pydicom.dcmread(file)
    assert (data.PatientBirthDate, data.PatientSex, str(data.PatientName)) == ("19010203", "M", "Müller^Jürgen")
    assert data.FrameOfReferenceUID == pydicom.dcmread(labelmap).FrameOfReferenceUID == derived_uid("world", volume.series.uid)


def test_dates_that_are_none_are_left_out(tmp_path: Path) -> None:
    with pydicom.config.disable_value_validation():
        volume = series(tmp_path / "in", PatientBirthDate="unknown", StudyTime="99:99", StudyID="S" * 20)
    found = origin_of(volume).common
    assert (found.PatientBirthDate, found.StudyTime, found.StudyID) == ("", "", "S" * 16)


def test_identifiers_are_copied_as_they_stand(tmp_path: Path) -> None:
    told = {"PatientID": "AB  12", "PatientName": "Two  Blanks^A\u3000B", "AccessionNumber": " 7", "PatientComments": "a\r\n b"}
    with pydicom.config.disable_value_validation():
        volume = series(tmp_path / "in", SpecificCharacterSet="ISO_IR 192", **told)
    found = origin_of(volume).common
    assert {keyword: str(found[keyword].value) for keyword in told} == told


def test_another_version_of_medseg_makes_another_object(tmp_path: Path) -> None:
    volume = series(tmp_path / "in")
    result = predicted(volume, letter((5, 10, 9)))
    newer = dataclasses.replace(result, maker=dataclasses.replace(result.maker, version="0.2.0"))
    assert Subject.of(result).uid() == Subject.of(result).uid() != Subject.of(newer).uid()
    origin = origin_of(volume)
    assert preview(result, origin).SOPInstanceUID != preview(newer, origin).SOPInstanceUID
    assert structure_set(result, origin).SOPInstanceUID != structure_set(newer, origin).SOPInstanceUID


def test_what_cannot_be_written_is_refused_by_headers(tmp_path: Path) -> None:
    files = CaseFiles(id="a", images=(tmp_path / "a.nii.gz",), group="a")
    (problem,) = Seg().problems(files)
    assert "no DICOM series" in str(problem)
    lost = files.model_copy(update={"images": (tmp_path / "0123456789abcdef.series",)})
    with pytest.raises(ImageError, match="no such DICOM volume"):
        Seg().problems(lost)
    volume = series(tmp_path / "in", ImagePositionPatient=lambda z: ["0", "0", str([0, 3, 6, 20, 23][z])])
    with pytest.raises(ImageError) as caught:
        Seg().problems(files.model_copy(update={"images": (volume.path,)}))
    assert tuple(caught.value.problems) == volume.errors != ()
    sound = series(tmp_path / "sound")
    assert LabelMap().problems(files.model_copy(update={"images": (sound.path,)})) == ()
    with pytest.raises(ImageError, match=r"does not have the shape of its images; found 2 x 2 x 2, expected 5 x 10 x 9"):
        Seg().write(predicted(sound, np.zeros((2, 2, 2), np.uint8)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_exports_are_found_by_name() -> None:
    assert isinstance(find_export("seg"), Seg)
    assert isinstance(find_export("labelmap"), LabelMap)


def test_no_line_of_the_log_comes_of_writing(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    volume = series(tmp_path / "in")
    for array in (letter(volume.grid.shape), np.zeros(volume.grid.shape, np.uint8)):
        write(predicted(volume, array), tmp_path / "out")
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert capsys.readouterr() == ("", "")
