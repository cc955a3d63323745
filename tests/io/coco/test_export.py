"""Predictions as COCO files: what others read of them, and what medseg reads again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.dataset import NUMBER_BITS, CaseFiles, LabelClass, Labels
from medseg.geometry import Grid
from medseg.io.coco.export import Instances, Panoptic
from medseg.io.coco.labels import label_path
from medseg.io.exports import Export, Maker, Result
from medseg.io.images import read_case
from medseg.io.layouts.base import open_dataset
from medseg.io.rle import Rle
from medseg.prediction import Prediction
from tests.io.coco.scenes import SHAPE, annotation, listed, pictures, square, write

LABELS = Labels(classes=(LabelClass(name="cell", values=(1,)), LabelClass(name="tissue", values=(2,))), things=("cell",))


def code(value: int, number: int = 0) -> int:
    return value << NUMBER_BITS | number


def scene() -> np.ndarray:
    codes = np.zeros(SHAPE, np.int32)
    codes[4:] = code(2)
    codes[0:2, 0:3] = code(1, 2)
    codes[1, 1] = 0
    codes[3:6, 5] = code(1, 7)
    return codes


def result(folder: Path, name: str = "a", codes: np.ndarray | None = None, label: Path | None = None, labels: Labels = LABELS) -> Result:
    pictures(folder / "in", f"{name}.png")
    files = CaseFiles(id=name, images=(folder / "in" / f"{name}.png",), group=name, label=label)
    scores = {code(1, 2): 0.25, code(1, 7): 1 / 3}
    prediction = Prediction(name, scene() if codes is None else codes, objects=scores if labels.things else None)
    return Result(files, prediction, Grid.plain(SHAPE), labels, Maker("model 2d", "0.1.0", "0123"))


def written(export: Export, out: Path, *results: Result) -> dict:
    for one in results:
        export.write(one, out)
    export.collect([export.targets(one.files, False) for one in results], out)
    return json.loads((out / export.collected[0]).read_text())


def test_instances(tmp_path):
    told = written(Instances(), tmp_path / "out", result(tmp_path))
    assert told["info"] == {"description": "model 2d, medseg 0.1.0"}
    assert told["images"] == [{"id": 1, "file_name": "a.png", "height": 6, "width": 8}]
    assert told["categories"] == [{"id": 1, "name": "cell", "isthing": 1}, {"id": 2, "name": "tissue", "isthing": 0}]
    one, other = told["annotations"]
    assert {key: one[key] for key in one if key != "segmentation"} == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "area": 5,
        "bbox": [0, 0, 3, 2],
        "iscrowd": 0,
        "score": 0.25,
    }
    assert other["score"] == 0.333333
    assert other["segmentation"] == {"size": [6, 8], "counts": Rle.encode(scene() == code(1, 7)).to_string()}
    assert str(tmp_path) not in json.dumps(told)


def test_images_are_numbered_over_all_cases(tmp_path):
    told = written(Instances(), tmp_path / "out", result(tmp_path, "a"), result(tmp_path, "b", scene() * 0), result(tmp_path, "c"))
    assert [(i["id"], i["file_name"]) for i in told["images"]] == [(1, "a.png"), (2, "b.png"), (3, "c.png")]
    assert [(a["id"], a["image_id"]) for a in told["annotations"]] == [(1, 1), (2, 1), (3, 3), (4, 3)]


def test_ids_of_images_that_are_annotated_stay(tmp_path):
    file = write(tmp_path / "gt.json", listed("a.png", "b.png", first=40), [annotation(1, 40, square(0, 0))])
    cases = [result(tmp_path, name, label=label_path(file, number)) for name, number in (("a", 40), ("b", 41))]
    for export in (Instances(), Panoptic()):
        told = written(export, tmp_path / "out", *cases)
        assert [i["id"] for i in told["images"]] == [40, 41]
        assert {a["image_id"] for a in told["annotations"]} == {40, 41}


def test_classes_without_objects_are_one_each(tmp_path):
    plain = Labels(classes=(LabelClass(name="liver", values=(1, 3)), LabelClass(name="part", values=(3,))), order=(1, 3))
    values = np.zeros(SHAPE, np.uint8)
    values[1:3, 1:5] = 1
    values[2, 2:4] = 3
    told = written(Instances(), tmp_path / "out", result(tmp_path, codes=values, labels=plain))
    assert [(a["category_id"], a["area"]) for a in told["annotations"]] == [(1, 8), (3, 2)]
    assert all("score" not in a for a in told["annotations"])
    whole = Rle.of_string(told["annotations"][0]["segmentation"]["counts"], SHAPE)
    assert np.array_equal(whole.decode(), values > 0)
    shown = written(Panoptic(), tmp_path / "out", result(tmp_path, codes=values, labels=plain))
    assert [s["area"] for s in shown["annotations"][0]["segments_info"]] == [6, 2]


def test_panoptic_segments(tmp_path):
    told = written(Panoptic(), tmp_path / "out", result(tmp_path))
    (entry,) = told["annotations"]
    pixels = np.asarray(Image.open(tmp_path / "out" / "panoptic" / entry["file_name"])).astype(int)
    ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    assert [(s["id"], s["category_id"], s["area"], s["bbox"]) for s in entry["segments_info"]] == [
        (1, 1, 5, [0, 0, 3, 2]),
        (2, 1, 3, [5, 3, 1, 3]),
        (3, 2, 14, [0, 4, 8, 2]),
    ]
    assert {s["id"]: s["area"] for s in entry["segments_info"]} == {i: int((ids == i).sum()) for i in (1, 2, 3)}
    assert np.array_equal(ids == 0, scene() == 0)


def test_pictures_are_painted_slab_by_slab(tmp_path, monkeypatch):
    whole = written(Panoptic(), tmp_path / "whole", result(tmp_path))
    monkeypatch.setattr("medseg.scratch.CHUNK", 16)  # two rows at once
    assert written(Panoptic(), tmp_path / "parts", result(tmp_path)) == whole
    one, other = (np.asarray(Image.open(tmp_path / folder / "panoptic" / "a.png")) for folder in ("whole", "parts"))
    assert np.array_equal(one, other)
    assert len(np.unique(one)) == 4


@pytest.mark.parametrize("export", [Instances(), Panoptic()])
def test_what_is_written_is_read_as_a_dataset(export, tmp_path):
    """The folder with its images beside it; objects are the same, numbered anew."""
    written(export, tmp_path, result(tmp_path))
    (tmp_path / "in").rename(tmp_path / "images")
    found = open_dataset(tmp_path)
    case = read_case(found.cases[0], labels=found.labels)
    assert case.label is not None
    expected = {code(1, 2): code(1, 1), code(1, 7): code(1, 2), code(2): code(2) if export.name == "panoptic" else 0}
    expected[0] = (found.labels.ignore or 0) << NUMBER_BITS
    assert case.label.tolist() == [[expected[value] for value in row] for row in scene().tolist()]


def test_volumes_are_refused(tmp_path):
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "v.nii.gz")
    files = CaseFiles(id="v", images=(tmp_path / "v.nii.gz",), group="v")
    for export in (Instances(), Panoptic()):
        (told,) = export.problems(files)
        assert "a volume cannot be written as COCO; found shape 6 x 5 x 4, expected an image in 2D" in str(told)
        assert f"Leave {export.name} out of --format" in told.fix
