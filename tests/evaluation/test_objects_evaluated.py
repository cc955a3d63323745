"""Evaluation of objects: every form of label files, with and without confidences, and every way in which they can be wrong."""

import csv

import numpy as np
import pytest
import tifffile
from PIL import Image

from medseg import workflow
from medseg.commands.scores import show_scores
from medseg.dataset import LabelClass, Labels
from medseg.errors import DatasetError, UsageError
from medseg.evaluation.comparison import compare
from medseg.evaluation.objects import POOLED, POOLED_3D
from medseg.evaluation.records import Evaluation, Matched
from medseg.evaluation.scoring import evaluate
from medseg.io.detections import detections_path, write_detections
from medseg.io.table import FOLDER
from medseg.progress import Silent
from tests.metrics.instances.scenes import Dice, scene

SEEDS = (1, 2, 3, 4)
CELL = Labels(classes=(LabelClass(name="cell", values=(1,)),), things=("cell",), objects="numbers")


def save(folder, name, array):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(folder / f"{name}.png")


def confidences(folder, case, rows):
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    with (folder / FOLDER / f"{case}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "number", "class", "score", "voxels"])
        writer.writerows((case, number, name, score, 1) for number, name, score in rows)


@pytest.fixture
def folders(tmp_path):
    """The scenes of `test_pooling`, as numbers in 16 bits, with the same scores."""
    for seed in SEEDS:
        truth, prediction = scene((60, 70), 20, seed)
        save(tmp_path / "r", f"s{seed}", truth.astype(np.uint16))
        save(tmp_path / "p", f"s{seed}", prediction.astype(np.uint16))
        dice = Dice(100 + seed)
        confidences(tmp_path / "p", f"s{seed}", [(n, "cell", dice.throw(100) / 100) for n in np.unique(prediction)[1:]])
    return tmp_path / "p", tmp_path / "r"


def value(found, metric, name="cell"):
    return found.objects.classes[name][metric].value


def test_all_cases_together(folders, tmp_path):
    """pycocotools 2.0.11, and the counts of panoptic quality, as in `test_pooling`."""
    found = evaluate(*folders, CELL, tmp_path / "out", workers=1)
    assert found.objects.metrics == POOLED
    assert found.objects.counts["cell"].model_dump() == pytest.approx(
        {"matched": 31, "missed": 48, "invented": 44, "iou": 20.182897463014914}
    )
    assert value(found, "pq") == pytest.approx(20.182897463014914 / (31 + 22 + 24))
    assert [value(found, m) for m in ("ap", "ap@0.5", "ap@0.75")] == pytest.approx([0.042565, 0.167514, 0.006898], abs=1e-6)
    assert [value(found, m) for m in ("box_ap", "box_ap@0.5")] == pytest.approx([0.074777, 0.259890], abs=1e-6)
    assert np.mean(found.objects.precision["cell"]) == pytest.approx(value(found, "ap@0.5"), abs=1e-6)
    assert found.objects.curves["cell"]["object_accuracy"][0] == pytest.approx(value(found, "object_accuracy"), abs=1e-6)
    assert np.mean(found.objects.curves["cell"]["object_accuracy"]) == pytest.approx(value(found, "object_accuracy@0.5:0.95"), abs=1e-6)
    assert found.objects.left_out == {}
    assert found.objects.froc == {}  # of volumes only
    assert sum(g.objects for g in found.objects.sizes["cell"]) == 79
    assert sum(g.found for g in found.objects.sizes["cell"]) == round(79 * value(found, "object_sensitivity"))
    # The leading metric, by which models are selected, stays a mean over cases, which can be compared in pairs.
    assert found.metrics[0] == "pq"
    assert found.overall["pq"].mean == pytest.approx(np.mean([case.scores["cell"]["pq"] for case in found.cases]))
    assert found.overall["pq"].mean != pytest.approx(value(found, "pq"), abs=1e-4)
    assert {d.metric for d in compare(found, found).differences} == set(found.metrics)

    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cases.csv", "index.html", "objects.csv", "summary.json"]
    assert Evaluation.open(tmp_path / "out") == found
    rows = list(csv.DictReader((tmp_path / "out" / "objects.csv").read_text(encoding="utf-8").splitlines()))
    assert [(r["classes"], r["metric"]) for r in rows] == [(c, m) for c in ("cell", "mean of all") for m in POOLED]
    assert float(rows[0]["low"]) < float(rows[0]["value"]) < float(rows[0]["high"])
    case = next(csv.DictReader((tmp_path / "out" / "cases.csv").read_text(encoding="utf-8").splitlines()))
    first = found.cases[0].objects["cell"]
    assert [int(case[k]) for k in ("matched_objects", "missed_objects", "invented_objects")] == [
        first.matched,
        first.missed,
        first.invented,
    ]


def test_without_confidences_average_precision_is_not_guessed(folders):
    (folders[0] / FOLDER / "s2.csv").unlink()
    found = evaluate(*folders, CELL, workers=1)
    assert set(found.objects.left_out) == {"ap", "ap@0.5", "ap@0.75", "box_ap", "box_ap@0.5"}
    assert found.objects.left_out["ap"].startswith("1 of 4 predictions come without confidences")
    assert found.objects.metrics == tuple(m for m in POOLED if m not in found.objects.left_out)
    assert found.objects.precision == {}
    rows = [(n, "cell", "") for n in range(99)]
    confidences(folders[0], "s2", rows)  # a table without scores
    assert evaluate(*folders, CELL, workers=1).objects == found.objects


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, "cell", 0.5)], "predicted objects are not in the table beside the prediction"),
        ([(7, "neuron", 0.5)], "a line of the table of objects makes no sense; found class neuron, number 7, score 0.5"),
        ([(7, "cell", "high")], "a line of the table of objects makes no sense"),
        ([(7, "cell", "nan")], "a line of the table of objects makes no sense"),
        ([("", "cell", ""), (65536, "cell", 0.5)], r"line 3: a line of the table .*number 65536.*expected a number from 1 to 65535"),
        ([(-1, "cell", 0.5)], "a line of the table of objects makes no sense; found class cell, number -1"),
        ([(7, "cell", 0.5), (7, "cell", 0.6)], "line 3: an object is in the table twice; found cell 7"),
    ],
)
def test_tables_of_something_else(folders, rows, message):
    confidences(folders[0], "s1", rows)
    with pytest.raises(DatasetError, match=message):
        evaluate(*folders, CELL, workers=1)


def test_tables_that_are_none(folders):
    (folders[0] / FOLDER / "s1.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match="lacks columns; found a, b, expected class, number"):
        evaluate(*folders, CELL, workers=1)


def test_every_form_of_references_and_predictions(tmp_path):
    """Blocks that do not touch, as numbers, as one component each, and as codes: the same scores."""
    rng = np.random.default_rng(0)
    numbers, wrong = np.zeros((40, 40), np.uint16), np.zeros((40, 40), np.uint16)
    for n, (y, x) in enumerate((y, x) for y in range(0, 40, 8) for x in range(0, 40, 8)):
        numbers[y : y + 6, x : x + 6] = n + 1
        if rng.random() < 0.7:
            wrong[y : y + 6, x : x + rng.integers(2, 7)] = n + 1
    forms = {
        "numbers": lambda a: a,
        "components": lambda a: (a > 0).astype(np.uint8) * 9,
        "codes": lambda a: np.where(a > 0, (9 << 16) + a.astype(np.int32), 0),
    }
    scores = []
    for form, turn in forms.items():
        for folder, array in (("r", numbers), ("p", wrong)):
            for case in "ab":
                path = tmp_path / form / folder / f"{case}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(turn(array)).save(path)
        found = workflow.evaluate(
            tmp_path / form / "p", tmp_path / form / "r", objects=form, predicted=None if form == "numbers" else form, workers=1
        )
        assert found.labels.names == ("object",)
        scores.append(dict(found.objects.means["all"]))
    assert scores[0] == scores[1] == scores[2]
    assert 0.2 < scores[0]["pq"].value < 0.9
    auto = workflow.evaluate(
        tmp_path / "components" / "p", tmp_path / "components" / "r", objects="auto", predicted="components", workers=1
    )
    assert auto.objects.means["all"] == scores[0]


def test_a_dataset_says_what_its_labels_are(folders, tmp_path):
    """Without a model; and classes with names of their own."""
    data = tmp_path / "data"
    for seed in SEEDS:
        save(data / "images", f"s{seed}", np.zeros((60, 70), np.uint8))
    (folders[1]).rename(data / "labels")
    (data / "medseg.json").write_text('{"objects": "numbers", "classes": {"cell": [1]}}')
    found = workflow.evaluate(folders[0], data, tmp_path / "out", workers=1)
    assert (found.labels.things, found.metrics[0]) == (("cell",), "pq")
    assert value(found, "ap") == pytest.approx(0.042565, abs=1e-6)
    assert "data:image/png" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    plain = workflow.evaluate(folders[0], data / "labels", objects="numbers", classes={"cell": (1,)}, workers=1)
    assert plain.objects == found.objects


def test_stuff_has_panoptic_quality_only(tmp_path):
    labels = Labels(
        classes=(LabelClass(name="cell", values=(1,)), LabelClass(name="tissue", values=(2,))), things=("cell",), ignore=5, objects="codes"
    )
    truth = np.zeros((20, 20), np.int32)
    truth[:, 10:] = 2 << 16
    truth[2:6, 2:6], truth[2:6, 12:16], truth[15:] = (1 << 16) + 1, (1 << 16) + 2, 5 << 16
    prediction = truth.copy()
    prediction[2:6, 12:16], prediction[15:, :4] = 2 << 16, (1 << 16) + 9  # one is missed; one lies where nobody knows
    for folder, array in (("r", truth), ("p", prediction)):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "a.tif")
    found = evaluate(tmp_path / "p", tmp_path / "r", labels, tmp_path / "out", 1, metrics=["pq", "object_f1"])
    assert found.objects.counts["cell"] == Matched(matched=1, missed=1, invented=0, iou=1.0)
    assert value(found, "pq") == pytest.approx(1 / 1.5)
    assert value(found, "pq", "tissue") == pytest.approx(134 / 150)
    assert value(found, "object_f1", "tissue") is None
    assert {g: row["pq"].value for g, row in found.objects.means.items()} == pytest.approx(
        {"all": (1 / 1.5 + 134 / 150) / 2, "things": 1 / 1.5, "stuff": 134 / 150}
    )


@pytest.mark.parametrize(("real", "predicted"), [(0, 0), (0, 3), (3, 0)])
def test_nothing_on_one_side(tmp_path, real, predicted):
    blocks = np.zeros((30, 30), np.uint16)
    for n in range(3):
        blocks[2 + 9 * n : 7 + 9 * n, 4:9] = n + 1
    for case in "ab":
        save(tmp_path / "r", case, blocks * bool(real))
        save(tmp_path / "p", case, blocks * bool(predicted))
    found = evaluate(tmp_path / "p", tmp_path / "r", CELL, tmp_path / "out", 1)
    assert found.objects.counts["cell"] == Matched(matched=0, missed=2 * real, invented=2 * predicted, iou=0.0)
    assert value(found, "pq") == (0.0 if real or predicted else None)
    assert value(found, "object_precision") == (0.0 if predicted else None)
    assert value(found, "object_sensitivity") == (0.0 if real else None)
    assert ("ap" in found.objects.left_out) == bool(predicted)  # with nothing to rank, nothing is unknown
    if not predicted:
        assert value(found, "ap") == (0.0 if real else None)
    assert "NaN" not in (tmp_path / "out" / "summary.json").read_text(encoding="utf-8")


def test_wrong_files(folders, tmp_path):
    several = Labels(
        classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))), things=("a", "b"), objects="components"
    )
    with pytest.raises(DatasetError) as caught:
        evaluate(*folders, several, workers=1)
    text = str(caught.value)
    assert "holds values that belong to no class" in text  # references are not what was said
    for path in folders[1].iterdir():
        save(folders[1], path.stem, (np.asarray(Image.open(path)) > 0).astype(np.uint8))
    with pytest.raises(DatasetError, match=r"holds numbers of objects that do not say their class; found .*--predicted-objects"):
        evaluate(*folders, several, workers=1)
    save(folders[0], "s1", np.zeros((60, 71), np.uint16))
    with pytest.raises(DatasetError, match="prediction and reference have different shapes"):
        evaluate(*folders, CELL, workers=1)


def test_usage_errors(folders):
    with pytest.raises(UsageError, match="only scores of all cases together are named; found ap, expected also one"):
        evaluate(*folders, CELL, metrics=["ap"])
    with pytest.raises(UsageError, match="unknown metric; found 'pqq'"):
        evaluate(*folders, CELL, metrics=["pqq"])
    with pytest.raises(UsageError, match="no metric of objects; found 'dice', expected one of ap, box_ap, froc"):
        evaluate(*folders, CELL, metrics=["dice"])
    plain = Labels(classes=(LabelClass(name="cell", values=(1,)),))
    with pytest.raises(UsageError, match="no class has objects"):
        evaluate(*folders, plain, predicted="numbers")
    save(folders[1], "s1", np.arange(60 * 70, dtype=np.uint16).reshape(60, 70))
    with pytest.raises(DatasetError, match="the references hold no classes of objects as components"):
        workflow.evaluate(*folders, objects="components", workers=1)


def test_many_values_that_nobody_declared(folders):
    class Told(Silent):
        def say(self, message):
            said.append(message)

    said = []
    save(folders[1], "s1", (np.arange(60 * 70) // 100).astype(np.uint16).reshape(60, 70))
    found = evaluate(folders[1], folders[1], workers=1, metrics=["dice"], progress=Told())
    assert said == [
        f"warning: the references hold {len(found.labels.classes)} values, each taken for a class; where they number objects: --objects numbers"
    ]


def test_chosen_metrics(folders):
    found = evaluate(*folders, CELL, workers=1, metrics=["object_f1@0.3", "pq", "ap@0.5"])
    assert found.metrics == ("object_f1@0.3", "pq")
    assert found.objects.metrics == ("pq", "ap@0.5")


def test_masks_are_scored_as_before(tmp_path):
    for folder in "pr":
        save(tmp_path / folder, "a", np.eye(9, dtype=np.uint8))
    found = evaluate(tmp_path / "p", tmp_path / "r", out=tmp_path / "out", workers=1)
    assert found.objects is None
    assert '"objects"' not in (tmp_path / "out" / "summary.json").read_text(encoding="utf-8")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cases.csv", "index.html", "summary.json"]


def test_lesion_f1_is_of_volumes_or_asked_for(folders, tmp_path):
    found = evaluate(*folders, CELL, tmp_path / "flat", workers=1)
    assert "lesion_f1" not in (*found.metrics, *found.objects.metrics)
    assert "lesion_f1" not in (tmp_path / "flat" / "cases.csv").read_text(encoding="utf-8").partition("\n")[0]
    assert evaluate(*folders, CELL, workers=1, metrics=["lesion_f1"]).objects.metrics == ("lesion_f1",)
    truth = np.zeros((6, 7, 8), np.uint16)
    truth[1:3, 1:3, 1:3] = 1
    for name in "pr":
        (tmp_path / "deep" / name).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "deep" / name / "a.tif", truth, imagej=True, metadata={"axes": "ZYX"})
    deep = evaluate(tmp_path / "deep" / "p", tmp_path / "deep" / "r", CELL, workers=1)
    assert "lesion_f1" in deep.metrics
    assert deep.objects.metrics == tuple(m for m in POOLED_3D if m not in deep.objects.left_out)


def test_two_tables_say_what_they_are(folders, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    show_scores(evaluate(*folders, CELL, workers=1), None)
    first, second = capsys.readouterr().out.split("All objects together:")
    assert "accuracy at 0.5 " in first
    assert "0.5:0.95" not in first
    assert "a case weighs as much as it has objects" in second
    assert "Mean over cases: each case is scored alone" in second
    assert "Lesion" not in first + second


def test_what_knows_painted_objects_only_says_so(folders, tmp_path, capsys, monkeypatch):
    """Those of a table above; with detections beside one case, of the others; and nothing where no score is made of confidences."""
    monkeypatch.setenv("COLUMNS", "400")
    show_scores(evaluate(*folders, CELL, tmp_path / "out", 1), None)
    line = "Average precision and FROC of 4 cases are of the objects in the label map alone"
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    for seed in SEEDS:
        write_detections(detections_path(folders[0], f"s{seed}"), [], CELL, (60, 70))
        found = evaluate(*folders, CELL, workers=1)
        assert found.objects.painted == len(SEEDS) - seed
    assert found.objects.of_painted() == ""
    assert '"painted"' not in found.to_json()
    (folders[0] / "detections" / "s1.json").unlink()
    assert evaluate(*folders, CELL, workers=1).objects.of_painted().startswith("Average precision and FROC of 1 case are")
    assert evaluate(*folders, CELL, workers=1, metrics=["pq"]).objects.painted == 0
