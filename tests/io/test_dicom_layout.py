"""Datasets of DICOM studies: labels by reference, classes by names of regions, channels by series."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from medseg.dataset import Dataset, Modality
from medseg.errors import DatasetError, ImageError
from medseg.io.dicom.reading.labels import Part, label_path, read_name
from medseg.io.dicom.reading.reader import scan
from medseg.io.dicom.volume import Source, Volume
from medseg.io.digests import Digests
from medseg.io.images import image_suffix, read_case, read_header, read_label
from medseg.io.layouts import LayoutOptions, open_dataset
from medseg.planning.verify import verify
from tests.io.dicom.phantoms import grid_of, write_series
from tests.io.dicom.rt import box, write_rtstruct

SHAPE = (5, 16, 14)


def patient(
    root: Path, name: str, regions: dict[str, tuple[int, int]], modalities: tuple[str, ...] = ("CT",), file: str = "rt.dcm"
) -> Volume:
    """A study of series on one grid, all in one folder; on the first are regions: rectangles on the slices from, to."""
    folder = root / name
    for number, modality in enumerate(modalities, 1):
        array = np.random.default_rng(number).integers(0, 100, SHAPE).astype(np.int16)
        write_series(folder, array, grid_of(SHAPE), modality, str(number), PatientID=f"PLANTED-{name}")
    found = scan(folder).volumes
    volume = next(v for v in found if v.series.modality == modalities[0])
    if regions:
        drawn = [
            (region, [box(volume.grid, z, (1.5, 5.5 + index), (2.5 + 4 * index, 6.5 + 4 * index)) for z in range(*slices)])
            for index, (region, slices) in enumerate(regions.items())
        ]
        write_rtstruct(folder / file, drawn, volume)
    return volume


def expected(*parts: tuple[int, int, tuple[int, int]]) -> np.ndarray:
    """Value, place among the regions of the file, slices."""
    labels = np.zeros(SHAPE, int)
    for value, index, slices in parts:
        labels[slice(*slices), 2 : 6 + index, 3 + 4 * index : 7 + 4 * index] = value
    return labels


def problems(root: Path, options: LayoutOptions | None = None) -> str:
    with pytest.raises(DatasetError) as caught:
        open_dataset(root, options)
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    patient(folder, "a", {"GTV_Mass": (1, 3), "Left Lung": (0, 4)})
    patient(folder, "b", {"left lung": (2, 5), "gtv mass": (1, 2)})
    patient(folder, "c", {})
    return folder


def test_cases_classes_patients(root: Path) -> None:
    found = open_dataset(root)
    assert (found.layout, found.task, found.ndim) == ("dicom", "semantic", 3)
    assert [(c.name, c.modality) for c in found.channels] == [("CT", Modality.ct)]
    assert [(c.name, c.values) for c in found.labels.classes] == [("GTV_Mass", (1,)), ("Left Lung", (2,))]
    assert (len(found.cases), len(found.unlabelled)) == (2, 1)
    assert len({c.group for c in found.cases}) == 2
    by_folder = {case.images[0].parent.name: case for case in found.cases}
    first, second = read_case(by_folder["a"]), read_case(by_folder["b"])
    assert first.label is not None
    assert second.label is not None
    assert np.array_equal(first.label, expected((1, 0, (1, 3)), (2, 1, (0, 4))))
    assert np.array_equal(second.label, expected((2, 0, (2, 5)), (1, 1, (1, 2))))
    text = found.to_json()
    assert "PLANTED" not in text
    assert "2.25.990" not in text
    assert "reference channel: CT, annotated in 2 of 2 studies" in found.notes[0]


def test_the_whole_dataset_is_sound_and_nothing_is_written_into_it(root: Path) -> None:
    before = sorted(root.rglob("*"))
    assert verify(open_dataset(root), workers=1).occurrences == {"GTV_Mass": 2, "Left Lung": 2}
    assert sorted(root.rglob("*")) == before


def test_paths_of_labels_survive_records_and_processes(root: Path) -> None:
    found = open_dataset(root)
    again = Dataset.model_validate_json(found.to_json())
    for case, other in zip(found.cases, again.cases, strict=True):
        assert case.label is not None
        assert other.label == pickle.loads(pickle.dumps(case.label)) == case.label
        assert image_suffix(other.label) == ".labels"
        header = read_header(other.label, label=True)
        assert (header.shape, header.channels, header.dtype) == (SHAPE, 1, "uint8")
        assert header.grid == read_header(case.images[0]).grid


def test_digests_change_with_the_annotation_and_with_the_classes(root: Path, tmp_path: Path) -> None:
    digests = Digests(tmp_path / "known")
    before = [digests.case(case) for case in open_dataset(root).cases]
    assert [digests.case(case) for case in open_dataset(root).cases] == before
    (root / "medseg.json").write_text(json.dumps({"regions": {"lung": ["left lung"], "tumour": ["gtv.*"]}}))
    assert not set(before) & {digests.case(case) for case in open_dataset(root).cases}
    (root / "medseg.json").unlink()
    patient(root, "a", {"GTV_Mass": (1, 4), "Left Lung": (0, 4)})
    changed = [digests.case(case) for case in open_dataset(root).cases]
    assert sum(a != b for a, b in zip(before, changed, strict=True)) == 1


def test_names_map_to_classes_and_some_are_ignored(root: Path) -> None:
    (root / "medseg.json").write_text(json.dumps({"regions": {"tumour": ["gtv.*", "tumou?r"]}, "ignore_regions": [".*LUNG"]}))
    found = open_dataset(root)
    assert [(c.name, c.values) for c in found.labels.classes] == [("tumour", (1,))]
    case = next(c for c in found.cases if c.images[0].parent.name == "a")
    assert case.label is not None
    assert np.array_equal(read_label(case.label).array[0], expected((1, 0, (1, 3))))


def test_all_problems_of_names_at_once(root: Path) -> None:
    patient(root, "d", {"GTV_Mass": (1, 3), "Heart": (0, 4)})
    text = problems(root)
    assert "regions have names that no other case has; found 'Heart'" in text
    assert "'GTV_Mass', 'Left Lung'" in text
    settings = {"regions": {"tumour": ["gtv.*", "gtv mass"], "(": ["("], "other": ["gtv.*"], "none": ["x"]}, "classes": {"a": [1]}}
    (root / "medseg.json").write_text(json.dumps(settings))
    text = problems(root)
    for part in (
        "'classes' has no meaning for DICOM",
        "is not a regular expression; found '(' (missing ), unterminated subpattern at position 0)",
        "a region matches several classes; found 'GTV_Mass': tumour, other",
        "regions are neither of a class nor ignored; found 'Heart', 'Left Lung'",
        "no region of any case is of class 'none'",
    ):
        assert part in text


def test_labels_without_their_images_and_without_any(root: Path, tmp_path: Path) -> None:
    volume = patient(tmp_path / "elsewhere", "x", {"Left Lung": (1, 2)})
    shutil.copy(tmp_path / "elsewhere" / "x" / "rt.dcm", root / "stray.dcm")
    text = problems(root)
    assert f"{root / 'stray.dcm'}: annotates images that are missing" in text
    bare = tmp_path / "bare"
    patient(bare, "x", {})
    assert "no image series has a label; found 1 volumes, 0 SEG or RTSTRUCT objects" in problems(bare)
    assert volume.errors == ()


def test_two_objects_of_one_series(root: Path) -> None:
    volume = next(v for v in scan(root / "a").volumes)
    write_rtstruct(root / "a" / "second.dcm", [("GTV_Mass", [box(volume.grid, 1, (1.5, 3.5), (1.5, 3.5))])], volume)
    assert "several objects hold class 'GTV_Mass' of one series" in problems(root)
    (root / "medseg.json").write_text(json.dumps({"ignore_regions": ["gtv.*"]}))
    assert open_dataset(root).labels.names == ("Left Lung",)


def test_regions_that_overlap_are_refused_or_painted(tmp_path: Path) -> None:
    volume = patient(tmp_path / "data", "a", {})
    drawn = [("Body", [box(volume.grid, 1, (0.5, 9.5), (0.5, 9.5))]), ("GTV", [box(volume.grid, 1, (2.5, 4.5), (2.5, 5.5))])]
    write_rtstruct(tmp_path / "data" / "a" / "rt.dcm", drawn, volume)
    (case,) = open_dataset(tmp_path / "data").cases
    assert case.label is not None
    with pytest.raises(ImageError, match="regions of different classes overlap; found 6 of its 6 voxels also have the value 1"):
        read_label(case.label)
    (tmp_path / "data" / "medseg.json").write_text(json.dumps({"overlap": "later"}))
    (case,) = open_dataset(tmp_path / "data").cases
    assert case.label is not None
    assert np.bincount(read_label(case.label).array.ravel()).tolist() == [5 * 16 * 14 - 81, 75, 6]


def test_odd_contours_are_told(tmp_path: Path) -> None:
    volume = patient(tmp_path / "data", "a", {})
    drawn = [
        ("A", [box(volume.grid, z, (0.5, 9.5), (0.5, 9.5)) for z in (-2, 1.3)]),
        ("Isocentre", [("POINT", volume.grid.world(np.zeros((1, 3))))]),
    ]
    write_rtstruct(tmp_path / "data" / "a" / "rt.dcm", drawn, volume)
    found = verify(open_dataset(tmp_path / "data"), workers=1)
    assert found.dataset.labels.names == ("A",)
    told = [problem.what for problem in found.warnings]
    assert any("contours lie above or below the image, and are left out; found A: 1 of 2 planes" in text for text in told)
    assert any("contours lie between slices, and count for the nearest" in text for text in told)
    assert not any("POINT" in text for text in told)


def test_channels_are_series_that_all_cases_share(tmp_path: Path) -> None:
    root = tmp_path / "data"
    patient(root, "a", {"GTV": (1, 3)}, ("CT", "PT", "MR"))
    patient(root, "b", {"GTV": (1, 3)}, ("CT", "PT"))
    patient(root, "c", {}, ("CT", "PT"))
    patient(root, "d", {}, ("CT",))
    found = open_dataset(root)
    assert [(c.name, c.modality) for c in found.channels] == [("CT", Modality.ct), ("PET", Modality.pet)]
    assert len(found.unlabelled) == 1
    assert "2 other series are left aside" in found.notes
    other = open_dataset(root, LayoutOptions(reference="pet"))
    assert [c.name for c in other.channels] == ["PET", "CT"]
    for case in other.cases:
        assert case.label is not None
        assert read_name(case.label).volume == case.images[0]
        assert read_label(case.label).array.sum() == 2 * 16
    (root / "medseg.json").write_text(json.dumps({"channels": ["CT"]}))
    assert [c.name for c in open_dataset(root).channels] == ["CT"]
    (root / "medseg.json").write_text(json.dumps({"channels": ["CT", "MR", "US"]}))
    assert "lists channels of which there is no series; found US" in (text := problems(root))
    assert "a study has no MR" in text


@pytest.mark.parametrize("painted", [False, True])
def test_names_of_labels(tmp_path: Path, painted: bool) -> None:
    volume = patient(tmp_path / "=odd", "^name", {"GTV": (1, 3)})
    many = {number: number + 1 for number in range(1, 200)}
    parts = (
        Part(Source(volume.folder / "rt.dcm"), many),
        Part(Source(tmp_path / "=odd" / "+x" / "y.dcm"), {3: 1}),
        Part(Source(tmp_path / "z"), {}),
    )
    path = label_path(volume, parts, painted)
    name = read_name(path)
    assert name.volume == volume.path
    assert name.painted is painted
    assert [(part.source.path, dict(part.values)) for part in name.parts] == [(p.source.path, dict(p.values)) for p in parts]
    assert max(len(part) for part in path.parts) < 255
    for wrong in (tmp_path / "x.labels", volume.path / "rt.dcm.labels", volume.path / "=1-1.labels"):
        with pytest.raises(ImageError, match="is no name of a label map in DICOM"):
            read_name(wrong)


def test_no_dicom_is_no_dataset(tmp_path: Path, sample: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert "is no dataset of a known layout" in problems(tmp_path)
    assert open_dataset(sample).layout == "msd"
