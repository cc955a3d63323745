"""Objects from labels that number them to predictions that do, through the whole flow."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg import workflow
from medseg.errors import PlanError
from medseg.evaluation.records import Evaluation
from medseg.evaluation.selection import Selection
from medseg.fingerprint import Fingerprint
from medseg.io.layouts.base import LayoutOptions
from medseg.plans import Plan

SMALL = {
    "window": "[32, 32]",
    "network.features": "[16, 16]",
    "network.strides": "[[1, 1], [2, 2]]",
    "network.kernels": "[[3, 3], [3, 3]]",
    "network.encoder": "[0, 0]",
    "network.decoder": "[1]",
    "training.steps": "60",
    "training.batch_size": "4",
    "training.folds": "2",
    "target.head.smallest": "4",
}


def scenes(root: Path, count: int = 6) -> Path:
    """Bright disks on dark ground, some of which touch; images of two sizes; labels are 16-bit numbers from 300 on."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for k in range(count):
        rows, columns = np.mgrid[: 48 + 8 * (k % 2), :56]
        label = np.zeros(rows.shape, np.uint16)
        for number, (y, x) in enumerate([(10, 10), (10, 21), (30, 12), (34, 40), (8, 45)], 300):
            label[(rows - y) ** 2 + (columns - x) ** 2 <= 25] = number
        image = np.where(label > 0, 160, 40) + rng.normal(0, 8, label.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"s{k}.png")
        Image.fromarray(label).save(root / "labels" / f"s{k}.png")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    workflow.run(scenes(folder / "data"), folder / "run", task="instance", epochs=1, edits=SMALL, device="cpu", workers=1)
    return folder


def test_a_plan_of_objects(root):
    plan = Plan.load(root / "run" / "plan.json")
    assert (plan.task, plan.data.labels.things, plan.data.labels.objects) == ("instance", ("object",), "numbers")
    (objects,) = Fingerprint.load(root / "run" / "workspace" / "fingerprint.json").cases[0].objects
    assert objects.count == 5
    assert objects.sizes == (81,) * 7
    assert objects.touching == 0.4


def test_objects_are_found_and_written_as_numbers(root):
    """Even so short a training finds bright disks; also those of images that it has not seen."""
    with (root / "run" / "report" / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert np.mean([float(row["pq"]) for row in rows]) > 0.3
    for row in rows:
        found = np.asarray(Image.open(root / "run" / "held_out" / f"{row['case']}.png"))
        assert found.shape == np.asarray(Image.open(root / "data" / "images" / f"{row['case']}.png")).shape
        assert found.max() == len(np.unique(found)) - 1  # numbered from 1 on
        assert int(row["predicted_voxels"]) == np.count_nonzero(found)


def test_the_report_scores_all_held_out_objects_together(root):
    """With average precision, because held-out predictions have a table of their objects."""
    found = Evaluation.open(root / "run" / "report")
    assert found.objects is not None
    assert found.objects.left_out == {}
    counts = found.objects.counts["object"]
    assert counts.matched + counts.missed == 15
    scores = found.objects.classes["object"]
    assert 0.2 < scores["ap@0.5"].value <= 1
    assert 0.3 < scores["pq"].value <= 1
    text = (root / "run" / "report" / "index.html").read_text(encoding="utf-8")
    assert "PQ, all objects" in text
    assert "Precision and sensitivity" in text


def test_a_model_is_evaluated_on_a_folder_of_numbers(root):
    workflow.predict(root / "run", [root / "data" / "images"], root / "predicted", device="cpu")
    with (root / "predicted" / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    for case in ("s0", "s1"):
        found = np.asarray(Image.open(root / "predicted" / f"{case}.png"))
        listed = {int(row["number"]): int(row["voxels"]) for row in rows if row["case"] == case}
        assert listed == {int(n): int(np.count_nonzero(found == n)) for n in np.unique(found) if n}
    assert all(0 < float(row["score"]) <= 1 for row in rows)
    folder = workflow.evaluate(root / "predicted", root / "data" / "labels", run=root / "run", workers=1)
    dataset = workflow.evaluate(root / "predicted", root / "data", run=root / "run", workers=1)
    assert folder.metrics[0] == "pq"
    assert len(folder.cases) == 6
    assert [case.scores for case in folder.cases] == [case.scores for case in dataset.cases]


def test_class_values_that_no_picture_holds(tmp_path):
    """Codes of objects are colours in pictures, whose third byte is the class value. Said before anything trains."""
    several = LayoutOptions(classes={"a": (300, 301), "b": (302, 303, 304)})
    with pytest.raises(PlanError, match=r"classes with such high values do not fit into pictures.*found class 'b' of value 302; .png"):
        workflow.plan(scenes(tmp_path / "data", 2), tmp_path / "p", task="instance", options=several, device="cpu", memory=4, workers=1)


def test_components_of_a_mask_are_objects(tmp_path):
    """0/255 masks: with the task alone, with the option, and as classes that are declared."""
    data = scenes(tmp_path / "data", 4)
    for file in (data / "labels").iterdir():
        label = np.asarray(Image.open(file))
        Image.fromarray(((label > 0) * 255).astype(np.uint8)).save(file)
    for n, (options, name) in enumerate(
        [
            (LayoutOptions(), "object"),
            (LayoutOptions(objects="components"), "foreground"),
            (LayoutOptions(classes={"disk": (255,)}), "disk"),
        ]
    ):
        plan, *_ = workflow.plan(data, tmp_path / str(n), task="instance", options=options, device="cpu", memory=4, workers=1)
        assert (plan.data.labels.things, plan.data.labels.objects) == ((name,), "components")
        assert "apart: 20" not in plan.reasons["target.head.kind"]  # two of five touch
        assert "apart: 16 of them" in plan.reasons["target.head.kind"]


def test_ways_to_find_objects_are_compared_on_held_out_cases(tmp_path):
    """Both configurations are cross-validated, and the better one is the model."""
    result = workflow.run(
        scenes(tmp_path / "data"), tmp_path / "run", task="instance", epochs=1, folds="all", edits=SMALL, device="cpu", workers=1, memory=4
    )
    selection = Selection.load(tmp_path / "run" / "selection.json")
    scores = {one.members[0]: one.mean for one in selection.candidates}
    assert set(scores) == {"2d", "2d_mask-rcnn"}
    assert Plan.load(tmp_path / "run" / "plan.json").name == max(scores, key=scores.get)
    assert result.evaluation is not None
    assert len(result.evaluation.cases) == 6


@pytest.mark.parametrize("network", ["mask-rcnn", "yolact"])
def test_detectors_learn_and_predict(tmp_path, network):
    """Bright disks are found after seconds, and come out as numbers with confidences."""
    data = scenes(tmp_path / "data")
    workflow.run(data, tmp_path / "run", task="instance", network=network, epochs=2, edits=SMALL, device="cpu", workers=1)
    with (tmp_path / "run" / "report" / "cases.csv").open() as file:
        assert np.mean([float(row["pq"]) for row in csv.DictReader(file)]) > 0.3
    workflow.predict(tmp_path / "run", [data / "images" / "s0.png"], tmp_path / "out", device="cpu")
    with (tmp_path / "out" / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert 3 <= len(rows) <= 7
    assert all(0.3 <= float(row["score"]) <= 1 for row in rows)


def test_levels_beyond_the_network_are_refused(tmp_path):
    with pytest.raises(PlanError, match=r"no such decoder stage.*found \[7\], expected stages 0 to"):
        workflow.plan(
            scenes(tmp_path / "data", 2), tmp_path / "p", task="instance", network="mask-rcnn", device="cpu", memory=4, workers=1,
            edits={"target.head.levels": "[7]", "target.head.anchors": "[[[9, 9]]]"},
        )  # fmt: skip
