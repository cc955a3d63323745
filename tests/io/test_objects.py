from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as Pillow
from pydantic import ValidationError

from medseg.dataset import MOST_OBJECTS, NUMBER_BITS, CaseFiles, LabelClass, Labels
from medseg.errors import DatasetError, ImageError, UsageError
from medseg.io.exports import Maker, Result
from medseg.io.images import read_annotation, read_case, read_header, read_label, read_prediction, write_label
from medseg.io.label_maps import LabelMaps
from medseg.io.layouts.base import LayoutOptions, open_dataset
from medseg.io.objects import decode, encode
from medseg.io.raster import _png_kind
from medseg.prediction import Prediction
from medseg.scratch import Scratch

CELL = Labels(classes=(LabelClass(name="cell", values=(1,)),), things=("cell",), objects="numbers")
TWO = Labels(
    classes=(LabelClass(name="tissue", values=(1,)), LabelClass(name="cell", values=(2, 3))),
    ignore=9,
    things=("cell",),
    objects="components",
)
HERE = Path("here.png")


def code(value: int, number: int = 0) -> int:
    return value << NUMBER_BITS | number


def folder_of(root: Path, *labels: np.ndarray, **descriptor: object) -> Path:
    """`images/` and `labels/` with these label maps."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for k, label in enumerate(labels):
        Pillow.fromarray((np.arange(label.size).reshape(label.shape) % 251).astype(np.uint8)).save(root / "images" / f"c{k}.png")
        Pillow.fromarray(label).save(root / "labels" / f"c{k}.png")
    if descriptor:
        (root / "medseg.json").write_text(json.dumps(descriptor))
    return root


@pytest.mark.parametrize("numbers", [(0, 0), (0, 3), (0, 400)])
def test_label_maps_of_objects_are_alike_however_few_there_are(tmp_path, numbers):
    like = tmp_path / "like.png"
    Pillow.fromarray(np.zeros((1, 2), np.uint8)).save(like)
    array = np.array([numbers], np.int32)
    write_label(tmp_path / "numbers.png", array, like, numbered=True)
    write_label(tmp_path / "codes.png", array << NUMBER_BITS if max(numbers) < 255 else array, like, colours=True)
    assert _png_kind(tmp_path / "numbers.png") == (16, 0)
    assert _png_kind(tmp_path / "codes.png") == (8, 2)
    assert decode(read_prediction(tmp_path / "numbers.png", CELL).array[0], CELL).tolist() == [list(numbers)]
    if max(numbers) < 255:
        assert read_prediction(tmp_path / "codes.png", TWO).array[0].tolist() == [[n << NUMBER_BITS for n in numbers]]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".nii.gz"])
@pytest.mark.parametrize("given", ["numbers", "codes"])
def test_files_hold_as_many_objects_as_there_can_be(tmp_path, suffix, given):
    """65535 of them, without an overflow: numbers in 16 bits, codes in 32, or in the 24 of colours."""
    image = tmp_path / f"a{suffix}"
    if suffix == ".nii.gz":
        nib.save(nib.Nifti1Image(np.zeros((64, 64, 16), np.uint8), np.eye(4)), image)
    elif suffix == ".tif":
        tifffile.imwrite(image, np.zeros((256, 256), np.uint8))
    else:
        Pillow.fromarray(np.zeros((256, 256), np.uint8)).save(image)
    shape = (16, 64, 64) if suffix == ".nii.gz" else (256, 256)
    numbers = np.arange(MOST_OBJECTS + 1, dtype=np.int32).reshape(shape)
    labels = CELL if given == "numbers" else TWO.model_copy(update={"objects": "codes"})
    value = 1 if given == "numbers" else 3
    codes = np.where(numbers > 0, (value << NUMBER_BITS) | numbers, 0).astype(np.int32)
    files = CaseFiles(id="a", images=(image,), group="a")
    grid = read_header(image).grid
    LabelMaps().write(Result(files, Prediction("a", codes), grid, labels, Maker("m", "1", "0"), Scratch(0)), tmp_path / "out")
    written = tmp_path / "out" / f"a{suffix}"
    assert np.array_equal(read_prediction(written, labels).array[0], codes)
    assert int(read_label(written, colours=given == "codes").array.max()) == int(numbers.max() if given == "numbers" else codes.max())


def test_labels_without_things_are_what_they_were():
    plain = Labels(classes=CELL.classes)
    assert "things" not in plain.to_json()
    assert "objects" not in plain.to_json()
    array = np.array([0, 1], np.uint8)
    assert plain.semantic(array) is array
    assert plain.dtype == np.int16
    assert encode(array, plain, plain.objects, HERE) is array
    assert decode(array, plain) is array
    assert Labels.model_validate_json(CELL.to_json()) == CELL


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"things": ("nucleus",)}, "things that are no classes: nucleus; the classes are cell"),
        ({"things": ()}, "objects are 'numbers', but no class is named in 'things'"),
        ({"classes": (*CELL.classes, LabelClass(name="gland", values=(2,)))}, "where every value is one object, there is one class"),
        ({"classes": (LabelClass(name="cell", values=(40_000,)),)}, "values of classes go up to 32767; found 40000 to 40000"),
        ({"ignore": 65_535}, "values of classes go up to 32767; found 1 to 65535"),
        ({"order": (1,), "objects": "codes"}, r"classes that overlap \(regions\) cannot be things"),
    ],
)
def test_labels_that_contradict_themselves(changes, text):
    with pytest.raises(ValidationError, match=text):
        Labels(**{**dict(CELL), **changes})


def test_codes_of_arrays_and_tensors():
    codes = np.array([0, code(2, 7), code(3, MOST_OBJECTS), code(9)], np.int32)
    for array in (codes, torch.from_numpy(codes)):
        assert TWO.semantic(array).tolist() == [0, 2, 3, 9]
        assert TWO.numbers(array).tolist() == [0, 7, MOST_OBJECTS, 0]
    empty = np.zeros(3, np.uint8)  # as the store keeps it
    assert TWO.semantic(empty).tolist() == TWO.numbers(empty).tolist() == [0, 0, 0]


def test_numbers_of_one_class():
    assert encode(np.array([[0, 3, 3, 300]]), CELL, "numbers", HERE).tolist() == [[0, code(1, 3), code(1, 3), code(1, 300)]]
    assert encode(np.array([0, 70_000, 5, 10**9]), CELL, "numbers", HERE).tolist() == [0, code(1, 2), code(1, 1), code(1, 3)]
    ignoring = CELL.model_copy(update={"ignore": 255})
    assert encode(np.array([0, 255, 4]), ignoring, "numbers", HERE).tolist() == [0, code(255), code(1, 4)]
    with pytest.raises(ImageError, match="numbers of objects are not negative"):
        encode(np.array([-1, 2]), CELL, "numbers", HERE)
    with pytest.raises(ImageError, match=r"holds too many objects.*65537"):
        encode(np.arange(65538) * 2, CELL, "numbers", HERE)


def test_components_of_things():
    """Stuff has no numbers; parts of a class that touch at corners are one object, whatever their value."""
    array = np.array([[2, 0, 0, 1, 0], [0, 3, 0, 0, 9], [0, 0, 0, 2, 1]])
    assert encode(array, TWO, "components", HERE).tolist() == [
        [code(2, 1), 0, 0, code(1), 0],
        [0, code(3, 1), 0, 0, code(9)],
        [0, 0, 0, code(2, 2), code(1)],
    ]


def test_predictions_are_read_as_they_were_written(tmp_path):
    folder = folder_of(tmp_path, np.zeros((3, 4), np.uint8))
    image, out = folder / "images" / "c0.png", tmp_path / "p.png"
    codes = np.zeros((3, 4), np.int32)
    codes[0], codes[1, 2] = code(1, 1), code(1, 40_000)
    write_label(out, decode(codes, CELL), image)
    assert np.asarray(Pillow.open(out)).max() == 40_000
    assert np.array_equal(read_prediction(out, CELL).array[0], codes)
    assert np.array_equal(
        read_prediction(out, CELL.model_copy(update={"objects": "components"})).array[0], codes
    )  # the form of annotations
    assert np.array_equal(encode(decode(codes << 1, TWO), TWO, TWO.given, HERE), codes << 1)


def test_a_case_has_codes_and_its_prior_class_values(tmp_path):
    label = np.array([[0, 3], [300, 300]], np.uint16)
    folder = folder_of(tmp_path, label)
    files = CaseFiles(
        id="c0", images=(folder / "images/c0.png",), label=folder / "labels/c0.png", group="c0", prior=folder / "labels/c0.png"
    )
    case = read_case(files, labels=CELL)
    assert case.label.tolist() == [[0, code(1, 3)], [code(1, 300)] * 2]
    assert case.prior.tolist() == [[0, 1], [1, 1]]
    assert read_case(files).label.tolist() == label.tolist()
    assert np.array_equal(read_annotation(files.label, CELL).array[0], case.label)


NUMBERED = (np.array([[0, 1], [2, 300]], np.uint16), np.array([[1, 1], [0, 0]], np.uint16))
MASKS = (np.array([[0, 255], [0, 255]], np.uint8), np.array([[0, 0], [0, 255]], np.uint8))


def test_what_nobody_declares_is_found_out(tmp_path):
    numbered = open_dataset(folder_of(tmp_path / "a", *NUMBERED), LayoutOptions(objects="auto"))
    assert (numbered.labels.things, numbered.labels.objects, numbered.labels.values) == (("object",), "numbers", (1,))
    assert numbered.task == "instance"
    masks = open_dataset(folder_of(tmp_path / "b", *MASKS), LayoutOptions(objects="auto"))
    assert (masks.labels.things, masks.labels.objects, masks.labels.values) == (("object",), "components", (255,))
    assert open_dataset(tmp_path / "b").task == "semantic"


def test_what_is_declared_stays(tmp_path):
    folder = folder_of(tmp_path, *NUMBERED, classes={"nucleus": [1]}, objects="numbers")
    found = open_dataset(folder)
    assert (found.task, found.labels.names, found.labels.things, found.labels.objects) == (
        "instance",
        ("nucleus",),
        ("nucleus",),
        "numbers",
    )
    chosen = open_dataset(folder, LayoutOptions(classes={"a": (1, 2), "b": (300,)}, objects="components"))
    assert (chosen.labels.names, chosen.labels.things, chosen.labels.objects) == (("a", "b"), ("a", "b"), "components")
    declared = LayoutOptions(classes={"a": (1, 2), "b": (300,)}, objects="numbers")
    with pytest.raises(DatasetError, match=r"values that number objects cannot tell classes apart.*classes a, b.*--objects components"):
        open_dataset(folder, declared)
    some = LayoutOptions(classes={"nucleus": tuple(range(1, 29))}, objects="numbers")
    with pytest.raises(
        DatasetError,
        match=r"cannot be chosen.*class 'nucleus' of 28 values from 1 to 28.*to 0 in the label files and pass --class nucleus=1",
    ):
        open_dataset(folder, some)
    with pytest.raises(UsageError, match=r"unknown form of objects.*'blobs'"):
        LayoutOptions(objects="blobs")  # type: ignore[arg-type]


def test_things_that_are_no_class(tmp_path):
    folder = folder_of(tmp_path, *NUMBERED)
    for name, fix in (("nucleus", "--class nucleus=1 --objects numbers names it."), ("objekt", "Did you mean 'object'?")):
        with pytest.raises(UsageError) as caught:
            open_dataset(folder, LayoutOptions(objects="numbers", things=(name,)))
        assert str(caught.value) == f"--thing: no such class; found '{name}', expected one of object. {fix}"
    advised = open_dataset(folder, LayoutOptions(classes={"nucleus": (1,)}, objects="numbers", things=("nucleus",)))
    assert (advised.labels.objects, advised.labels.things) == ("numbers", ("nucleus",))
    with pytest.raises(UsageError, match=r"expected one of foreground\. --class nucleus=255 names it\."):
        open_dataset(folder_of(tmp_path / "masks", *MASKS), LayoutOptions(things=("nucleus",)))
