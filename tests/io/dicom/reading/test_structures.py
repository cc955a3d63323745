"""RT structure sets become masks on the grid of their image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from medseg.errors import ImageError, Problem
from medseg.geometry import Grid
from medseg.io.dicom.conversion import convert
from medseg.io.dicom.reading.reader import scan
from medseg.io.dicom.reading.structures import read_structures
from medseg.io.dicom.volume import Source, Volume
from medseg.io.images import read_image
from tests.io.dicom.phantoms import ORIENTATIONS, grid_of, write_series
from tests.io.dicom.rt import Contour, box, write_rtstruct

SHAPE = (6, 12, 10)


@pytest.fixture(params=sorted(ORIENTATIONS))
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Volume:
    return make_volume(tmp_path, request.param)


def make_volume(folder: Path, orientation: str = "oblique") -> Volume:
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    write_series(folder / "ct", array, grid_of(SHAPE, orientation))
    (found,) = scan(folder / "ct").volumes
    return found


def boxes(*parts: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for part in parts:
        mask[part] ^= True
    return mask


def texts(warnings: list[Problem]) -> list[str]:
    return [problem.what for problem in warnings]


def test_regions_components_holes_and_overlaps(volume: Volume, tmp_path: Path) -> None:
    grid = volume.grid
    ring = [box(grid, z, (0.5, 8.5), (1.5, 7.5)) for z in (1, 2)] + [box(grid, z, (2.6, 5.4), (2.6, 5.4)) for z in (1, 2)]
    other = [box(grid, 2, (0.5, 3.5), (0.5, 3.5)), box(grid, 4, (8.5, 20), (7.5, 9.5))]
    warnings: list[Problem] = []
    found = read_structures(write_rtstruct(tmp_path / "rt.dcm", [("Ring", ring), ("Größe", other)], volume), volume, warnings=warnings)
    assert list(found) == ["Ring", "Größe"]
    assert np.array_equal(found["Ring"], boxes((slice(1, 3), slice(1, 9), slice(2, 8)), (slice(1, 3), slice(3, 6), slice(3, 6))))
    assert np.array_equal(found["Größe"], boxes((slice(2, 3), slice(1, 4), slice(1, 4)), (slice(4, 5), slice(9, 12), slice(8, 10))))
    assert (found["Ring"] & found["Größe"]).any()
    assert warnings == []


def test_names_choose_and_order(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    contours = [box(volume.grid, 1, (0.5, 3.5), (0.5, 3.5))]
    source = write_rtstruct(tmp_path / "rt.dcm", [("A", contours), ("B", []), ("A", contours), ("", contours)], volume)
    assert list(read_structures(source, volume)) == ["A", "B", "A (2)", "ROI 4"]
    assert list(read_structures(source, volume, ["ROI 4", "A"])) == ["ROI 4", "A"]
    with pytest.raises(ImageError, match="has no region of interest of this name; found 'C', expected A, B, A \\(2\\), ROI 4"):
        read_structures(source, volume, ["C", "A"])


def test_contours_between_slices_count_for_the_nearest(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    contours = [
        box(volume.grid, 1.3, (0.5, 3.5), (0.5, 3.5)),
        box(volume.grid, 1.9, (4.5, 6.5), (0.5, 3.5)),
        box(volume.grid, 2.2, (7.5, 9.5), (0.5, 3.5)),
    ]
    warnings: list[Problem] = []
    found = read_structures(write_rtstruct(tmp_path / "rt.dcm", [("A", contours)], volume), volume, warnings=warnings)["A"]
    # Slice 2 has two planes near it; the nearer counts, not their exclusive disjunction.
    assert np.array_equal(found, boxes((slice(1, 2), slice(1, 4), slice(1, 4)), (slice(2, 3), slice(5, 7), slice(1, 4))))
    assert texts(warnings) == ["contours lie between slices, and count for the nearest"]
    assert "2 of 3 planes, up to 0.3 slices away" in str(warnings[0])


def test_contours_beyond_the_image_are_told(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    contours = [box(volume.grid, z, (0.5, 3.5), (0.5, 3.5)) for z in (-3, -1, 0, 5, 6)]
    warnings: list[Problem] = []
    found = read_structures(write_rtstruct(tmp_path / "rt.dcm", [("A", contours)], volume), volume, warnings=warnings)["A"]
    assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [0, 5]
    assert "A: 3 of 5 planes" in str(warnings[0])


def test_contours_of_thicker_slices_fill_those_between(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    contours = [box(volume.grid, z, (0.5, 3.5 + z), (0.5, 3.5)) for z in (-1.5, 0.5, 2.5, 4.5)]
    warnings: list[Problem] = []
    found = read_structures(write_rtstruct(tmp_path / "rt.dcm", [("A", contours)], volume), volume, warnings=warnings)["A"]
    assert found.any(axis=(1, 2)).tolist() == [True] * 6
    assert found.sum(axis=(1, 2)).tolist() == [12, 12, 18, 18, 24, 24]
    assert "one contour for 2 slices" in str(warnings[-1])


def test_each_region_has_its_own_gap(tmp_path: Path) -> None:
    """What is drawn on every second slice changes nothing about what is drawn on each, about lone contours, and about holes."""
    grid = grid_of((30, 12, 10))
    write_series(tmp_path / "in", np.zeros(grid.shape, np.int16), grid)
    (volume,) = scan(tmp_path / "in").volumes

    def on(*slices: int) -> list[Contour]:
        return [box(grid, z, (0.5, 3.5), (0.5, 3.5)) for z in slices]

    regions = [
        ("each", on(*range(10, 25))),
        ("second", on(*range(4, 21, 2))),
        ("with a hole", on(2, 4, 6, 8, 16, 18, 20, 22)),
        ("lone", on(20)),
        ("few", on(10, 12, 14)),
        ("third", on(*range(3, 25, 3))),
        ("two far apart", on(5, 15)),
    ]
    warnings: list[Problem] = []
    found = read_structures(write_rtstruct(tmp_path / "rt.dcm", regions, volume), volume, warnings=warnings)
    slices = {name: np.flatnonzero(mask.any(axis=(1, 2))).tolist() for name, mask in found.items()}
    assert slices == {
        "each": list(range(10, 25)),
        "second": list(range(3, 21)),
        "with a hole": [*range(1, 9), *range(15, 23)],
        "lone": [20],
        "few": list(range(9, 15)),
        "third": list(range(2, 26)),
        "two far apart": [5, 15],
    }
    (warning,) = warnings
    assert "second: one contour for 2 slices, with a hole: one contour for 2 slices" in warning.found
    assert "each:" not in warning.found
    assert "lone" not in warning.found


def test_two_far_apart_are_two(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    contours = [box(volume.grid, z, (0.5, 3.5), (0.5, 3.5)) for z in (0, 5)]
    found = read_structures(write_rtstruct(tmp_path / "rt.dcm", [("A", contours)], volume), volume)["A"]
    assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [0, 5]


def test_points_and_open_lines_are_left_out_and_told(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    (kind, points) = box(volume.grid, 1, (0.5, 3.5), (0.5, 3.5))
    contours: list[Contour] = [("POINT", points[:1]), ("OPEN_PLANAR", points), ("OPEN_NONPLANAR", points), (kind, points), (kind, points)]
    warnings: list[Problem] = []
    found = read_structures(write_rtstruct(tmp_path / "rt.dcm", [("A", contours)], volume), volume, warnings=warnings)["A"]
    assert np.array_equal(found, boxes((slice(1, 2), slice(1, 4), slice(1, 4))))
    assert texts(warnings) == [
        "contours of type POINT enclose nothing and are left out",
        "contours of type OPEN_PLANAR enclose nothing and are left out",
        "contours of type OPEN_NONPLANAR enclose nothing and are left out",
        "contours are there twice, and count once",
    ]


def test_foreign_planes_are_refused(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    across = volume.grid.world(np.array([(0, 2, 2), (4, 2, 2), (4, 2, 6), (0, 2, 6)], float))
    sound = [box(volume.grid, 1, (0.5, 3.5), (0.5, 3.5))]
    source = write_rtstruct(tmp_path / "rt.dcm", [("A", sound), ("B", [("CLOSED_PLANAR", across)])], volume)
    with pytest.raises(ImageError, match=r"region 'B': contours lie in other planes .* found a contour that crosses 4 slices"):
        read_structures(source, volume, ["B"])
    warnings: list[Problem] = []
    assert list(read_structures(source, volume, warnings=warnings)) == ["A"]
    assert texts(warnings) == ["contours lie in other planes than the slices of the image"]
    alone = write_rtstruct(tmp_path / "alone.dcm", [("B", [("CLOSED_PLANAR", across)])], volume)
    with pytest.raises(ImageError, match="other planes"):
        read_structures(alone, volume)


@pytest.mark.parametrize(("text", "found"), [("1\\2\\3\\4", "4 numbers"), ("1\\2\\x", "could not convert"), ("1\\2\\nan", "not finite")])
@pytest.mark.filterwarnings("ignore:Invalid value")
def test_broken_coordinates_are_told(tmp_path: Path, text: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = make_volume(tmp_path)
    path = write_rtstruct(tmp_path / "rt.dcm", [("A", [box(volume.grid, 1, (0.5, 3.5), (0.5, 3.5))])], volume).path
    data = path.read_bytes()
    start = data.index(b"\x06\x30\x50\x00")
    length = int.from_bytes(data[start + 4 : start + 8], "little")
    path.write_bytes(data[: start + 8] + text.encode().ljust(length) + data[start + 8 + length :])
    with pytest.raises(ImageError, match=f"region 'A': contours cannot be read; found 1, the first: .*{found}"):
        read_structures(write_source(path), volume)


def write_source(path: Path) -> Source:
    return Source(path)


def test_of_which_image_it_is(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    rois = [("A", [box(volume.grid, 1, (0.5, 3.5), (0.5, 3.5))])]
    own_world = write_rtstruct(tmp_path / "1.dcm", rois, volume, series="1.2.3")
    own_series = write_rtstruct(tmp_path / "2.dcm", rois, volume, world="1.2.3")
    assert read_structures(own_world, volume)["A"].sum() == read_structures(own_series, volume)["A"].sum() == 9
    foreign = write_rtstruct(tmp_path / "3.dcm", rois, volume, world="1.2.3", series="1.2.4")
    with pytest.raises(ImageError, match="belongs to other images: it names neither this series nor its frame of reference"):
        read_structures(foreign, volume)
    with pytest.raises(ImageError, match="is no RT structure set; found CT"):
        read_structures(volume.sources[0], volume)


def test_another_image_of_the_same_world(tmp_path: Path) -> None:
    """Contours drawn on one grid count on a finer one of the same frame of reference."""
    volume = make_volume(tmp_path, "axial")
    fine = Grid((6, 24, 20), volume.grid.affine @ np.diag([1, 0.5, 0.5, 1]))
    write_series(tmp_path / "ct", np.ones(fine.shape, np.int16), fine, series="2")
    other = next(v for v in scan(tmp_path / "ct").volumes if v.grid.shape == fine.shape)
    source = write_rtstruct(tmp_path / "rt.dcm", [("A", [box(volume.grid, 1, (0.6, 3.6), (0.6, 3.6))])], volume)
    assert read_structures(source, volume)["A"].sum() == 9
    assert read_structures(source, other)["A"].sum() == 36


@pytest.mark.parametrize("by", ["images", "world"])
def test_conversion_finds_the_images_as_training_does(tmp_path: Path, by: str) -> None:
    """A structure set that names a series which is not there is about the images that it names, else about its world."""
    volume = make_volume(tmp_path)
    regions = [("A", [box(volume.grid, 1, (0.5, 3.5), (0.5, 3.5))])]
    path = write_rtstruct(tmp_path / "rt" / "rt.dcm", regions, volume, series="1.2.3", world="1.2.4" if by == "images" else None).path
    if by == "images":
        data = dcmread(path)
        image = Dataset()
        image.ReferencedSOPInstanceUID = volume.frames[0][1].sop_uid
        data.ROIContourSequence[0].ContourSequence[0].ContourImageSequence = [image]
        data.save_as(path)
    result = convert(scan(tmp_path), tmp_path / "out")
    assert not result.left
    ((_, file),) = result.labels
    assert read_image(file).array.sum() == 9
