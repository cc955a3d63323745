"""Several images at one position: acquisitions, copies, time points, or images of different kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from medseg.errors import ImageError
from medseg.io.dicom.reading.reader import find_volume, read_voxels, scan
from tests.io.dicom.phantoms import grid_of, write_enhanced, write_series

SHAPE = (6, 5, 4)


def _array(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 900, shape).astype(np.int16)


def _said(problems: tuple[Any, ...]) -> str:
    return "\n".join(map(str, problems))


def _acquisition(folder: Path, number: int, count: int, first: float = 0.0, seed: int = 0, **tags: Any) -> Any:
    """One acquisition of a series that is the same in every folder; slices are 2 mm apart."""
    shape = (count, 5, 4)
    array = _array(shape, seed)
    grid = grid_of(shape, spacing=(2.0, 0.8, 0.7), origin=(0, 0, first))
    write_series(folder / str(number), array, grid, **{
        "SeriesInstanceUID": "2.25.1", "FrameOfReferenceUID": "2.25.2", "SOPInstanceUID": lambda z: f"2.25.3.{number}.{z}",
        "AcquisitionNumber": number, "InstanceNumber": lambda z: 100 * number + z, **tags,
    })  # fmt: skip
    return array


def test_acquisitions_that_overlap_in_part_are_volumes_of_their_own(tmp_path: Path) -> None:
    arrays = [_acquisition(tmp_path, 1, 10), _acquisition(tmp_path, 2, 10, first=14.0, seed=1)]
    volumes = sorted(scan(tmp_path).volumes, key=lambda one: float(one.grid.affine[2, 3]))
    assert [volume.grid.affine[2, 3] for volume in volumes] == [0, 14]
    for volume, array in zip(volumes, arrays, strict=True):
        assert not volume.errors
        assert np.array_equal(read_voxels(volume)[0], array)


def test_overlaps_that_no_header_explains_are_refused_and_stop_nothing_else(tmp_path: Path) -> None:
    _acquisition(tmp_path / "bad", 1, 10)
    _acquisition(tmp_path / "bad", 2, 10, first=14.0, AcquisitionNumber=1)
    write_series(tmp_path / "good", _array(), grid_of(SHAPE))
    bad, good = sorted(scan(tmp_path).volumes, key=lambda volume: not volume.errors)
    assert "positions hold different numbers of images, which cannot be matched" in _said(bad.errors)
    assert np.array_equal(read_voxels(good)[0], _array())


@pytest.mark.parametrize(("one", "two"), [(8, 9), (9, 8)])
def test_phases_that_differ_by_a_slice_are_both_volumes(tmp_path: Path, one: int, two: int) -> None:
    arrays = {1: _acquisition(tmp_path, 1, one), 2: _acquisition(tmp_path, 2, two, seed=1)}
    volumes = scan(tmp_path).volumes
    assert sorted(len(volume.frames[0]) for volume in volumes) == [8, 9]
    for volume in volumes:
        assert not volume.errors
        assert "left out" not in _said(volume.warnings)
        array = next(array for array in arrays.values() if len(array) == len(volume.frames[0]))
        assert np.array_equal(read_voxels(volume)[0], array)


def test_a_phase_with_a_gap_is_refused_alone(tmp_path: Path) -> None:
    array = _acquisition(tmp_path, 1, 9)
    _acquisition(tmp_path, 2, 9, seed=1)
    (tmp_path / "2" / "1_004.dcm").unlink()
    bad, good = sorted(scan(tmp_path).volumes, key=lambda volume: not volume.errors)
    assert "a slice is missing; found 8 slices with a gap after slice 4 (4 mm)" in _said(bad.errors)
    assert np.array_equal(read_voxels(good)[0], array)


def test_a_dynamic_scan_that_was_stopped_loses_its_last_time_point_only(tmp_path: Path) -> None:
    arrays = [_acquisition(tmp_path, t + 1, 5 if t < 11 else 3, seed=t) for t in range(12)]
    (volume,) = scan(tmp_path).volumes
    assert "time points that some positions lack are left out" in _said(volume.warnings)
    assert np.array_equal(read_voxels(volume), arrays[:11])


def test_time_points_of_which_most_are_lost_are_refused(tmp_path: Path) -> None:
    for t in range(2):
        _acquisition(tmp_path, t + 1, 6 - t, AcquisitionNumber=None, DiffusionBValue=float(t))
    (volume,) = scan(tmp_path).volumes
    assert "positions hold different numbers of images, which cannot be matched; found 1 to 2 images" in _said(volume.errors)


def _again(folder: Path, array: Any, count: int, **tags: Any) -> Any:
    """A series, and some of its slices once more under other UIDs and later numbers."""
    same = {"SeriesInstanceUID": "2.25.1", "FrameOfReferenceUID": "2.25.2"}
    write_series(folder / "a", _array(), grid_of(SHAPE), **same)
    write_series(folder / "b", array[:count], grid_of(SHAPE), SOPInstanceUID=lambda z: f"2.25.8{z}", InstanceNumber=lambda z: 50 + z,
                 ContentTime="235959", **same, **tags)  # fmt: skip
    return scan(folder).volumes


@pytest.mark.parametrize("count", [1, 2, 6])
def test_surplus_slices_with_other_numbers_are_copies(tmp_path: Path, count: int) -> None:
    (volume,) = _again(tmp_path, _array(), count)
    assert not volume.errors
    assert f"one of each is read; found {count} copies" in _said(volume.warnings)
    assert np.array_equal(read_voxels(volume), _array()[None])


def test_surplus_slices_that_show_something_else_are_refused(tmp_path: Path) -> None:
    (volume,) = _again(tmp_path, _array() + 1, 1)
    assert "positions hold different numbers of images" in _said(volume.errors)


def test_time_points_that_are_equal_in_part_are_no_copies(tmp_path: Path) -> None:
    array = _array()
    array[2] += 1
    (volume,) = _again(tmp_path, array, 6)
    assert np.array_equal(read_voxels(volume), [_array(), array])


def test_time_points_that_are_equal_are_no_copies_where_headers_tell_them_apart(tmp_path: Path) -> None:
    (volume,) = _again(tmp_path, _array(), 6, AcquisitionTime="101500")
    assert len(volume.frames) == 2
    (volume,) = _again(tmp_path / "numbered", _array(), 6, AcquisitionNumber=2)
    assert len(volume.frames) == 2


def _edit(path: Path, change: Any) -> None:
    data = pydicom.dcmread(path)
    for i, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        change(data, frame, i)
    data.save_as(path, enforce_file_format=True)


def test_enhanced_ultrasound_volumes_are_volumes(tmp_path: Path) -> None:
    array, grid = _array((3, *SHAPE)), grid_of(SHAPE, "oblique")
    path = write_enhanced(tmp_path / "a.dcm", array, grid, shuffle=np.random.default_rng(1).permutation(18).tolist(), Modality="US",
                          SOPClassUID="1.2.840.10008.5.1.4.1.1.6.2")  # fmt: skip

    def change(data: Any, frame: Any, i: int) -> None:
        shared = data.SharedFunctionalGroupsSequence[0]
        place, orientation, time = Dataset(), Dataset(), Dataset()
        place.ImagePositionVolume = frame.PlanePositionSequence[0].ImagePositionPatient
        time.TemporalPositionTimeOffset = 0.05 * frame.FrameContentSequence[0].TemporalPositionIndex
        del frame.FrameContentSequence[0].TemporalPositionIndex
        frame.PlanePositionVolumeSequence, frame.TemporalPositionSequence = [place], [time]
        del frame.PlanePositionSequence
        if i == 0:
            orientation.ImageOrientationVolume = shared.PlaneOrientationSequence[0].ImageOrientationPatient
            shared.PlaneOrientationVolumeSequence = [orientation]
            del shared.PlaneOrientationSequence

    _edit(path, change)
    (volume,) = scan(tmp_path).volumes
    assert not volume.errors
    assert np.allclose(volume.grid.affine, grid.affine, atol=1e-6)
    assert volume.times == pytest.approx((0, 0.05, 0.1))
    assert np.array_equal(read_voxels(volume), array)


@pytest.mark.parametrize("distance", [0.0, 31.7])
def test_parallel_stacks_are_volumes_of_their_own(tmp_path: Path, distance: float) -> None:
    """At one height but beside each other, or with a gap between them."""
    array = _array((2, *SHAPE))
    path = write_enhanced(tmp_path / "a.dcm", array, grid_of(SHAPE, origin=(0, 0, 0)))

    def change(_: Any, frame: Any, i: int) -> None:
        content, place = frame.FrameContentSequence[0], frame.PlanePositionSequence[0]
        del content.TemporalPositionIndex
        content.StackID, content.InStackPositionNumber = str(i // 6 + 1), i % 6 + 1
        place.ImagePositionPatient = [60.0 * (i // 6), 0, 3.0 * (i % 6) + distance * (i // 6)]

    _edit(path, change)
    volumes = sorted(scan(tmp_path).volumes, key=lambda one: float(one.grid.affine[0, 3]))
    assert [volume.grid.affine[0, 3] for volume in volumes] == [0, 60]
    for volume, expected in zip(volumes, array, strict=True):
        assert not volume.errors
        assert np.array_equal(read_voxels(volume)[0], expected)


def _private(group: int, creator: str, element: int, vr: str, values: list[Any]) -> Any:
    def edit(data: Any, t: int) -> None:
        data.private_block(group, creator, create=True).add_new(element, vr, values[t])

    return edit


def _keyword(keyword: str, values: list[Any]) -> Any:
    return lambda data, t: setattr(data, keyword, values[t])


def _several(folder: Path, count: int, edit: Any, modality: str = "MR", **tags: Any) -> Any:
    """One series with `count` images at each position, edited by their number."""
    array = _array((count, *SHAPE))
    for t in range(count):
        for path in write_series(folder / str(t), array[t], grid_of(SHAPE), modality, **{
            "SeriesInstanceUID": "2.25.1", "FrameOfReferenceUID": "2.25.2", "SOPInstanceUID": lambda z, t=t: f"2.25.3.{t}.{z}",
            "InstanceNumber": lambda z, t=t: 1 + z * count + t, **tags,
        }):  # fmt: skip
            data = pydicom.dcmread(path)
            edit(data, t)
            data.save_as(path, enforce_file_format=True)
    return array


@pytest.mark.parametrize(
    ("modality", "edit", "said"),
    [
        ("MR", _private(0x0043, "GEMS_PARM_01", 0x2F, "SS", [0, 1]), "2 parts of a series that differ in kind of image; found {}"),
        ("CT", _keyword("KVP", ["80", "140"]), "2 parts of a series that differ in tube voltage; found {}"),
        ("MR", _keyword("InversionTime", ["100", "900"]), "2 parts of a series that differ in inversion time; found {}"),
    ],
)
def test_different_images_at_one_place_are_volumes_and_say_in_what_they_differ(tmp_path: Path, modality: str, edit: Any, said: str) -> None:
    array = _several(tmp_path, 2, edit, modality)
    volumes = sorted(scan(tmp_path).volumes, key=lambda volume: float(read_voxels(volume)[0, 0, 0, 0] != array[0, 0, 0, 0]))
    values = {"kind of image": ("0", "1"), "tube voltage": ("80", "140"), "inversion time": ("100", "900")}
    for t, volume in enumerate(volumes):
        assert np.array_equal(read_voxels(volume), array[t][None])
        name = next(name for name in values if name in said)
        assert said.format(values[name][t]) in _said(volume.warnings)
    assert len(volumes) == 2


@pytest.mark.parametrize(
    "edit",
    [
        _private(0x0019, "SIEMENS MR HEADER", 0x0C, "IS", ["0", "500", "500"]),
        _private(0x0043, "GEMS_PARM_01", 0x39, "IS", [["0", "8"], ["1000000500", "8"], ["500", "8"]]),
        _private(0x2001, "Philips Imaging DD 001", 0x03, "FL", [0.0, 500.0, 500.0]),
        _private(0x0065, "Image Private Header", 0x09, "FD", [0.0, 500.0, 500.0]),
        _keyword("DiffusionBValue", [0.0, 500.0, 500.0]),
    ],
)
def test_diffusion_weightings_stay_one_volume_and_are_named(tmp_path: Path, edit: Any) -> None:
    array = _several(tmp_path, 3, edit)
    (volume,) = scan(tmp_path).volumes
    assert np.array_equal(read_voxels(volume), array)
    assert "time points are diffusion weightings; found b = 0, 500 (2 times) s/mm2" in _said(volume.warnings)
    assert volume.weights == (0.0, 500.0, 500.0)
    part = find_volume(volume.path.with_name(f"{volume.key}_b0.series"))
    assert (part.key, part.whole, part.weights, part.times) == (f"{volume.key}_b0", volume.key, (0.0,), (0.0,))
    assert np.array_equal(read_voxels(part), array[:1])
    for b, found in (("500", "b = 0, 500, 500"), ("1000", "b = 0, 500, 500")):
        with pytest.raises(ImageError, match=f"is no single diffusion weighting; found {found}, expected one volume of b = {b}"):
            find_volume(volume.path.with_name(f"{volume.key}_b{b}.series"))


def test_phases_of_the_heart_are_ordered_and_named(tmp_path: Path) -> None:
    array = _several(tmp_path, 3, _keyword("NominalPercentageOfCardiacPhase", [70.0, 0.0, 35.0]), "CT")
    (volume,) = scan(tmp_path).volumes
    assert np.array_equal(read_voxels(volume), array[[1, 2, 0]])
    assert "time points are phases of the heart; found 0, 35, 70 % of its cycle" in _said(volume.warnings)


def test_images_that_no_header_tells_apart_are_time_points_with_a_warning(tmp_path: Path) -> None:
    _several(tmp_path / "a", 2, lambda data, t: None)
    (volume,) = scan(tmp_path / "a").volumes
    assert "no header says in what they differ; they are taken as time points; found 2 images" in _said(volume.warnings)
    _several(tmp_path / "b", 2, _keyword("TemporalPositionIdentifier", [1, 2]))
    (volume,) = scan(tmp_path / "b").volumes
    assert "no header says" not in _said(volume.warnings)


def test_inversion_times_of_an_enhanced_file_are_volumes(tmp_path: Path) -> None:
    array = _array((2, *SHAPE))
    path = write_enhanced(tmp_path / "a.dcm", array, grid_of(SHAPE))

    def change(_: Any, frame: Any, i: int) -> None:
        modifier = Dataset()
        modifier.InversionTimes = [100.0 + 800 * (i // 6)]
        frame.MRModifierSequence = [modifier]

    _edit(path, change)
    volumes = scan(tmp_path).volumes
    assert sorted(_said(volume.warnings[:1]) for volume in volumes) == [
        f"is one of 2 parts of a series that differ in inversion time; found {value}." for value in (100, 900)
    ]
