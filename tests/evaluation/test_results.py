"""COCO files of predicted objects: scored as pycocotools scores them, and every way in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medseg import workflow
from medseg.errors import DatasetError, UsageError
from medseg.io.rle import Rle
from tests.io.coco.scenes import annotation, instances, listed, pictures, square, write
from tests.metrics.instances.scenes import detection_scene

SEEDS = (1, 2, 3)
SHAPE = (60, 70)
CATEGORIES = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 9, "name": "never seen"}]


def segmentation(mask: np.ndarray) -> dict[str, Any]:
    rle = Rle.encode(mask)
    return {"size": list(rle.shape), "counts": rle.to_string()}


@pytest.fixture
def scenes(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The three images of `test_average_precision` as a dataset, and the results."""
    images = [{"id": s, "file_name": f"{s}.png", "height": SHAPE[0], "width": SHAPE[1]} for s in SEEDS]
    pictures(tmp_path / "data" / "images", *(f"{s}.png" for s in SEEDS), shape=SHAPE)
    truth, results = [], []
    for seed in SEEDS:
        real, found = detection_scene(SHAPE, 20, seed)
        for mask, cls, crowd in real:
            truth.append(annotation(len(truth) + 1, seed, segmentation(mask), cls, iscrowd=int(crowd)))
        for mask, cls, score in found:
            results.append({"image_id": seed, "category_id": int(cls), "segmentation": segmentation(mask), "score": float(score)})
    write(tmp_path / "data" / "annotations.json", images, truth, CATEGORIES)
    return tmp_path / "data", results


def saved(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def means(found: Any) -> dict[str, float]:
    return {name: one.value for name, one in found.objects.means["all"].items()}


def test_equal_to_pycocotools(scenes: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """pycocotools 2.0.11, as in `test_average_precision`: objects overlap, some are crowds."""
    root, results = scenes
    found = workflow.evaluate(saved(tmp_path / "results.json", results), root, tmp_path / "out", workers=1)
    got = means(found)
    assert [got["ap"], got["ap@0.5"], got["ap@0.75"]] == pytest.approx([0.148561, 0.472376, 0.027621], abs=1e-6)
    assert [got["box_ap"], got["box_ap@0.5"]] == pytest.approx([0.240204, 0.605296], abs=1e-6)
    assert not found.objects.left_out  # type: ignore[union-attr]
    assert found.ids == ("1", "2", "3")
    assert (tmp_path / "out" / "index.html").is_file()


def test_a_whole_file_names_images_and_categories(scenes: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Ids are the file's own; an image without an object is one of which all is missed."""
    root, results = scenes
    other = [{**one, "image_id": 100 - one["image_id"], "category_id": 30 + one["category_id"]} for one in results]
    file = {
        "images": [{"id": 100 - s, "file_name": f"elsewhere/{s}.png"} for s in SEEDS],
        "categories": [{"id": 30 + one["id"], "name": one["name"]} for one in CATEGORIES],
        "annotations": other,
    }
    whole = workflow.evaluate(saved(tmp_path / "coco.json", file), root, workers=1)
    listed = workflow.evaluate(saved(tmp_path / "results.json", results), root, workers=1)
    assert whole.objects == listed.objects
    fewer = {**file, "images": file["images"][:2], "annotations": [one for one in other if one["image_id"] == 99]}
    part = workflow.evaluate(saved(tmp_path / "coco.json", fewer), root, workers=1)
    assert (part.ids, part.missing) == (("1", "2"), ("3",))
    assert part.cases[1].scores["a"]["pq"] == 0


def test_what_is_painted_and_what_is_ranked(tmp_path: Path) -> None:
    """The surer one of two that overlap takes the pixels; unsure ones are not painted, but ranked."""
    instances(tmp_path / "data")
    results = [
        {"image_id": 1, "category_id": 1, "segmentation": square(0, 0), "score": 0.9, "bbox": [0, 0, 4, 2]},
        {"image_id": 1, "category_id": 1, "segmentation": square(0, 0), "score": 0.8},
        {"image_id": 1, "category_id": 3, "segmentation": square(3, 4), "score": 0.4},
    ]
    file = saved(tmp_path / "results.json", results)
    for confidence, pq in ((None, 0.0), (0.3, 1.0)):
        found = workflow.evaluate(file, tmp_path / "data", confidence=confidence, workers=1)
        assert found.objects is not None
        assert found.objects.classes["cell"]["pq"].value == 1
        assert found.objects.classes["gland"]["pq"].value == pq
        assert found.objects.classes["gland"]["ap"].value == pytest.approx(1)
        assert found.objects.classes["cell"]["ap"].value == pytest.approx(1)  # found by the first, so the second does no harm
        assert found.objects.classes["cell"]["box_ap@0.5"].value == pytest.approx(1)
        assert found.objects.classes["cell"]["box_ap"].value == pytest.approx((1 + 9 * 0.5) / 10)  # from 0.55 on only the second box fits
        assert found.objects.counts["cell"].invented == 0


def test_references_that_are_label_maps(tmp_path: Path) -> None:
    """What is ignored there excuses, and categories are classes by name."""
    labels = np.zeros((6, 8), np.uint8)
    labels[0:2, 0:2], labels[4:, :] = 1, 255
    pictures(tmp_path / "data" / "images", "x.png")
    (tmp_path / "data" / "labels").mkdir()
    Image.fromarray(labels).save(tmp_path / "data" / "labels" / "x.png")
    descriptor = {"classes": {"cell": [1]}, "ignore": 255, "objects": "components", "things": ["cell"]}
    (tmp_path / "data" / "medseg.json").write_text(json.dumps(descriptor))
    file = {
        "images": [{"id": 5, "file_name": "x.png"}],
        "categories": [{"id": 8, "name": "cell"}],
        "annotations": [
            {"image_id": 5, "category_id": 8, "segmentation": square(4, 2), "score": 0.9},
            {"image_id": 5, "category_id": 8, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]], "score": 0.7},
        ],
    }
    found = workflow.evaluate(saved(tmp_path / "coco.json", file), tmp_path / "data", workers=1)
    assert found.objects is not None
    assert found.objects.classes["cell"]["ap"].value == pytest.approx(1)
    assert found.objects.classes["cell"]["box_ap"].value == pytest.approx(1)
    assert found.objects.counts["cell"].invented == 0
    with pytest.raises(DatasetError, match="names images and categories by ids, which the references do not have"):
        workflow.evaluate(saved(tmp_path / "list.json", file["annotations"]), tmp_path / "data", workers=1)


def test_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    instances(tmp_path / "data")
    good = {"image_id": 1, "category_id": 1, "segmentation": square(0, 0), "score": 0.5}
    results = [
        7,
        {**good, "image_id": 3},
        {**good, "category_id": 2},
        {key: value for key, value in good.items() if key != "segmentation"},
        {**good, "segmentation": {"size": [8, 6], "counts": [48]}},
        {**good, "segmentation": {"size": [6, 8], "counts": "5"}},
        {**good, "segmentation": [[0, 0, 1, 1]]},
        {**good, "score": float("nan")},
        {**good, "score": None},
    ]
    with pytest.raises(DatasetError) as caught:
        workflow.evaluate(saved(tmp_path / "results.json", results), tmp_path / "data", tmp_path / "out", workers=1)
    told = str(caught.value)
    for text in (
        "entries of 'results' are no objects; found 7",
        "results of unknown images; found result 1 (image 3), expected ids of the COCO file",
        "results of unknown categories; found result 2 (category 2), expected one of 1, 3, 4",
        "results without a mask; found result 3",
        "run lengths of another size than their image; found result 4 of 'a' ([8, 6])",
        "run lengths do not fill their image; found result 5 of 'a'",
        "polygons that are none; found result 6",
        "results without a score; found result 7 (nan), result 8 (None)",
    ):
        assert text in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "is not valid JSON"),
        ("3", "holds no predicted objects; found int"),
        ('{"format": 1, "cases": []}', r"medseg's own record of predictions: pass the folder .*, or predict with --format coco"),
        ('{"images": [{"id": 1}], "categories": [4], "annotations": []}', "2 problems"),
        (
            '{"images": [{"id": 1, "file_name": "z.png"}], "categories": [{"id": 1, "name": "dog"}], "annotations": []}',
            r"none of the references, or not one alone; found 'z.png'.*\n.*no classes of the references; found 'dog', expected cell, gland",
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    instances(tmp_path / "data")
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        workflow.evaluate(tmp_path / "p.json", tmp_path / "data", workers=1)


def test_results_of_categories_without_objects_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    instances(tmp_path / "data")
    results = [
        {"image_id": 1, "category_id": 4, "segmentation": square(0, 0), "score": 0.9},
        {"image_id": 1, "category_id": 1, "segmentation": square(0, 0), "score": 0.5},
    ]

    said: list[str] = []

    class Heard:
        def say(self, text: str) -> None:
            said.append(text)

        def track(self, items: Any, total: int, what: str) -> Any:
            return items

        def update(self, what: str, done: int, total: int) -> None: ...

    found = workflow.evaluate(saved(tmp_path / "p.json", results), tmp_path / "data", workers=1, progress=Heard())
    assert found.objects is not None
    assert found.objects.classes["cell"]["ap"].value == pytest.approx(1)
    assert any("1 predicted objects are of categories of which the references have none" in text for text in said)


def test_only_the_images_of_one_file_are_scored(tmp_path: Path) -> None:
    """As in pycocotools, which knows one file; where ids are those of several files, nobody can know which."""
    root = tmp_path / "data"
    pictures(root / "train2017", "a.png")
    pictures(root / "val2017", "b.png")
    result = [{"image_id": 2, "category_id": 1, "segmentation": square(0, 0), "score": 0.5}]
    write(root / "annotations" / "instances_train2017.json", listed("a.png"), [annotation(7, 1, square(0, 0))])
    write(root / "annotations" / "instances_val2017.json", listed("b.png", first=2), [annotation(7, 2, square(0, 0))])
    found = workflow.evaluate(saved(tmp_path / "p.json", result), root, workers=1)
    assert (found.ids, found.missing) == (("b",), ())
    write(root / "annotations" / "instances_train2017.json", listed("a.png", first=2), [annotation(7, 2, square(0, 0))])
    with pytest.raises(DatasetError, match=r"several COCO files of the references have images of these ids; found .*val2017\.json"):
        workflow.evaluate(saved(tmp_path / "p.json", result), root, workers=1)


def test_options_that_have_no_meaning(tmp_path: Path) -> None:
    instances(tmp_path / "data")
    with pytest.raises(UsageError, match="--predicted-objects: a COCO file says itself"):
        workflow.evaluate(saved(tmp_path / "p.json", []), tmp_path / "data", predicted="numbers", workers=1)
