"""From trained configurations to one model, on real volumes with networks that trained for seconds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import medseg.selection
from medseg import workflow
from medseg.errors import MedsegError, ModelError, UsageError
from medseg.evaluation.records import Evaluation
from medseg.evaluation.selection import Selection
from medseg.inference.predictor import Predictor
from medseg.interop.nnunet.folder import export_model
from medseg.io.images import read_label
from medseg.plans import Plan
from medseg.training.past import Past
from medseg.training.splits import Splits
from medseg.workspace import Provenance, RunFolder

ARGUMENTS = {
    "folds": "all",
    "epochs": 1,
    "edits": {"training.steps": "6", "training.batch_size": "2", "training.folds": "2"},
    "memory": 2.0,
}


class Talk:
    def __init__(self):
        self.lines = []

    def track(self, items, total, what):
        yield from items

    def update(self, *arguments, **named):
        pass

    def say(self, message):
        self.lines.append(message)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, cases: Callable[[Path, int], Path]) -> tuple[Path, workflow.RunResult, Talk]:
    """A folder with `data`, six cases, and `run`, all configurations with two folds each; what `run` returned and said."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("selection")
    talk = Talk()
    return folder, workflow.run(cases(folder / "data", 6), folder / "run", **ARGUMENTS, device="cpu", workers=1, progress=talk), talk


@pytest.fixture(scope="module")
def trained(ran) -> Path:
    return ran[0]


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> list[Path]:
    """Copies of the trained configurations, 2d and 3d, that a test may spoil."""
    names = {"2d": "flat", "3d": "deep"}
    return [shutil.copytree(trained / "run" / "configurations" / name, tmp_path / folder) for name, folder in names.items()]


def select(runs: list[Path], trained: Path, out: Path, talk: Talk | None = None):
    return workflow.select(runs, out, plans=trained / "run" / "workspace", device="cpu", workers=1, progress=talk or Talk())


def by_hand(runs: list[Path], image: Path, folds=None) -> np.ndarray:
    """The most probable class of the mean of the members' probabilities."""
    chances = [Predictor.load(run, "cpu", folds=folds, learned=False).predict_file(image, probabilities=True).probabilities for run in runs]
    return np.mean([np.asarray(c, np.float64) for c in chances], axis=0).argmax(0)


def test_the_chosen_models_are_one_model(trained, runs, tmp_path, monkeypatch):
    """Self-contained, and equal to what its members say together; its report is of cases that its networks did not see."""
    real = medseg.selection.choose

    def both(scores, seconds, metric, key):
        found = real(scores, seconds, metric, key)
        return found.model_copy(update={"chosen": next(c.members for c in found.candidates if len(c.members) == 2)})

    monkeypatch.setattr(medseg.selection, "choose", both)
    out = tmp_path / "model"
    result = select(runs, trained, out)
    first, second = result.selection.chosen
    assert {first, second} == {"2d", "3d"}
    by_name = {"2d": runs[0], "3d": runs[1]}
    model = RunFolder(out)
    assert (Plan.load(model.plan_file).name, [part.root.name for part in model.partners()]) == (first, [second])
    partner = Plan.load(by_name[second] / "plan.json").trained_digest()
    assert Provenance.load(model.provenance_file).partners == {second: partner}
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [
            "fold_0",
            "fold_1",
            "held_out",
            "learned.json",
            "partners",
            "plan.json",
            "provenance.json",
            "report",
            "selection.json",
            "splits.json",
        ]
    )
    for part in model.parts():  # of what began with another model, a selection tells it, too
        assert [Past.load(part.fold(fold) / "past.json").trainings[0].cases for fold in (0, 1)] == [
            split.train for split in Splits.load(model.splits_file).folds
        ]
    image = trained / "data" / "imagesTr" / "hippocampus_001.nii.gz"
    labels = by_hand(runs, image)
    assert labels.any()
    splits = Splits.load(model.splits_file).folds
    held_out = {case: by_hand(runs, image.parent / f"{case}.nii.gz", [fold]) for fold, split in enumerate(splits) for case in split.val}
    for run in runs:
        shutil.rmtree(run)
    raw = Predictor.load(out, "cpu", learned=False)
    assert np.array_equal(raw.predict_file(image).labels, labels)
    assert len(held_out) == 6
    for case, expected in held_out.items():
        written = read_label(model.held_out / f"{case}.nii.gz").array[0]
        finished = Predictor.load(out, "cpu", folds=[0]).task.finish(expected.astype(np.uint8), (1.0, 1.0, 1.0))
        assert np.array_equal(written, finished)
    assert Selection.load(model.selection_file) == result.selection
    report = Evaluation.open(model.report)
    assert (len(report.cases), report.selected) == (6, True)
    page = (model.report / "index.html").read_text(encoding="utf-8")
    assert f"Chosen: <b>{first} + {second}</b>" in page
    told = workflow.explain(out)[0]
    assert (told.field, told.value, told.reason) == ("selected", f"{first} + {second}", result.selection.reason)
    with pytest.raises(ModelError, match="is an ensemble of configurations, and nnU-Net runs one configuration at a time"):
        export_model(out, tmp_path / "exported")
    with pytest.raises(ModelError, match=r"holds a model that was selected of trained ones\. Choose another output folder"):
        workflow.train(
            trained / "run" / "workspace" / "3d.json", out, fold=0, epochs=1, edits=ARGUMENTS["edits"], resume=True, device="cpu"
        )


def test_candidates_are_scored_as_evaluate_scores_them(trained, runs, tmp_path):
    """The means in the table are those of the predictions of each model alone on what it did not train on."""
    result = select(runs, trained, tmp_path / "model")
    assert (result.selection.metric, result.selection.cases, len(result.selection.candidates)) == ("dice", 6, 3)
    for run, name in zip(runs, ("2d", "3d"), strict=True):
        for fold in (0, 1):
            held_out = Splits.load(run / "splits.json").folds[fold].val
            images = [trained / "data" / "imagesTr" / f"{case}.nii.gz" for case in held_out]
            Predictor.load(run, "cpu", folds=[fold]).predict(images, tmp_path / name)
        scores = workflow.evaluate(tmp_path / name, trained / "data", None, metrics=["dice"], workers=1)
        candidate = next(c for c in result.selection.candidates if c.members == (name,))
        assert candidate.mean == pytest.approx(np.nan_to_num(scores.values("dice"), nan=1.0).mean())
        assert candidate.seconds > 0
    best = max((c for c in result.selection.candidates if len(c.members) == 1), key=lambda c: c.mean)
    assert (best.difference, result.selection.chosen[0]) == (None, best.members[0])


def test_interrupted_anywhere_and_continued(trained, runs, tmp_path, monkeypatch):
    """Nothing that looks like a model before it is one, no case predicted twice, and the same outcome as without interruption."""
    whole, out = tmp_path / "whole", tmp_path / "model"
    select(runs, trained, whole)
    calls = []
    real = Predictor.alone

    def alone(self, case, *arguments, **options):
        calls.append((self.plan.name, case.id))
        if len(calls) == 8:  # the second member of the fourth case
            raise KeyboardInterrupt
        return real(self, case, *arguments, **options)

    monkeypatch.setattr(Predictor, "alone", alone)
    with pytest.raises(KeyboardInterrupt):
        select(runs, trained, out)
    assert not RunFolder(out).plan_file.exists()
    with pytest.raises(ModelError, match="is not a trained model"):
        Predictor.load(out)

    replace = os.replace

    def full(source, target):
        if Path(target) == out / "plan.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(KeyboardInterrupt):
        select(runs, trained, out)
    monkeypatch.setattr(os, "replace", replace)
    assert (len(calls), len(set(calls))) == (8 + 6, 12)  # the case in which it was interrupted, and the two after it
    assert RunFolder(out).selection_file.exists()
    with pytest.raises(ModelError, match="is not a trained model"):
        Predictor.load(out)
    select(runs, trained, out)
    assert len(calls) == 14
    talk = Talk()
    again = select(runs, trained, out, talk)
    assert talk.lines[0] == f"selected already: {' + '.join(again.selection.chosen)}"
    assert len(calls) == 14
    names = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == names
    for name in names:
        if name.name not in ("selection.json", "predictions.json", "index.html", "provenance.json"):  # these hold times
            assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_what_cannot_be_compared_is_refused_at_once(trained, runs, tmp_path):
    flat, deep = runs
    out = tmp_path / "model"
    for given, text in (
        ([flat], "there is nothing to select of"),
        ([flat, flat], "there is nothing to select of"),
    ):
        with pytest.raises(UsageError, match=text):
            select(given, trained, out)
    third = shutil.copytree(deep, tmp_path / "third")
    shutil.rmtree(deep / "fold_1")
    splits = Splits.load(third / "splits.json")
    splits.model_copy(update={"folds": splits.folds[::-1]}).save(third / "splits.json")
    bare = shutil.copytree(flat, tmp_path / "bare")
    (bare / "splits.json").unlink()
    with pytest.raises(MedsegError) as caught:
        select([flat, deep, third, bare, tmp_path / "nowhere"], trained, out)
    found = [(problem.where, problem.what) for problem in caught.value.problems]
    assert found == [
        (str(deep), "1 of 2 folds are not trained"),
        (str(bare), "does not say which cases its folds left out"),
        (str(tmp_path / "nowhere"), "is not a trained model"),
        (str(third), "the cases of the folds differ from the first model's"),
    ]
    assert not out.exists()


def test_other_labels_and_other_data_are_refused(trained, runs, tmp_path):
    deep = runs[1]
    data = json.loads((deep / "plan.json").read_text())
    data["data"]["labels"]["classes"][0]["name"] = "Head"
    (deep / "plan.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match=r"the classes differ from the first model's; found Head, Posterior, expected Anterior, Posterior"):
        select(runs, trained, tmp_path / "model")
    data["data"]["digest"] = "0" * 16
    (deep / "plan.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match=r"the dataset differs from the first model's; found 'Hippocampus', digest 0{16}"):
        select(runs, trained, tmp_path / "model")


def test_where_a_model_may_not_be_written_and_where_its_data_is(trained, runs, tmp_path):
    with pytest.raises(UsageError, match="the output would lie in one of the models"):
        select(runs, trained, runs[0] / "model")
    other = tmp_path / "other"
    shutil.copytree(runs[0], other)
    with pytest.raises(UsageError, match=r"other: holds a model already; found plan\.json, "):
        select(runs, trained, other)
    (tmp_path / "mine" / "partners").mkdir(parents=True)
    with pytest.raises(UsageError, match="mine: holds a model already; found partners"):
        select(runs, trained, tmp_path / "mine")
    with pytest.raises(UsageError, match=r"the dataset of these models is not known.*--plans"):
        workflow.select(runs, tmp_path / "model", device="cpu")
    select(runs, trained, tmp_path / "model")
    same = [shutil.copytree(run, tmp_path / f"{run.name}2") for run in runs]
    assert select(same, trained, tmp_path / "model")  # the same weights
    with pytest.raises(UsageError, match=r"holds a model that was selected of others\. Choose another folder"):
        select([*runs, *same], trained, tmp_path / "model")


def test_models_of_one_configuration_are_called_after_their_folders(trained, runs, tmp_path):
    """And of equal models there is no better ensemble."""
    same = shutil.copytree(runs[1], tmp_path / "same")
    result = select([runs[1], same], trained, tmp_path / "model")
    assert {c.members for c in result.selection.candidates} == {("deep",), ("same",), result.selection.candidates[-1].members}
    assert len(result.selection.chosen) == 1
    assert result.selection.reason.endswith("No ensemble is better.")
    assert not (tmp_path / "model" / "partners").exists()
    clash = shutil.copytree(runs[1], tmp_path / "there" / "deep")
    with pytest.raises(ModelError, match=r"several model folders have this name; found 'deep'"):
        select([runs[1], clash], trained, tmp_path / "another")


def test_run_cross_validates_every_configuration_and_selects(ran, tmp_path):
    """One call; the same call again finds everything done."""
    root, first, talk = ran
    assert "2 configurations (2d, 3d): 4 trainings of 1 epoch" in talk.lines
    folder = RunFolder(root / "run")
    assert first.selection is not None
    assert first.plan == first.selection.chosen[0] == Plan.load(folder.plan_file).name
    assert sorted(path.name for path in folder.configurations.iterdir()) == ["2d", "3d"]
    assert len(first.evaluation.cases) == 6
    weights = {path: path.stat().st_mtime_ns for path in folder.root.rglob("*.safetensors")}
    held_out = {path: path.stat().st_mtime_ns for path in folder.held_out.glob("*.nii.gz")}
    talk = Talk()
    second = workflow.run(root / "data", root / "run", **ARGUMENTS, device="cpu", workers=1, progress=talk)
    assert (second.selection, second.evaluation) == (first.selection, first.evaluation)
    assert f"going on with the plans in {folder.configurations}" in talk.lines
    assert "2 configurations (2d, 3d): 4 trainings of 1 epoch; 4 of them are done" in talk.lines
    assert {path: path.stat().st_mtime_ns for path in folder.root.rglob("*.safetensors")} == weights
    assert {path: path.stat().st_mtime_ns for path in folder.held_out.glob("*.nii.gz")} == held_out
    # What was trained can be selected of by hand, and comes to the same.
    again = workflow.select(sorted(folder.configurations.iterdir()), tmp_path / "again", device="cpu", workers=1)
    assert again.selection.chosen == first.selection.chosen
    assert again.evaluation.overall == first.evaluation.overall


def test_rules_set_by_hand_survive_the_report_and_the_same_command_goes_on(trained, tmp_path):
    edits = {"training.steps": "3", "training.batch_size": "2", "training.folds": "2", "target.cleaning": '[{"cls": "", "largest": true}]'}
    arguments = ARGUMENTS | {"edits": edits, "configuration": "2d", "device": "cpu", "workers": 1}
    first, second = Talk(), Talk()
    workflow.run(trained / "data", tmp_path / "run", **arguments, progress=first)
    plan = Plan.load(tmp_path / "run" / "plan.json")
    assert [(rule.cls, rule.largest) for rule in plan.target.cleaning] == [("", True)]
    assert plan.reasons["target.cleaning"].startswith("set by hand (--set target.cleaning=")
    assert "cleaning: set by hand, so nothing is learned" in first.lines
    workflow.run(trained / "data", tmp_path / "run", **arguments, progress=second)
    assert Plan.load(tmp_path / "run" / "plan.json") == plan
    other = arguments | {"edits": edits | {"target.cleaning": "[]"}}
    with pytest.raises(ModelError, match="has begun with another plan"):
        workflow.run(trained / "data", tmp_path / "run", **other, progress=second)
