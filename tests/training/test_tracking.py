from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tiny_training import Tiny

from medseg.errors import ResourceError
from medseg.training.tracking import FoldRun, RunIds, Tracker, explanation, flat
from medseg.workspace import Provenance

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PROGRAM = Path(__file__).with_name("tiny_training.py")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A training that was killed, resumed, and finished, all of it tracked in the workspace."""
    tiny = Tiny(tmp_path_factory.mktemp("tiny"))
    _ = tiny.store, tiny.plan
    command = [sys.executable, str(PROGRAM), str(tiny.root), json.dumps({"epochs": 4, "track": True})]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    file = tiny.root / "run" / "fold_0" / "metrics.csv"
    end = time.monotonic() + 120
    while not file.is_file() or len(file.read_text().splitlines()) < 3:
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.communicate()
    first = RunIds.load(tiny.root / "run" / "fold_0" / "state" / "tracking.json")
    tracker = Tracker.open(tiny.workspace, tiny.plan, tiny.fingerprint)
    tiny.run(epochs=4, resume=True, tracker=tracker)
    tiny.run(fold=1, epochs=1, tracker=tracker)
    return tiny, tracker, first


def test_resuming_goes_on_in_the_same_run(tracked):
    tiny, tracker, first = tracked
    client = MlflowClient(tracker.uri)
    assert RunIds.load(tiny.root / "run" / "fold_0" / "state" / "tracking.json") == first
    child = client.get_run(first.child)
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == first.parent
    steps = [m.step for m in client.get_metric_history(first.child, "val/dice/anterior")]
    assert sorted(set(steps)) == [1, 2, 3, 4]
    assert child.data.params["epochs"] == "4"


def test_parent_is_dataset_and_configuration_and_children_are_folds(tracked):
    tiny, tracker, first = tracked
    client = MlflowClient(tracker.uri)
    experiment = client.get_experiment_by_name("made up")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"made up 3d", "fold_0", "fold_1"}
    parent = runs["made up 3d"]
    assert parent.info.run_id == first.parent == Provenance.load(tiny.root / "run" / "provenance.json").mlflow_run
    assert runs["fold_1"].data.tags["mlflow.parentRunId"] == first.parent
    assert parent.data.params["training.batch_size"] == "2"
    assert {"fold_0/dice", "fold_1/dice"} == set(parent.data.metrics)
    assert parent.inputs.dataset_inputs[0].dataset.digest == tiny.fingerprint.digest
    assert {a.path for a in client.list_artifacts(first.parent)} >= {"plan.json", "explanation.md"}
    assert {a.path for a in client.list_artifacts(first.child)} == {"metrics.csv", "plots", "overlays"}
    assert len(client.list_artifacts(first.child, "overlays")) == 2
    assert (tiny.root / "mlflow.db").is_file()
    assert (tiny.root / "mlartifacts").is_dir()


def test_no_case_id_reaches_mlflow(tracked):
    tiny, tracker, _ = tracked
    tracker.log_model(RunFolderOf(tiny), Path(__file__).resolve().parents[2] / "medseg" / "inference" / "pyfunc.py")
    files = [tiny.root / "mlflow.db", *[f for f in (tiny.root / "mlartifacts").rglob("*") if f.is_file()]]
    assert len(files) > 6
    for file in files:
        assert b"case_0" not in file.read_bytes(), file


def RunFolderOf(tiny):  # noqa: N802
    from medseg.workspace import RunFolder

    return RunFolder(tiny.root / "run")


def test_registered_model_predicts_from_an_array_and_from_a_path(tracked, tmp_path):
    import mlflow
    import nibabel as nib
    import numpy as np

    tiny, tracker, _ = tracked
    script = Path(__file__).resolve().parents[2] / "medseg" / "inference" / "pyfunc.py"
    uri = tracker.log_model(RunFolderOf(tiny), script, name="tiny model")
    client = MlflowClient(tracker.uri)
    assert [m.name for m in client.search_registered_models("name='tiny model'")] == ["tiny model"]
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracker.uri)
    try:
        model = mlflow.pyfunc.load_model(uri)
    finally:
        mlflow.set_tracking_uri(before)
    array = np.random.default_rng(0).normal(size=(1, 10, 12, 9)).astype(np.float32)
    (labels,) = model.predict({"image": [array]})
    assert labels.shape == (10, 12, 9)
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(array[0].transpose(2, 1, 0), np.eye(4)), path)
    (labels,) = model.predict({"image": [str(path)]})
    assert labels.size == 10 * 12 * 9


def test_tracking_uri_is_honoured(tmp_path, monkeypatch):
    tiny = Tiny(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    tracker = Tracker.open(tiny.workspace, tiny.plan, tiny.fingerprint)
    assert (tracker.uri, tracker.artifacts) == ("sqlite:///elsewhere.db", "")


def test_a_server_that_cannot_be_used(tmp_path, monkeypatch):
    tiny = Tiny(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    tracker = Tracker.open(tiny.workspace, tiny.plan, tiny.fingerprint)
    with pytest.raises(ResourceError, match="MLflow cannot be used"):
        tiny.run(epochs=1, tracker=tracker)


def test_a_server_that_fails_later_does_not_end_the_training(tmp_path):
    run = FoldRun("nonsense://nowhere", "a", "b", "fold_0", False)
    assert "nonsense" in run.log({"epoch": 1, "loss": 0.5}, 1)


def test_plan_as_parameters_and_explanation(tmp_path):
    tiny = Tiny(tmp_path)
    values = flat(tiny.plan)
    assert values["training.steps"] == "3"
    assert values["window"] == "[8, 8, 8]"
    assert not any(name.startswith("reasons") for name in values)
    text = explanation(tiny.plan)
    assert "| training.steps | 3 | set by hand (--set training.steps=3) |" in text
