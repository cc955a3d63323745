"""The flow of `run`, with its steps replaced; the real ones run in `tests/e2e`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from medseg import workflow
from medseg.errors import ModelError, PlanError, UsageError
from medseg.evaluation.comparison import open_evaluation
from medseg.held_out import trained_on
from medseg.planning.planner import choose_plan
from medseg.preconditions import check_apart, check_continuation, check_workspace
from medseg.training.splits import Split, Splits
from medseg.workspace import RunFolder, Workspace


def result(finished=True, patience=None, interrupted=""):
    return SimpleNamespace(finished=finished, patience=patience, interrupted=interrupted, tracking="sqlite:///x")


@pytest.fixture
def steps(monkeypatch, plans, dataset, fingerprint):
    """`run(results, **options)`: what `run` returns, and the arguments of the trainings and of the report."""

    def run(results, **options):
        trained, reported, logged = [], [], []
        queue = iter(results)

        def train_fold(chosen, workspace, folder, fold, how):
            trained.append((chosen.name, fold, how))
            return next(queue)

        def report(folder, dataset, folds, selected, device, memory, workers, learn, progress):
            reported.append((folds, selected, learn))

        monkeypatch.setattr(workflow, "measured", lambda *arguments: (dataset, fingerprint))
        monkeypatch.setattr(workflow, "planned", lambda *arguments: plans)
        monkeypatch.setattr(workflow, "train_fold", train_fold)
        monkeypatch.setattr(workflow, "report", report)
        monkeypatch.setattr(workflow, "log_model", lambda *arguments: logged.append(len(trained)))
        monkeypatch.setattr(workflow.Workspace, "dataset", lambda workspace: dataset)
        done = workflow.run(Path("data"), Path("nowhere"), **options)
        assert logged == ([] if done.interrupted else [len(trained)])  # once, with all folds
        return done, trained, reported

    return run


def test_run_trains_every_fold_and_reports_on_those_that_leave_cases_out(steps, plans):
    done, trained, reported = steps([result()] * 3, folds=(1, None, 0), seconds=60, patience=4, workers=2)
    best = next(p.name for p in plans if p.recommended)
    assert [(name, fold) for name, fold, _ in trained] == [(best, 1), (best, None), (best, 0)]
    how = trained[0][2]
    assert (how.seconds, how.epochs, how.patience, how.resume, how.devices, how.workers) == (60, None, 4, True, 1, 2)
    assert reported == [([1, 0], False, False)]
    assert (done.plan, done.folds, done.tracking, done.interrupted) == (best, (1, None, 0), "sqlite:///x", "")


def test_run_ends_with_the_fold_that_is_interrupted(steps):
    done, trained, reported = steps([result(), result(finished=False, interrupted="SIGTERM")], folds="all")
    assert [fold for _, fold, _ in trained] == [0, 1]
    assert (reported, done.folds, done.interrupted, done.report) == ([], (0, 1, 2, 3, 4), "SIGTERM", None)


def test_one_fold_that_patience_ended_makes_the_report_optimistic(steps):
    assert steps([result(patience=3), result()], folds=(0, 1))[2] == [([0, 1], True, False)]


def test_cross_validation_lets_the_task_learn(steps):
    assert steps([result()] * 5, folds="all")[2] == [([0, 1, 2, 3, 4], False, True)]


def test_run_without_cases_left_out_has_no_report(steps):
    assert steps([result()], folds=(None,))[2] == []


def test_configurations_are_chosen_by_name(plans):
    assert choose_plan(plans, None).recommended
    assert choose_plan(plans, plans[-1].name) is plans[-1]
    with pytest.raises(PlanError) as caught:
        choose_plan(plans, "5d")
    assert str(caught.value) == f"--configuration: no such configuration; found '5d', expected {', '.join(p.name for p in plans)}."


def test_going_on_with_another_plan_or_other_data_is_refused(plans, dataset, fingerprint, tmp_path):
    chosen, folder = plans[0], RunFolder(tmp_path)
    check_continuation(folder, chosen, dataset, fingerprint, None, {})
    edited = chosen.edited({"training.seed": "9"})
    check_continuation(folder, edited, dataset, fingerprint, edited.name, {"training.seed": "9"})
    for configuration, edits, expected in (("5d", {}, "5d"), (None, {"training.seed": "9"}, f"{chosen.name}, training.seed=9")):
        with pytest.raises(ModelError) as caught:
            check_continuation(folder, chosen, dataset, fingerprint, configuration, edits)
        assert str(caught.value) == (
            f"{tmp_path}: has begun with another plan; found configuration '{chosen.name}' without the wanted changes, "
            f"expected {expected}. Choose another folder for -o."
        )
    other = chosen.model_copy(update={"data": chosen.data.model_copy(update={"digest": "0" * 16, "name": "Other"})})
    with pytest.raises(ModelError, match=r"is a run of other data; found dataset 'Other', digest 0{16}, expected 'Hippocampus', digest"):
        check_continuation(folder, other, dataset, fingerprint, None, {})


def test_a_workspace_serves_one_dataset_that_may_grow_shrink_or_be_renamed(dataset, tmp_path):
    """Two datasets in folders of one name have one name, so it alone tells nothing."""
    workspace = Workspace(tmp_path)
    present = dataset.model_copy(update={"cases": dataset.cases[4:8]})
    present.save(workspace.dataset_file)

    def check(cases, name=dataset.name):
        check_workspace(workspace, dataset.model_copy(update={"cases": cases, "name": name}))

    for cases in (dataset.cases[4:8], dataset.cases, dataset.cases[4:5], dataset.cases[7:9]):
        check(cases)
    check(dataset.cases[7:3:-1], name="Renamed")
    first, other = min(c.id for c in present.cases), dataset.cases[0].id
    for cases, name, example in ((dataset.cases[:4], dataset.name, other), (dataset.cases[:5], "Other", other)):
        with pytest.raises(UsageError) as caught:
            check(cases, name)
        assert str(caught.value) == (
            f"{tmp_path}: belongs to another dataset; found dataset 'Hippocampus' with 4 cases such as '{first}', "
            f"expected '{name}' with {len(cases)} cases such as '{example}'. Choose another folder for -o."
        )


def test_a_folder_without_an_evaluation(tmp_path):
    with pytest.raises(UsageError) as caught:
        open_evaluation(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds no evaluation; expected summary.json. Pass a folder that `medseg evaluate` or `medseg run` wrote."
    )


def test_cases_that_a_model_has_trained_on_are_counted(tmp_path):
    folder = RunFolder(tmp_path)
    assert trained_on(folder, ["a"]) == 0
    Splits(folds=(Split(train=("a", "b"), val=("c",)), Split(train=("b", "c"), val=("a",)))).save(folder.splits_file)
    (tmp_path / "plan.json").write_text("{}")

    def train(fold):
        folder.fold(fold).mkdir()
        (folder.fold(fold) / "network_0.safetensors").write_bytes(b"")

    train(0)
    assert [trained_on(folder, [case]) for case in "abcd"] == [1, 1, 0, 0]
    train(1)
    assert trained_on(folder, "abcd") == 3
    (folder.fold(0) / "network_0.safetensors").unlink()
    assert [trained_on(folder, [case]) for case in "abcd"] == [0, 1, 1, 0]
    train(None)
    assert trained_on(folder, "abcd") == 3


def test_nothing_is_written_among_what_is_read(dataset, tmp_path):
    for root in (dataset.root, dataset.root / "workspace", dataset.root / "imagesTr" / "run" / "workspace"):
        with pytest.raises(UsageError, match=r"the output would lie among the files of the dataset\. Choose another folder for -o\."):
            check_workspace(Workspace(root), dataset)
    check_apart(tmp_path / "out", tmp_path)
    with pytest.raises(UsageError, match="the output would lie among the inputs"):
        check_apart(tmp_path / "x" / "..", tmp_path)
