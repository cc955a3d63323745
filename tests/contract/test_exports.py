"""Laws that hold for every format of predictions that is registered, built in or third-party."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from PIL import Image
from pydicom import dcmread

from medseg import registry
from medseg.dataset import NUMBER_BITS, CaseFiles, LabelClass, Labels
from medseg.errors import PlanError, ResourceError
from medseg.io.dicom.reading.reader import scan
from medseg.io.exports import LABELS, TABLE, Export, Maker, Result, find_export, own_exports
from medseg.io.images import read_header, read_label
from medseg.prediction import Prediction
from tests.io.dicom.phantoms import grid_of, write_series

SHAPE = (4, 14, 12)
CLASSES = Labels(classes=(LabelClass(name="liver", values=(1,)), LabelClass(name="tumour", values=(2,))))
NAMES = registry.exports.names()
THINGS = Labels(classes=CLASSES.classes, things=("tumour",))
INPUTS = ("nifti", "nrrd", "picture", "dicom", "oblique dicom", "flat dicom")


def image_of(kind: str, folder: Path) -> Path:
    """An image of that kind, with values that differ along every axis."""
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    if kind == "nifti":
        nib.save(nib.Nifti1Image(values.T, np.diag([2.0, 3.0, 4.0, 1.0])), folder / "a.nii.gz")
        return folder / "a.nii.gz"
    if kind == "nrrd":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), folder / "a.nrrd")
        return folder / "a.nrrd"
    if kind == "picture":
        Image.fromarray(values[0].astype(np.uint8)).save(folder / "a.png")
        return folder / "a.png"
    if kind == "flat dicom":
        flat = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "FrameOfReferenceUID": None}
        write_series(folder / "dicom", values[:1], grid_of((1, *SHAPE[1:])), "OT", **flat)
    else:
        write_series(folder / "dicom", values, grid_of(SHAPE, "oblique" if "oblique" in kind else "axial"), "CT")
    (volume,) = scan(folder / "dicom").volumes
    return volume.path


def result_of(image: Path, probabilities: bool) -> Result:
    """Two classes that touch each other, with a hole and a second part."""
    grid = read_header(image).grid
    labels = np.zeros(grid.shape, np.uint8)
    labels[..., 2:9, 3:8] = 1
    labels[..., 5, 5] = 0
    labels[..., 6:8, 6:8] = 2
    labels[..., 11:13, 9:11] = 1
    chances = np.stack([labels == k for k in range(3)]).astype(np.float16) * 0.5 + 0.25 if probabilities else None
    files = CaseFiles(id="a case", images=(image,), group="g")
    return Result(files, Prediction("a case", labels, chances), grid, CLASSES, Maker("model 3d", "0.1.0", "0123456789abcdef"))


def objects_of(image: Path, found: bool = True) -> Result:
    """Stuff, and two objects that touch; or nothing at all."""
    result = result_of(image, False)
    codes = result.prediction.labels.astype(np.int32) << NUMBER_BITS
    codes[..., 6, 6:8] |= 1
    codes[..., 7, 6:8] |= 2
    scores = {2 << NUMBER_BITS | 1: 0.75, 2 << NUMBER_BITS | 2: 0.5}
    prediction = Prediction("a case", codes if found else codes * 0, objects=scores if found else {})
    return dataclasses.replace(result, labels=THINGS, prediction=prediction)


def content(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=INPUTS)
def image(request, tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    return image_of(request.param, tmp_path / "in")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("probabilities", [False, True])
def test_exactly_the_targets_are_written_or_the_case_is_refused(name, probabilities, image, tmp_path):
    export, result, out = find_export(name), result_of(image, probabilities), tmp_path / "out"
    before = {path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()}
    targets = export.targets(result.files, probabilities)
    assert targets
    assert len(set(targets)) == len(targets)
    assert set(export.targets(result.files, False)) <= set(targets)
    assert not any(target.is_absolute() or ".." in target.parts for target in targets)
    if problems := export.problems(result.files):
        assert all(problem.what and problem.fix and str(image) in problem.where for problem in problems)
    else:
        assert isinstance(export.warnings(result.files, result.labels, result.maker), tuple)
        export.write(result, out)
        assert content(out) == set(targets)
    assert {path: path.read_bytes() for path in (tmp_path / "in").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("found", [True, False])
def test_objects_are_written_like_classes(name, found, image, tmp_path):
    """And what is said about all cases is written from the targets of each."""
    export, result, out = find_export(name), objects_of(image, found), tmp_path / "out"
    if export.problems(result.files):
        return
    export.write(result, out)
    targets = export.targets(result.files, False)
    assert content(out) == set(targets)
    for cases in ([targets], []):
        export.collect(cases, out)
        assert content(out) == {*targets, *export.collected}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_whole_or_not_there(name, image, tmp_path, monkeypatch):
    """The disk is full at the last moment: an error that says so, no half-written file, and an earlier one as it was."""
    export, result, out = find_export(name), result_of(image, False), tmp_path / "out"
    if export.problems(result.files):
        return
    export.write(result, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        export.write(result, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_formats_that_share_a_file_write_the_same_into_it(image, tmp_path):
    result = result_of(image, False)
    owners: dict[Path, list[str]] = {}
    for name in NAMES:
        if not find_export(name).problems(result.files):
            find_export(name).write(result, tmp_path / name)
            for target in find_export(name).targets(result.files, False):
                owners.setdefault(target, []).append(name)
    for target, names in owners.items():
        files = [tmp_path / name / target for name in names]
        if target.suffix == ".dcm":  # they also hold the time at which they were made
            objects = [dcmread(file) for file in files]
            assert len({(data.SOPInstanceUID, data.SeriesInstanceUID, data.get("PixelData", b"")) for data in objects}) == 1
        else:
            assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_is(name):
    export = find_export(name)
    assert isinstance(export, Export)
    assert export.name == name
    assert export.summary
    assert not export.summary.endswith(".")


@pytest.mark.parametrize("name", ["labels", "nifti"])
def test_label_maps_are_read_back(name, image, tmp_path):
    export, result, out = find_export(name), result_of(image, True), tmp_path / "out"
    if export.problems(result.files):
        assert name == "nifti"
        assert image.suffix == ".png"
        return
    export.write(result, out)
    label, maps = (out / target for target in export.targets(result.files, True))
    found = read_label(label)
    assert np.array_equal(found.array[0], result.prediction.labels)
    if found.native.spaced:
        assert found.grid.distance(result.grid) < 1e-4
    assert read_header(maps).channels == 3


def test_what_is_expected_without_a_format(tmp_path):
    for kind in INPUTS:
        (tmp_path / kind).mkdir()
        files = CaseFiles(id="a", images=(image_of(kind, tmp_path / kind),), group="a")
        own = "seg" if "dicom" in kind else LABELS
        assert own_exports(files) == (own,)
        assert own_exports(files, objects=True) == (own, TABLE)
        assert not any(find_export(name).problems(files) for name in own_exports(files, objects=True))


def test_unknown_format():
    with pytest.raises(PlanError, match=r"unknown name in 'medseg.exports'; found 'segg'.*Did you mean 'seg'\?"):
        find_export("segg")
