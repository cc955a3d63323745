"""A cascade on real volumes: the stage before is cross-validated, and what it predicts is an input of the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg import workflow
from medseg.case import Batch
from medseg.errors import ModelError, PlanError
from medseg.inference.predictor import Predictor
from medseg.io.images import read_case, read_label
from medseg.io.store import Store
from medseg.plans import Plan
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
    import shutil

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
