"""A cascade on real volumes: the stage before is cross-validated, and what it predicts is an input of the next."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg import steps, workflow
from medseg.case import Batch
from medseg.claim import Claim
from medseg.errors import ModelError, PlanError
from medseg.inference.predictor import Predictor
from medseg.io.images import read_case, read_label
from medseg.io.store import Store
from medseg.plans import Plan
from medseg.selection import Entrant, _key
from medseg.tasks.base import find_task
from medseg.training.splits import Split, Splits
from medseg.workspace import RunFolder, Workspace

SMALL = {
    "window": "[16, 16, 16]",
    "network.features": "[16, 16]",
    "network.strides": "[[1, 1, 1], [2, 2, 2]]",
    "network.kernels": "[[3, 3, 3], [3, 3, 3]]",
    "network.encoder": "[0, 0]",
    "network.decoder": "[1]",
    "training.steps": "3",
    "training.batch_size": "2",
    "training.folds": "2",
}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory, cases: Callable[[Path, int], Path]) -> Path:
    """A workspace of six cases with `3d_low` and `3d_cascade`, which so small volumes do not ask for by themselves."""
    folder = tmp_path_factory.mktemp("cascade")
    workflow.plan(cases(folder / "data", 6), folder / "plans", workers=1)
    small = Plan.load(folder / "plans" / "3d.json").edited(SMALL)
    low = small.model_copy(update={"name": "3d_low"}).edited({"space.spacing": "[2, 2, 2]"})
    low.save(folder / "plans" / "3d_low.json")
    data = small.model_dump(mode="json") | {"name": "3d_cascade", "previous": "3d_low"}
    data["space"]["prior"] = {}
    Plan.parse(data, "test").save(folder / "plans" / "3d_cascade.json")
    return folder / "plans"


@pytest.fixture(scope="module")
def run(plans: Path) -> Path:
    out = plans.parent / "run"
    result = workflow.train(plans / "3d_cascade.json", out, fold=0, epochs=2, workers=1, device="cpu")
    assert result.finished
    return out


def test_the_stage_before_is_trained_with_all_folds_and_the_same_splits(run: Path) -> None:
    folder = RunFolder(run)
    assert folder.previous.splits_file.read_text() == folder.splits_file.read_text()
    assert {file.parent.name for file in folder.previous.weights()} == {"fold_0", "fold_1"}
    assert {file.parent.name for file in folder.weights()} == {"fold_0"}
    assert Plan.load(folder.previous.plan_file).name == "3d_low"


def test_cases_hold_the_prediction_of_the_fold_that_did_not_see_them(run: Path, plans: Path) -> None:
    folder, workspace = RunFolder(run), Workspace(plans)
    plan, dataset = Plan.load(folder.plan_file), workspace.dataset()
    store = Store(workspace.prepared(plan, folder.previous.digest()))
    assert set(store.ids()) == {case.id for case in dataset.cases}
    for number, split in enumerate(Splits.load(folder.splits_file).folds):
        stage = Predictor.load(folder.previous.root, "cpu", folds=[number])
        for case_id in split.val:
            files = dataset.case(case_id)
            expected = stage.predict_case(read_case(files, with_label=False)).labels
            np.testing.assert_array_equal(read_label(folder.previous.held_out / f"{case_id}.nii.gz").array[0], expected)
            prepared = store.read(case_id)
            assert prepared.prior is not None
            assert prepared.label is not None
            assert prepared.prior.shape == prepared.label.shape == prepared.shape
            assert set(np.unique(prepared.prior)) <= set(np.unique(expected))


def test_the_network_has_an_input_for_each_class_of_the_stage_before(run: Path) -> None:
    plan = Plan.load(run / "plan.json")
    task = find_task(plan.task)(plan)
    assert task.channels == len(plan.data.channels) + 2
    prior = torch.tensor([[[0, 1], [2, 1]]], dtype=torch.int16)
    inputs = task.inputs(Batch(torch.full((1, 1, 2, 2), 7.0), prior=prior))
    assert inputs[0].tolist() == [[[7, 7], [7, 7]], [[0, 1], [0, 1]], [[0, 0], [1, 0]]]
    with pytest.raises(ValueError, match="needs the prediction of '3d_low'"):
        task.inputs(Batch(torch.zeros(1, 1, 2, 2)))


def test_prediction_runs_both_stages(run: Path, plans: Path, tmp_path: Path) -> None:
    dataset = Workspace(plans).dataset()
    image = dataset.cases[0].images[0]
    predicted = workflow.predict(run, [image], tmp_path / "out", device="cpu")
    assert not predicted.failures
    both = Predictor.load(run, "cpu")
    case = read_case(dataset.cases[0], with_label=False)
    expected = both.predict_case(case).labels
    np.testing.assert_array_equal(read_label(tmp_path / "out" / predicted.cases[0].file).array[0], expected)
    assert both.previous is not None
    # What the stage before predicts is seen: another prediction of it gives another output of the network.
    seen = [_logits(both, case, prior) for prior in (np.zeros(case.grid.shape, np.uint8), np.ones(case.grid.shape, np.uint8))]
    assert not np.allclose(*seen)


def _logits(predictor: Predictor, case, prior) -> np.ndarray:  # type: ignore[no-untyped-def]
    from dataclasses import replace

    from medseg.case import PreparedCase

    prepared = predictor.domain.prepare(replace(case, prior=prior))
    staged = PreparedCase(case.id, prepared.image, None, (), case.grid, prepared.trail, prepared.prior)
    (dense,) = predictor._stitched(staged, False, None).values()
    return np.concatenate([np.asarray(values) for _, values in dense.slabs()], axis=1)


def test_a_further_fold_trains_no_stage_again(run: Path, plans: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in RunFolder(run).previous.weights()}
    result = workflow.train(plans / "3d_cascade.json", run, fold=1, epochs=1, workers=1, device="cpu")
    assert result.finished
    assert {file: file.stat().st_mtime_ns for file in RunFolder(run).previous.weights()} == before


def test_a_stage_of_other_folds_is_refused(plans: Path, run: Path, tmp_path: Path) -> None:
    splits = Splits.load(run / "splits.json").folds
    other = Splits(folds=tuple(Split(train=s.val, val=s.train) for s in splits))
    (tmp_path / "previous").mkdir()
    other.save(tmp_path / "previous" / "splits.json")
    with pytest.raises(ModelError, match="was cross-validated with other folds"):
        workflow.train(plans / "3d_cascade.json", tmp_path, fold=0, epochs=1, workers=1, device="cpu")


def test_preprocess_alone_says_that_the_stage_before_is_missing(plans: Path) -> None:
    with pytest.raises(PlanError, match="takes predictions of '3d_low' as a further input, and there are none yet"):
        workflow.preprocess(plans / "3d_cascade.json", workers=1)


def test_a_model_without_its_stage_before_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("previous", "held_out"))
    with pytest.raises(ModelError, match="is not a trained model"):
        Predictor.load(tmp_path / "run", "cpu")


@pytest.mark.parametrize(("previous", "prior"), [("3d_low", None), ("", {})])
def test_damage_belongs_to_cascades(plans: Path, previous: str, prior: dict[str, float] | None) -> None:
    data = Plan.load(plans / "3d.json").model_dump(mode="json")
    data["previous"] = previous
    data["space"]["prior"] = prior
    with pytest.raises(PlanError, match=r"space\.prior damages the prediction of an earlier configuration"):
        Plan.parse(data, "test")


class Talk:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def track(self, items, total, what):  # type: ignore[no-untyped-def]
        yield from items

    def update(self, *arguments: object, **named: object) -> None:
        pass

    def say(self, message: str) -> None:
        self.lines.append(message)


def copied(run: Path, target: Path, *without: str) -> RunFolder:
    return RunFolder(shutil.copytree(run, target, ignore=shutil.ignore_patterns(*without)))


def with_splits(plans: Path, target: Path, *folds: Split) -> Path:
    """The workspace with folds of the user's."""
    shutil.copytree(plans, target, ignore=shutil.ignore_patterns("prepared", "mlflow.db", "mlartifacts"))
    Splits(folds=folds, source="splits_final.json").save(target / "splits.json")
    for file in target.glob("3d*.json"):
        Plan.load(file).edited({"training.folds": str(len(folds))}).save(file)
    return target


def test_cases_in_no_fold_need_no_prior(plans: Path, tmp_path: Path) -> None:
    a, b, c, d, *_ = (case.id for case in Workspace(plans).dataset().cases)
    place = with_splits(plans, tmp_path / "plans", Split(train=(a, b), val=(c, d)), Split(train=(c, d), val=(a, b)))
    for fold in (0, None):
        assert workflow.train(place / "3d_cascade.json", tmp_path / "run", fold=fold, epochs=1, workers=1, device="cpu").finished
    folder, workspace = RunFolder(tmp_path / "run"), Workspace(place)
    store = Store(workspace.prepared(Plan.load(folder.plan_file), folder.previous.digest()))
    assert set(store.ids()) == {a, b, c, d}
    # The model of all cases takes what all folds of the stage before say.
    whole = Predictor.load(folder.root, "cpu", folds=[None])
    assert whole.previous is not None
    assert (len(whole.ensemble.networks), len(whole.previous.ensemble.networks)) == (1, 2)
    one = Predictor.load(folder.root, "cpu", folds=[0]).previous
    assert one is not None
    assert len(one.ensemble.networks) == 1


def test_a_single_fold_of_training_and_validation_is_refused_before_anything_trains(plans: Path, tmp_path: Path) -> None:
    a, b, c, d, *_ = (case.id for case in Workspace(plans).dataset().cases)
    place = with_splits(plans, tmp_path / "plans", Split(train=(a, b, c), val=(d,)))
    with pytest.raises(PlanError) as caught:
        workflow.train(place / "3d_cascade.json", tmp_path / "run", fold=0, epochs=1, workers=1, device="cpu")
    assert str(caught.value) == (
        "plan '3d_cascade': a cascade cannot be trained with these folds: 3 training cases are left out by none, so '3d_low' cannot predict "
        f"them unseen; found {a}, {b}, {c} in splits_final.json, expected folds that together leave out every case that they train on. "
        "Train another configuration, or use splits that cross-validate."
    )
    assert not (tmp_path / "run").exists()


def test_a_selection_knows_the_stage_before(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path / "run", "held_out")
    splits = Splits.load(folder.splits_file)

    def key() -> str:
        return _key([Entrant("3d_cascade", folder, Plan.load(folder.plan_file))], splits)

    before = key()
    assert key() == before
    first, second = folder.previous.weights()
    shutil.copyfile(second, first)
    assert key() != before


def test_mirroring_of_the_stage_before_is_part_of_what_a_prediction_is_known_by(run: Path, plans: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path / "run", "held_out")
    files = Workspace(plans).dataset().cases[0]

    def sources() -> set[str]:
        predictor = Predictor.load(folder.root, "cpu")
        return {predictor.source(files, False, False, mirror) for mirror in (True, False)}

    assert len(sources()) == 1  # planned on a CPU, nothing is mirrored
    plan = Plan.load(folder.previous.plan_file)
    predictor = Predictor.load(folder.root, "cpu")
    assert predictor.previous is not None
    predictor.previous.plan = plan.model_copy(update={"inference": plan.inference.model_copy(update={"mirror": (0,)})})
    assert predictor.source(files, False, False, True) != predictor.source(files, False, False, False)


def test_a_fold_of_the_stage_that_another_call_trains_is_waited_for(
    plans: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "PAUSE", 0.05)
    folder = copied(run, tmp_path / "run", "held_out", "fold_1", ".*.lock")
    last = folder.previous.fold(1)
    shutil.copytree(run / "previous" / "fold_1", tmp_path / "trained")
    other = Claim(last, "training")  # another call is at fold 1, and ends after a while
    talk = Talk()

    def end() -> None:
        shutil.copytree(tmp_path / "trained", last, dirs_exist_ok=True)
        other.release()

    timer = threading.Timer(0.5, end)
    timer.start()
    result = workflow.train(plans / "3d_cascade.json", folder.root, fold=1, epochs=1, workers=1, device="cpu", progress=talk)
    timer.join()
    assert result.finished
    assert talk.lines.count("waiting for another training of fold 1 of '3d_low'") == 1
    assert folder.previous.finished_file(1).read_bytes() == (run / "previous" / "fold_1" / "state" / "finished.json").read_bytes()


def test_calls_share_the_folds_of_the_stage_and_say_little(plans: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another is at fold 0, fold 1 is trained, without the patience that is the cascade's."""
    monkeypatch.setattr(steps, "PAUSE", 0.05)
    folder = RunFolder(tmp_path / "run")
    trained: list[tuple[int | None, int | None]] = []
    train_fold = steps.train_fold
    other = Claim(folder.previous.fold(0), "training")

    def watched(chosen, workspace, home, fold, how):  # type: ignore[no-untyped-def]
        trained.append((fold, how.patience))
        if fold == 1:
            other.release()  # which leaves it unfinished: so fold 0 is trained here, too
        return train_fold(chosen, workspace, home, fold, how)

    monkeypatch.setattr(steps, "train_fold", watched)
    talk = Talk()
    arguments = {"epochs": 1, "workers": 1, "device": "cpu", "patience": 2}
    workflow.train(plans / "3d_cascade.json", folder.root, fold=0, **arguments, progress=talk)  # type: ignore[arg-type]
    assert trained == [(1, None), (0, None)]
    assert len([line for line in talk.lines if "is trained first: 2 folds" in line]) == 1
    talk = Talk()
    workflow.train(plans / "3d_cascade.json", folder.root, fold=1, **arguments, progress=talk)  # type: ignore[arg-type]
    assert not [line for line in talk.lines if "already trained" in line or "trained first" in line]


def test_held_out_predictions_that_another_call_makes_are_waited_for(
    plans: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "PAUSE", 0.05)
    folder = copied(run, tmp_path / "run", "fold_1")
    shutil.copytree(run / "previous" / "fold_1", folder.previous.fold(1))
    other = Claim(folder.previous.held_out, "prediction")
    timer = threading.Timer(0.5, other.release)
    timer.start()
    talk = Talk()
    assert workflow.train(plans / "3d_cascade.json", folder.root, fold=1, epochs=1, workers=1, device="cpu", progress=talk).finished
    timer.join()
    assert talk.lines.count("waiting for another prediction of the cases left out") == 1


def test_from_planning_to_the_prediction_of_a_cascade(
    cases: Callable[[Path, int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planner proposes it by itself where a window sees little of a volume; here windows are small."""
    monkeypatch.setattr("medseg.domains.grid.rules.TYPICAL", 12**3)
    data = cases(tmp_path / "data", 4)
    edits = {name: SMALL[name] for name in ("training.steps", "training.batch_size", "training.folds")}
    ran = workflow.run(
        data, tmp_path / "run", folds=(0,), configuration="3d_cascade", edits=edits, epochs=1, memory=2.0, device="cpu", workers=1
    )
    assert ran.evaluation is not None
    assert {case.id for case in ran.evaluation.cases} == set(Splits.load(tmp_path / "run" / "splits.json").folds[0].val)
    folder, workspace = RunFolder(tmp_path / "run"), Workspace(tmp_path / "run" / "workspace")
    assert {"3d", "3d_low", "3d_cascade", "2d"} <= {file.stem for file in workspace.root.glob("*.json")}
    assert Plan.load(workspace.plan_file("3d_cascade")).previous == "3d_low"
    assert Plan.load(folder.previous.plan_file) == Plan.load(workspace.plan_file("3d_low"))
    files = workspace.dataset().cases[0]
    predicted = workflow.predict(folder.root, [files.images[0]], tmp_path / "out", device="cpu")
    assert not predicted.failures
    label = read_label(tmp_path / "out" / predicted.cases[0].file)
    assert label.grid.shape == read_case(files).grid.shape
