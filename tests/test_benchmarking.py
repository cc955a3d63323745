"""`medseg benchmark`: measured on plans and models, in 2D and 3D and with an earlier stage; workspaces stay as they were."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from medseg import benchmarking, workflow
from medseg.benchmarking import Benchmark, benchmark
from medseg.dataset import Dataset
from medseg.errors import MedsegError, ModelError, PlanError, UsageError
from medseg.inference import pace
from medseg.models.unet import UNet, UNetFamily
from medseg.models.weights import save_weights
from medseg.plans import Plan
from medseg.progress import Silent
from medseg.tasks.base import find_task
from medseg.workspace import network_file

CASES = 10
EDITS = {
    "3d.window": "[16, 16, 16]",
    "3d.network.features": "[16, 16]",
    "3d.network.strides": "[[1, 1, 1], [2, 2, 2]]",
    "3d.network.kernels": "[[3, 3, 3], [3, 3, 3]]",
    "3d.network.encoder": "[0, 0]",
    "3d.network.decoder": "[1]",
    "2d.window": "[16, 16]",
    "2d.network.features": "[16, 16]",
    "2d.network.strides": "[[1, 1], [2, 2]]",
    "2d.network.kernels": "[[3, 3], [3, 3]]",
    "2d.network.encoder": "[0, 0]",
    "2d.network.decoder": "[1]",
    "training.batch_size": "2",
    "training.steps": "3",
}


class Heard(Silent):
    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


@pytest.fixture(scope="module")
def plans(tmp_path_factory, cases) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("benchmarked")
    workflow.plan(cases(root / "data", CASES), root / "plans", edits=EDITS, device="cpu", memory=4, workers=1)
    return root / "plans"


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(benchmarking, "CUTTING", 0.02)
    monkeypatch.setattr("medseg.training.probe.SIZES", {"cpu": 64})


def content(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def measured(target: Path, **more) -> Benchmark:
    return benchmark(target, **{"seconds": 1.0, "steps": 2, "device": "cpu", "workers": 1, **more})


@pytest.mark.parametrize("name", ["3d", "2d"])
def test_a_plan_whose_cases_are_not_prepared(plans, temporary, quick, name):
    before, heard = content(plans), Heard()
    found = measured(plans / f"{name}.json", progress=heard)
    assert (found.prepared, found.own, found.plan, found.kind) == (8, False, name, "cpu")
    assert any(
        line.startswith("the cases are not prepared for this plan: 8 of 10 are, for now, in a temporary folder") for line in heard.said
    )
    speed = found.training
    assert speed.steps == 2
    assert 0 < speed.fastest <= 1 / speed.steps_per_second <= speed.slowest
    assert speed.cores >= 0
    assert speed.others is None or 0 <= speed.others <= 1
    assert speed.windows_per_second == pytest.approx(2 * speed.steps_per_second)
    assert speed.epoch_seconds == pytest.approx(3 / speed.steps_per_second)
    assert speed.plan_seconds == pytest.approx(Plan.load(plans / f"{name}.json").training.epochs * speed.epoch_seconds)
    assert speed.rate == pytest.approx(speed.flops * speed.steps_per_second)
    assert speed.utilisation == pytest.approx(speed.rate / speed.peak_rate)
    assert speed.waiting == pytest.approx(speed.phases["data"] / sum(speed.phases.values()))
    assert found.prediction is not None
    assert found.prediction.case_windows > (1 if name == "3d" else 30)
    assert found.prediction.case_seconds > 0
    assert content(plans) == before
    assert list(temporary.glob("medseg*")) == []
    ids = [case.id for case in Dataset.load(plans / "dataset.json").cases]
    text = found.to_json()
    assert not any(one in text or one in " ".join(heard.said) for one in ids)
    assert str(plans) not in text


def test_prepared_cases_are_used_where_there_are_any(plans, temporary, quick, tmp_path_factory):
    root = tmp_path_factory.mktemp("own") / "plans"
    shutil.copytree(plans, root)
    store = workflow.preprocess(root / "2d.json", workers=1)
    before, heard = content(root), Heard()
    found = measured(root / "2d.json", progress=heard)
    assert (found.prepared, found.own) == (CASES, True)
    assert not any("prepared" in line for line in heard.said)
    size = sum(file.stat().st_size for file in store.folder.rglob("*") if file.is_file())
    assert found.prepared_gib == pytest.approx(size / 2**30)
    assert content(root) == before
    assert list(temporary.glob("medseg*")) == []


@pytest.fixture
def model(plans, tmp_path) -> Path:
    """A model folder of two folds."""
    plan = Plan.load(plans / "2d.json")
    plan.save(tmp_path / "run" / "plan.json")
    for fold in (0, 1):
        weights = find_task(plan.task)(plan).network().state_dict()
        save_weights(network_file(tmp_path / "run" / f"fold_{fold}", 0), weights, plan.trained_digest())
    return tmp_path / "run"


def test_a_model_folder_predicts_with_its_networks(plans, model, quick):
    before = content(model)
    found = measured(model, plans=plans)
    assert (found.plan, found.own) == ("2d", False)
    assert found.prediction is not None
    assert found.prediction.networks == 2
    assert content(model) == before


@pytest.fixture
def frozen(monkeypatch) -> list[tuple[type, str, torch.dtype | None]]:
    """Class, device and type of networks that are frozen."""
    seen = []
    monkeypatch.setattr(UNetFamily, "freeze", staticmethod(lambda network, device, dtype: seen.append((type(network), device.type, dtype))))
    return seen


def test_a_model_folder_that_is_not_trained_yet(plans, model, quick, frozen, monkeypatch):
    monkeypatch.setattr(benchmarking, "autocast_dtype", lambda _: torch.bfloat16)
    for file in model.rglob("network_*"):
        file.unlink()
    found = measured(model, plans=plans)
    assert found.prediction is not None
    assert found.prediction.networks == 1
    assert frozen == [(UNet, "cpu", torch.bfloat16)]


def test_prediction_of_an_edited_model_is_that_of_the_edited_plan(plans, model, quick, frozen, monkeypatch):
    seen, real = [], pace.prediction_pace
    monkeypatch.setattr(pace, "prediction_pace", lambda predictor, *more: seen.append(predictor.plan) or real(predictor, *more))
    found = measured(model, plans=plans, edits={"window": "[32, 16]"})
    assert found.prediction is not None
    assert (found.prediction.networks, found.window) == (1, (32, 16))
    assert [plan.window for plan in seen] == [(32, 16)]
    assert len(frozen) == 1


def test_a_model_folder_without_its_plans(model):
    with pytest.raises(UsageError, match="Pass the folder that `medseg plan` wrote for it with --plans"):
        measured(model)


def test_a_cascade_without_its_earlier_stage(plans, quick, temporary):
    """Annotations stand for what that would predict, and a network that has learned nothing predicts them."""
    base = Plan.load(plans / "2d.json")
    space = json.loads(base.space.to_json()) | {"prior": {}}
    text = json.loads(base.to_json()) | {"previous": "3d", "name": "2d_cascade", "space": space}
    text["reasons"] |= {"previous": "because", "space.prior": "because"}
    file = plans / "2d_cascade.json"
    file.write_text(json.dumps(text))
    try:
        found = measured(file)
    finally:
        file.unlink()
    assert (found.prepared, found.own) == (8, False)
    assert found.prediction is not None
    assert found.prediction.case_windows > 35  # those of the earlier stage, too


def test_edits_and_another_kind_of_device(plans, quick):
    heard = Heard()
    found = measured(plans / "2d.json", edits={"training.batch_size": "3", "memory.device": '"cuda"'}, progress=heard)
    assert found.batch_size == 3
    assert heard.said[0].startswith("warning: this plan was made for cuda")


def test_float32_beside_bfloat16(plans, quick, monkeypatch):
    monkeypatch.setattr(benchmarking, "autocast_dtype", lambda _: torch.bfloat16)
    monkeypatch.setitem(benchmarking.SHARES, "float32", 3.0)
    found = measured(plans / "2d.json")
    assert found.precision == "bfloat16"
    assert found.training.float32_steps_per_second is not None
    heard = Heard()
    found = measured(plans / "2d.json", seconds=1e-6, progress=heard)
    assert (found.precision, found.training.float32_steps_per_second) == ("bfloat16", None)
    assert heard.said[-1] == "steps are too slow for a comparison with float32 within --seconds"
    monkeypatch.setattr(benchmarking, "autocast_dtype", lambda _: None)
    found = measured(plans / "2d.json")
    assert (found.precision, found.training.float32_steps_per_second) == ("float32", None)


def test_a_case_that_takes_too_long_is_reckoned(plans, quick):
    found = measured(plans / "2d.json", seconds=1e-6)
    used = found.prediction
    assert used is not None
    assert not used.case_whole
    assert used.case_seconds == pytest.approx(used.case_windows / used.windows_per_second)


def test_a_dataset_is_no_folder_of_plans(tmp_path):
    (tmp_path / "dataset.json").write_text('{"name": "x", "labels": {"0": "background"}, "numTraining": 2}')
    (tmp_path / "notes.json").write_text("{}")
    for call in (measured, workflow.preprocess, lambda folder: workflow.train(folder, tmp_path / "run")):
        with pytest.raises(UsageError) as failed:
            call(tmp_path)
        assert str(failed.value) == (
            f"{tmp_path}: is a dataset, and holds no plan. Run `medseg plan {shlex.quote(str(tmp_path))} -o PLANS` first, and pass one of its "
            "plans, e.g. PLANS/3d.json."
        )
    with pytest.raises(PlanError, match=r"dataset.json: is not a plan; found the description of a dataset\. Pass"):
        measured(tmp_path / "dataset.json")
    with pytest.raises(PlanError, match=r"notes.json: is not a plan; found an empty object\. Pass"):
        measured(tmp_path / "notes.json")


def test_a_folder_in_place_of_a_plan(plans, model, tmp_path):
    for call in (workflow.preprocess, lambda folder: workflow.train(folder, tmp_path / "other")):
        with pytest.raises(UsageError, match=r"is a folder of plans; expected one of them: 2d.json, 3d.json\."):
            call(plans)
        with pytest.raises(UsageError, match=r"is a model folder; expected a plan file, e\.g\. PLANS/3d\.json\."):
            call(model)
        with pytest.raises(UsageError, match=r"is a folder without plans; expected a plan file"):
            call(plans / "cache")
        with pytest.raises(PlanError) as failed:
            call(plans / "fingerprint.json")
        assert len(failed.value.problems) == 1


@pytest.mark.parametrize(
    ("target", "more", "kind", "text"),
    [
        ("nowhere.json", {}, MedsegError, "nowhere.json: cannot be read"),
        ("", {}, UsageError, "is a folder of plans; expected one of them: 2d.json, 3d.json"),
        ("fingerprint.json", {}, PlanError, "fingerprint.json: is not a plan; found a fingerprint. Pass a plan from the folder"),
        ("dataset.json", {}, PlanError, "dataset.json: is not a plan; found the dataset as `medseg plan` read it."),
        ("cache", {}, ModelError, "is neither a plan nor a model folder; found a folder without plan.json. Pass a plan file"),
        ("2d.json", {"seconds": 0.0}, UsageError, "--seconds: nothing would be measured; found 0, expected more than 0"),
        ("2d.json", {"steps": 0}, UsageError, "--steps: nothing would be measured; found 0, expected more than 0"),
        ("2d.json", {"edits": {"training.batch_size": "0"}}, PlanError, "--set, field 'training.batch_size'"),
    ],
)
def test_what_cannot_be_measured(plans, target, more, kind, text):
    with pytest.raises(kind) as failed:
        measured(plans / target, **more)
    assert text in str(failed.value)
