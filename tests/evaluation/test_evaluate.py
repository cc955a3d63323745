"""Evaluation of folders: exact scores, matching of files, and every way in which files can be wrong."""

import csv
import math
import pickle
from functools import partial

import numpy as np
import pytest
from evaluation_boxes import AFFINE, box, save
from PIL import Image

from medseg.dataset import CaseFiles, Channel, Dataset, LabelClass, Labels, Modality
from medseg.errors import DatasetError, UsageError
from medseg.evaluation.pairing import find_references, pair
from medseg.evaluation.records import Evaluation, Presence
from medseg.evaluation.scoring import Job, evaluate, score_pair

LABELS = Labels(classes=(LabelClass(name="box", values=(1,)),))


def test_scores_summaries_and_files(folders, tmp_path):
    predictions, references = folders
    out = tmp_path / "deep" / "report"
    found = evaluate(predictions, references, LABELS, out, workers=1, title="Boxes")
    assert found.ids == ("good", "half", "missed")
    assert [c.scores["box"]["dice"] for c in found.cases] == [1.0, 0.5, 0.0]
    assert found.cases[1].reference == {"box": 64}
    dice = found.classes["box"]["dice"]
    assert (dice.n, dice.mean, dice.median, dice.minimum, dice.maximum) == (3, 0.5, 0.5, 0.0, 1.0)
    assert dice.low is not None
    assert dice.high is not None
    assert 0 <= dice.low < 0.5 < dice.high <= 1
    assert found.overall["dice"] == dice
    assert found.classes["box"]["precision"].n == 2  # undefined where nothing is predicted
    assert found.presence == {"box": Presence(found=2, missed=1, false_alarm=0, absent=0)}
    assert (found.missing, found.extra) == ((), ())

    assert sorted(p.name for p in out.iterdir()) == ["cases.csv", "index.html", "summary.json"]
    assert Evaluation.open(out) == Evaluation.open(out / "summary.json") == found
    rows = list(csv.DictReader((out / "cases.csv").read_text(encoding="utf-8").splitlines()))
    assert [(r["case"], r["class"], r["dice"], r["precision"]) for r in rows] == [
        ("good", "box", "1", "1"),
        ("half", "box", "0.5", "0.5"),
        ("missed", "box", "0", ""),
    ]
    # The diagonal of 12 x 10 x 8 voxels of 1 x 2 x 3 mm.
    assert float(rows[2]["hd95"]) == pytest.approx(math.hypot(11, 18, 21), rel=1e-5)


def test_jobs_travel_to_other_processes(folders):
    predictions, references = folders
    pairs = pair(predictions, find_references(references)).pairs
    score = pickle.loads(pickle.dumps(partial(score_pair, Job(LABELS, ("dice",), None))))
    assert [score(pickle.loads(pickle.dumps(p))).case.scores["box"]["dice"] for p in pairs] == [1.0, 0.5, 0.0]


def test_missing_and_extra_are_listed(folders):
    predictions, references = folders
    (predictions / "half.nii.gz").unlink()
    save(predictions / "other.nii.gz", box(0, 2))
    (predictions / "predictions.json").write_text("{}")
    found = evaluate(predictions, references, LABELS, workers=1)
    assert (found.ids, found.missing, found.extra) == (("good", "missed"), ("half",), ("other",))
    some = evaluate(predictions, references, LABELS, workers=1, cases=["good"])
    assert (some.ids, some.missing, some.extra) == (("good",), (), ("missed", "other"))


def test_longer_reference_names(tmp_path):
    for side in "LR":
        save(tmp_path / "p" / f"Image_01{side}.nii", box(2, 6))
        save(tmp_path / "r" / f"Image_01{side}_1stHO.nii.gz", box(2, 6))
    save(tmp_path / "r" / "Image_010_1stHO.nii.gz", box(2, 6))
    found = evaluate(tmp_path / "p", tmp_path / "r", LABELS, workers=1)
    assert (found.ids, found.missing) == (("Image_01L", "Image_01R"), ("Image_010_1stHO",))


def test_classes_from_the_references(folders, tmp_path):
    predictions, references = folders
    assert evaluate(predictions, references, workers=1).labels.names == ("foreground",)
    save(references / "good.nii.gz", box(2, 6) + box(8, 9, 7))
    assert evaluate(predictions, references, workers=1).labels.names == ("value 1", "value 7")
    for path in references.iterdir():
        save(path, box(0, 0))
    with pytest.raises(DatasetError, match="every reference is empty"):
        evaluate(predictions, references, workers=1)


def test_dataset_as_reference(folders, tmp_path):
    predictions, references = folders
    cases = tuple(
        CaseFiles(id=name, images=(save(tmp_path / "i" / f"{name}.nii.gz", np.ones((12, 10, 8), np.float32)),), group=name,
                  label=references / f"{name}.nii.gz")
        for name in ("good", "half", "missed")
    )  # fmt: skip
    dataset = Dataset(
        name="Boxes",
        root=tmp_path,
        layout="folders",
        task="semantic",
        domain="grid",
        ndim=3,
        channels=(Channel(name="x", modality=Modality.mr),),
        labels=LABELS,
        cases=cases,
    )
    found = evaluate(predictions, dataset, out=tmp_path / "out", workers=1)
    assert (found.title, found.labels, found.overall["dice"].mean) == ("Boxes", LABELS, 0.5)
    assert "data:image/png;base64," in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_photographs(tmp_path):
    truth = np.zeros((40, 60), np.uint8)
    truth[10:30, 10:30] = 255
    for folder, array in (("p", np.roll(truth, 5, axis=1)), ("r", truth)):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "a.png")
    (tmp_path / "i").mkdir()
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "i" / "a.jpg")
    found = evaluate(tmp_path / "p", tmp_path / "r", out=tmp_path / "out", images=tmp_path / "i", workers=1)
    assert found.cases[0].scores["foreground"]["dice"] == 0.75
    assert found.cases[0].scores["foreground"]["hd95"] == 5.0
    assert found.overall["dice"].low is None  # one case


def test_all_problems_at_once_and_nothing_written(folders, tmp_path):
    predictions, references = folders
    save(predictions / "good.nii.gz", box(2, 6, shape=(12, 10, 9)))
    moved = AFFINE.copy()
    moved[0, 3] = 5
    save(predictions / "half.nii.gz", box(2, 6), moved)
    save(predictions / "missed.nii.gz", box(2, 6, 4))
    with pytest.raises(DatasetError) as caught:
        evaluate(predictions, references, LABELS, tmp_path / "out", workers=1)
    shape, grid, values = map(str, caught.value.problems)
    assert "different shapes; found 9 x 10 x 12, expected 8 x 10 x 12 as in" in shape
    assert "different grids; found 5 mm between far corners, expected at most 0.1 mm" in grid
    assert "values that belong to no class; found 4, expected values among 0, 1" in values
    assert all(name in text for name, text in zip(("good", "half", "missed"), (shape, grid, values), strict=True))
    assert not (tmp_path / "out").exists()


def test_a_hair_of_difference_is_allowed(folders):
    predictions, references = folders
    near = AFFINE.copy()
    near[0, 3] = 0.01
    save(predictions / "good.nii.gz", box(2, 6), near)
    assert evaluate(predictions, references, LABELS, workers=1).cases[0].scores["box"]["dice"] == 1.0


def test_unreadable_prediction(folders):
    predictions, references = folders
    whole = (predictions / "good.nii.gz").read_bytes()
    (predictions / "good.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"good\.nii\.gz"):
        evaluate(predictions, references, LABELS, workers=1)


def test_usage_errors(folders, tmp_path):
    predictions, references = folders
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="no such folder of predictions"):
        evaluate(tmp_path / "nothing", references, LABELS)
    (tmp_path / "coco.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"no class of the references has objects; found box\. Say which: --objects, or --run"):
        evaluate(tmp_path / "coco.json", references, LABELS)
    with pytest.raises(UsageError, match=r"no file of predicted objects; found \.gz, expected COCO's JSON, or a folder"):
        evaluate(predictions / "good.nii.gz", references, LABELS)
    with pytest.raises(UsageError, match=r"--confidence: has a meaning for COCO files of predicted objects only"):
        evaluate(predictions, references, LABELS, confidence=0.3)
    with pytest.raises(UsageError, match="no such folder of references"):
        evaluate(predictions, tmp_path / "nothing", LABELS)
    with pytest.raises(UsageError, match="no such folder of images"):
        evaluate(predictions, references, LABELS, images=tmp_path / "nothing")
    with pytest.raises(UsageError, match="no prediction matches"):
        evaluate(empty, references, LABELS)
    with pytest.raises(UsageError, match="unknown metric"):
        evaluate(predictions, references, LABELS, metrics=["dise"])
    with pytest.raises(UsageError, match="no metric"):
        evaluate(predictions, references, LABELS, metrics=[])
    save(predictions / "good.nii", box(2, 6))
    with pytest.raises(UsageError, match="two predictions for one case"):
        evaluate(predictions, references, LABELS)


def test_metrics_in_the_order_wanted(folders):
    predictions, references = folders
    found = evaluate(predictions, references, LABELS, workers=1, metrics=["nsd@1", "dice"])
    assert found.metrics == ("nsd@1", "dice")
    assert list(found.classes["box"]) == ["nsd@1", "dice"]


def test_unit_of_distances(folders, tmp_path):
    assert evaluate(*folders, LABELS, workers=1, metrics=["hd95"]).unit == "mm"
    for folder in ("p", "r"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / folder / "a.png")
    found = evaluate(tmp_path / "p", tmp_path / "r", out=tmp_path / "out", workers=1)
    assert found.unit == "px"
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "NSD at 2 px" in text
    assert "NSD at 2 mm" not in text
