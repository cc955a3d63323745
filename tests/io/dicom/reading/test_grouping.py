"""What becomes a volume, in which order, and what is said where files do not fit together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.io.dicom.reading import grouping
from medseg.io.dicom.reading.reader import find_volume, read_voxels, scan
from tests.io.dicom.phantoms import grid_of, write_enhanced, write_series

SHAPE = (6, 5, 4)


def _array(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 900, shape).astype(np.int16)


def _said(problems: tuple[Any, ...]) -> str:
    return "\n".join(map(str, problems))


def test_missing_slice_is_named(tmp_path: Path) -> None:
    files = write_series(tmp_path, _array(), grid_of(SHAPE))
    files[3].unlink()
    (volume,) = scan(tmp_path).volumes
    assert "a slice is missing; found 5 slices with a gap after slice 3 (6 mm), expected 6 slices, 3 mm apart" in _said(volume.errors)


def test_overlapping_slice_is_named(tmp_path: Path) -> None:
    grid = grid_of(SHAPE)
    write_series(tmp_path, _array(), grid)
    first = scan(tmp_path).volumes[0].series
    write_series(tmp_path / "more", _array()[:1], grid, ImagePositionPatient=[*grid.world((2.3, 0, 0))], SOPInstanceUID="2.25.7",
                 SeriesInstanceUID=first.uid, StudyInstanceUID=first.study, FrameOfReferenceUID=first.world, InstanceNumber=99)  # fmt: skip
    (volume,) = scan(tmp_path).volumes
    assert "slices overlap: some lie closer to the next than others do; found 0.9 mm after slice 3, 4, expected 3 mm" in _said(
        volume.errors
    )


def test_copies_are_dropped_and_told(tmp_path: Path) -> None:
    array, grid = _array(), grid_of(SHAPE)
    write_series(tmp_path / "a", array, grid)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (volume,) = scan(tmp_path).volumes
    assert not volume.errors
    assert "images are there more than once; one of each is read; found 6 copies" in _said(volume.warnings)
    assert volume.folder == tmp_path / "a"
    assert np.array_equal(read_voxels(volume)[0], array)


def test_copies_under_other_uids_are_told_by_their_pixels(tmp_path: Path) -> None:
    array, grid = _array(), grid_of(SHAPE)
    write_series(tmp_path, array, grid)
    first = scan(tmp_path).volumes[0].series
    same = {"SeriesInstanceUID": first.uid, "StudyInstanceUID": first.study, "FrameOfReferenceUID": first.world}
    write_series(tmp_path / "again", array, grid, SOPInstanceUID=lambda z: f"2.25.8{z}", **same)
    (volume,) = scan(tmp_path).volumes
    assert "6 copies" in _said(volume.warnings)
    assert not volume.errors
    shutil.rmtree(tmp_path / "again")
    write_series(tmp_path / "other", array + 1, grid, SOPInstanceUID=lambda z: f"2.25.8{z}", **same)
    (volume,) = scan(tmp_path).volumes
    assert "several different images lie at one position, and their headers do not say which comes when" in _said(volume.errors)


@pytest.mark.parametrize(
    ("tags", "times"),
    [
        (lambda t: {"TemporalPositionIdentifier": t + 1}, (0, 1, 2)),
        (lambda t: {"TriggerTime": lambda z: str(5 + 40 * t + z), "NominalInterval": "900"}, (0, 0.04, 0.08)),
        (lambda t: {"AcquisitionNumber": t + 3}, (0, 1, 2)),
        (lambda t: {"AcquisitionDate": "20200101", "AcquisitionTime": f"1200{2 * t:02d}.5"}, (0, 2, 4)),
        (lambda t: {"InstanceNumber": lambda z: z * 3 + t}, (0, 1, 2)),
        (lambda t: {"FrameReferenceTime": str(1000 * 5**t)}, (0, 4, 24)),
    ],
)
def test_repeated_positions_are_time_points(tmp_path: Path, tags: Any, times: tuple[float, ...]) -> None:
    array, grid = _array((3, *SHAPE)), grid_of(SHAPE, "oblique")
    for t in (2, 0, 1):
        write_series(tmp_path / str(t), array[t], grid, "MR", **{
            "SeriesInstanceUID": "2.25.1", "FrameOfReferenceUID": "2.25.2", "SOPInstanceUID": lambda z, t=t: f"2.25.3.{t}.{z}", **tags(t),
        })  # fmt: skip
    (volume,) = scan(tmp_path).volumes
    assert not volume.errors
    assert volume.times == pytest.approx(times)
    assert np.array_equal(read_voxels(volume), array)


def test_cine_that_is_there_in_part(tmp_path: Path) -> None:
    """Two phases at every position, all of them at one: a volume of two time points, and the whole cine of one slice."""
    array, grid = _array((20, *SHAPE)), grid_of(SHAPE)
    for t in range(20):
        files = write_series(tmp_path / str(t), array[t], grid, "MR", SeriesInstanceUID="2.25.1", FrameOfReferenceUID=lambda z, t=t: f"2.25.9.{t}.{z}",
                             SOPInstanceUID=lambda z, t=t: f"2.25.3.{t}.{z}", NominalInterval=lambda z: 700 + 10 * z, CardiacNumberOfImages=20,
                             TriggerTime=lambda z, t=t: f"{(700 + 10 * z) * (t + 0.5) / 20:.6g}", InstanceNumber=lambda z, t=t: z * 20 + t)  # fmt: skip
        for z, file in enumerate(files):
            if t not in (6, 19) and z != 2:
                file.unlink()
    cine, volume = sorted(scan(tmp_path).volumes, key=lambda one: one.grid.shape)
    assert np.array_equal(read_voxels(volume), array[[6, 19]])
    assert "time points that some positions lack are left out" in _said(volume.warnings)
    assert "the frame of reference differs within the series" in _said(volume.warnings)
    assert cine.grid.shape == (1, 5, 4)
    assert np.array_equal(read_voxels(cine)[:, 0], array[:, 2])
    assert cine.grid.spacing[0] == pytest.approx(3)


def test_a_few_lost_images_of_a_time_series_cost_their_time_points_only(tmp_path: Path) -> None:
    array, grid = _array((4, *SHAPE)), grid_of(SHAPE)
    for t in range(4):
        files = write_series(tmp_path / str(t), array[t], grid, "MR", SeriesInstanceUID="2.25.1", FrameOfReferenceUID="2.25.2",
                             SOPInstanceUID=lambda z, t=t: f"2.25.3.{t}.{z}", TemporalPositionIdentifier=t + 1)  # fmt: skip
        if t == 2:
            files[0].unlink()
    (volume,) = scan(tmp_path).volumes
    assert np.array_equal(read_voxels(volume), array[[0, 1, 3]])


def test_magnitude_and_phase_are_two_volumes(tmp_path: Path) -> None:
    grid = grid_of(SHAPE)
    for i, letter in enumerate("MP"):
        write_series(tmp_path / letter, _array(seed=i), grid, "MR", SeriesInstanceUID="2.25.1", FrameOfReferenceUID="2.25.2",
                     SOPInstanceUID=lambda z, i=i: f"2.25.3.{i}.{z}", ImageType=["ORIGINAL", "PRIMARY", letter])  # fmt: skip
    volumes = scan(tmp_path).volumes
    assert sorted(volume.series.kind[-1] for volume in volumes) == ["M", "P"]
    for volume in volumes:
        assert np.array_equal(read_voxels(volume)[0], _array(seed="MP".index(volume.series.kind[-1])))


def test_two_acquisitions_that_do_not_fit_are_two_volumes(tmp_path: Path) -> None:
    for i in range(2):
        grid = grid_of(SHAPE, origin=(0, 0, 19.3 * i))
        write_series(tmp_path / str(i), _array(seed=i), grid, SeriesInstanceUID="2.25.1", FrameOfReferenceUID="2.25.2",
                     SOPInstanceUID=lambda z, i=i: f"2.25.3.{i}.{z}", AcquisitionNumber=i + 1)  # fmt: skip
    volumes = scan(tmp_path).volumes
    assert [len(volume.frames[0]) for volume in volumes] == [6, 6]
    assert not any(volume.errors for volume in volumes)


def test_mixed_orientations_are_volumes_of_their_own_and_localizers_are_named(tmp_path: Path) -> None:
    for i, orientation in enumerate(("axial", "coronal")):
        tags = {"SeriesInstanceUID": "2.25.1", "FrameOfReferenceUID": "2.25.2", "SOPInstanceUID": lambda z, i=i: f"2.25.3.{i}.{z}"}
        write_series(tmp_path / "mixed" / str(i), _array(seed=i), grid_of(SHAPE, orientation), **tags)
        kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        write_series(tmp_path / "scout" / str(i), _array((1, 5, 4)), grid_of((1, 5, 4), orientation), "MR", ImageType=kind, **tags)
    mixed, scouts = scan(tmp_path / "mixed").volumes, scan(tmp_path / "scout").volumes
    assert ["the series mixes orientations" in _said(volume.warnings) for volume in mixed] == [True, True]
    assert ["is a localizer" in _said(volume.warnings) for volume in scouts] == [True, True]
    assert not any("mixes" in _said(volume.warnings) for volume in scouts)


def test_directions_that_straddle_a_rounding_are_one_volume(tmp_path: Path) -> None:
    tilt = [0.0014999, 0.0015001]
    write_series(tmp_path, _array(), grid_of(SHAPE), ImageOrientationPatient=lambda z: [1, 0, 0, 0, 1, tilt[z % 2]])
    (volume,) = scan(tmp_path).volumes
    assert len(volume.frames[0]) == 6
    assert not volume.errors


def test_shifted_slices_are_refused(tmp_path: Path) -> None:
    grid = grid_of(SHAPE)
    positions = grid.world(np.array([[z, 0, 0] for z in range(6)], dtype=np.float64))
    positions[2, 0] += 2
    write_series(tmp_path, _array(), grid, ImagePositionPatient=lambda z: [f"{v:.8g}" for v in positions[z]])
    (volume,) = scan(tmp_path).volumes
    assert "slices are shifted against each other; found up to 2 mm beside the line of the others" in _said(volume.errors)


def test_slices_without_positions_are_ordered_by_their_location(tmp_path: Path) -> None:
    array, grid = _array(), grid_of(SHAPE)
    write_series(tmp_path, array, grid, ImagePositionPatient=None, ImageOrientationPatient=None, SliceLocation=lambda z: str(90 - 3 * z))
    (volume,) = scan(tmp_path).volumes
    assert not volume.spaced
    assert "the files do not say where slices lie; their slice locations order them" in _said(volume.warnings)
    assert np.array_equal(read_voxels(volume)[0], array[::-1])
    assert volume.grid.spacing == pytest.approx((3, 0.8, 0.7))


def test_pictures_are_images_in_2d_each(tmp_path: Path) -> None:
    grid = grid_of((2, 5, 4))
    where = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    write_series(tmp_path, _array((2, 5, 4)).astype(np.uint8), grid, "OT", **where)
    volumes = scan(tmp_path).volumes
    assert [volume.grid.shape for volume in volumes] == [(5, 4), (5, 4)]
    assert not any(volume.spaced for volume in volumes)
    assert all("is a secondary capture" in _said(volume.warnings) for volume in volumes)


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "oblique"])
def test_enhanced_multi_frame_with_frames_in_any_order(tmp_path: Path, orientation: str) -> None:
    array, grid = _array((2, *SHAPE)), grid_of(SHAPE, orientation)
    order = np.random.default_rng(1).permutation(12).tolist()
    write_enhanced(tmp_path / "a.dcm", array, grid, slopes=(0.5, 2.0), shuffle=order)
    (volume,) = scan(tmp_path).volumes
    assert not volume.errors
    assert np.allclose(volume.grid.affine, grid.affine, atol=1e-6)
    assert volume.dtype == "float32"
    assert np.array_equal(read_voxels(volume), array * np.array([0.5, 2.0])[:, None, None, None])


def test_enhanced_file_whose_groups_are_fewer_than_its_frames(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "a.dcm", _array((1, *SHAPE)), grid_of(SHAPE), NumberOfFrames=7)
    found = scan(tmp_path)
    assert not found.volumes
    assert "the number of frames contradicts the functional groups" in _said(found.others[0].problems)


def test_a_volume_is_the_same_from_its_own_folder_and_from_above(tmp_path: Path) -> None:
    write_series(tmp_path / "a" / "b", _array(), grid_of(SHAPE))
    write_series(tmp_path / "a" / "c", _array(seed=1), grid_of(SHAPE), series="2")
    above = {volume.path for volume in scan(tmp_path).volumes}
    assert above == {scan(tmp_path / "a" / name).volumes[0].path for name in "bc"}


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_one_slice_again_and_again_is_monitoring_in_ct_and_a_cine_in_mr(tmp_path: Path, modality: str) -> None:
    one = grid_of((1, 5, 4))
    for t in range(3):
        write_series(tmp_path / str(t), _array((1, 5, 4), t), one, modality=modality, SeriesInstanceUID="2.25.5", FrameOfReferenceUID="2.25.6",
                     AcquisitionNumber=t + 1, InstanceNumber=t + 1)  # fmt: skip
    (volume,) = scan(tmp_path).volumes
    assert len(volume.frames) == 3
    if modality == "MR":
        assert not volume.errors
    else:
        assert "is not a volume but one slice again and again, as bolus tracking and monitoring give it" in _said(volume.errors)
        assert "found 3 images at one position, expected slices at different positions" in _said(volume.errors)


def test_a_series_that_nobody_foresaw_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "a", _array(), grid_of(SHAPE))
    write_series(tmp_path / "b", _array(), grid_of(SHAPE), SeriesDescription="odd")
    real = grouping._of_series

    def odd(planes: Any) -> Any:
        return [][1] if planes[0].series.description == "odd" else real(planes)

    monkeypatch.setattr(grouping, "_of_series", odd)
    found = scan(tmp_path)
    assert len(found.volumes) == 1
    (other,) = found.others
    assert "the images of the series cannot be put together; found 6 images; IndexError" in _said(other.problems)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_damaged_in_many_files_is_a_volume_or_an_error(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def odd(values: list[Any]) -> Any:
        return lambda z: values[int(rng.integers(len(values)))]

    tags: dict[str, Any] = {
        "AcquisitionNumber": odd([1, 2, 3, None]),
        "InstanceNumber": odd([1, 2, None, 7]),
        "TemporalPositionIdentifier": odd([None, 1, 2]),
        "TriggerTime": odd(["0", "35.5", "70", None]),
        "NominalInterval": odd(["0", "900", None]),
        "EchoTime": odd(["1", "2.5", None]),
        "FrameOfReferenceUID": odd(["2.25.2", "2.25.3", None]),
        "ImageOrientationPatient": odd([[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0.995, 0.0998], None]),
        "ImagePositionPatient": odd([[0, 0, z] for z in (0, 1, 2, 3, 3.2, 7)]),
        "PixelSpacing": odd([[1, 1], [1, 1], [2, 2], None]),
        "SliceLocation": odd(["1", "2", None]),
    }
    chosen = {name: value for name, value in tags.items() if rng.random() < 0.4}
    for t in range(3):
        write_series(tmp_path / str(t), _array(seed=t), grid_of(SHAPE), "MR",
                     **{"SeriesInstanceUID": "2.25.1", "FrameOfReferenceUID": "2.25.2", "SOPInstanceUID": lambda z, t=t: f"2.25.3.{t}.{z}",
                        "AcquisitionNumber": t, **chosen})  # fmt: skip
    found = scan(tmp_path)
    assert found.volumes
    assert not found.others
    for volume in found.volumes:
        if not volume.errors:
            assert read_voxels(volume).shape == (len(volume.frames), *volume.grid.shape)


def _heights(folder: Path, heights: Any) -> Any:
    shape = (len(heights), 3, 3)
    write_series(folder, _array(shape), grid_of(shape), ImagePositionPatient=lambda z: [0, 0, f"{heights[z]:.8g}"])
    (volume,) = scan(folder).volumes
    return volume


def test_distances_that_add_up_are_refused(tmp_path: Path) -> None:
    """Each step is within the bound of single steps; slice 21 would lie 8.8 mm off."""
    volume = _heights(tmp_path, np.cumsum([0.0, *[5.0] * 20, *[5.9] * 20]))
    said = _said(volume.errors)
    assert "slices lie unevenly: on a grid of one distance some would be far off their places" in said
    assert "found distances of 5 to 5.9 mm, slice 21 lies 9 mm off, expected one distance, slices at most 1.09 mm off" in said
    assert "1_020.dcm" in said


@pytest.mark.parametrize(("off", "refused"), [(0.3, False), (0.55, False), (0.65, True)])
def test_one_slice_may_lie_off_by_a_fifth(tmp_path: Path, off: float, refused: bool) -> None:
    heights = 3.0 * np.arange(8)
    heights[4] += off
    assert bool(_heights(tmp_path, heights).errors) is refused


def test_grid_and_slices_agree_wherever_a_volume_is_accepted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    accepted = 0
    for i in range(20):
        heights = np.cumsum(rng.uniform(2.85, 3.15 if i % 2 else 3.4, 10))
        volume = _heights(tmp_path / str(i), heights)
        if not volume.errors:
            accepted += 1
            step = volume.grid.spacing[0]
            assert np.abs(volume.grid.affine[2, 3] + step * np.arange(10) - heights).max() <= 0.2 * step + 1e-6
    assert accepted >= 5


def test_files_without_uids_of_two_patients_are_not_mixed(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"SeriesInstanceUID": None, "SOPInstanceUID": None, "StudyInstanceUID": None, "FrameOfReferenceUID": None}
    for i, patient in enumerate("ab"):
        grid = grid_of(SHAPE, origin=(0, 0, 18.0 * i))  # one goes on where the other ends
        write_series(tmp_path / patient, _array(seed=i), grid, PatientID=patient, **nothing)
        write_series(tmp_path / "one", _array(seed=i), grid, series=str(i), PatientID=patient, SeriesNumber=1, **nothing)
    found = scan(tmp_path).volumes
    assert [len(volume.frames[0]) for volume in found] == [6] * 4
    assert len({volume.path for volume in found}) == 4
    for volume in found:
        assert np.array_equal(read_voxels(find_volume(volume.path))[0], _array(seed=int(volume.grid.affine[2, 3] > 0)))


@pytest.mark.parametrize("differs", ["PatientID", "StudyInstanceUID"])
def test_one_series_uid_for_two_patients_does_not_mix_them(tmp_path: Path, differs: str) -> None:
    for i in range(2):
        same = {"SeriesInstanceUID": "2.25.1", "StudyInstanceUID": "2.25.2", "FrameOfReferenceUID": "2.25.3"}
        write_series(tmp_path / str(i), _array(seed=i), grid_of(SHAPE, origin=(0, 0, 18.0 * i)), series=str(i),
                     **{**same, differs: f"2.25.4{i}"})  # fmt: skip
    assert [len(volume.frames[0]) for volume in scan(tmp_path).volumes] == [6, 6]


def test_a_study_uid_of_its_own_in_every_file_tears_no_series(tmp_path: Path) -> None:
    write_series(tmp_path, _array(), grid_of(SHAPE), StudyInstanceUID=lambda z: f"2.25.7{z}")
    (volume,) = scan(tmp_path).volumes
    assert np.array_equal(read_voxels(volume)[0], _array())


def test_directions_that_are_too_short_do_not_scale_pixels(tmp_path: Path) -> None:
    grid = grid_of(SHAPE, "oblique")
    short = [f"{0.95 * v:.10g}" for v in (*grid.direction[:, 2], *grid.direction[:, 1])]
    write_series(tmp_path, np.zeros(SHAPE, np.int16), grid, ImageOrientationPatient=short)
    (volume,) = scan(tmp_path).volumes
    assert np.allclose(volume.grid.affine, grid.affine, atol=1e-6)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ({"PixelSpacing": ["1e-30", "1e-30"]}, "pixels 1e-30 x 1e-30 mm apart"),
        ({"ImagePositionPatient": lambda z: ["1e300", "0", str(z)]}, "position 1e+300 0 0"),
    ],
)
def test_impossible_numbers_are_refused(tmp_path: Path, tags: dict[str, Any], found: str) -> None:
    write_series(tmp_path, np.zeros(SHAPE, np.int16), grid_of(SHAPE), **tags)
    result = scan(tmp_path)
    assert not result.volumes
    assert len(result.others) == SHAPE[0]
    assert "lies nowhere where a patient can" in str(result.others[0].problems[0])
    assert found in str(result.others[0].problems[0])
