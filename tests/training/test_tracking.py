from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tiny_training import Talk, Tiny

from medseg.errors import ResourceError
from medseg.training import journal, mlflow_state
from medseg.training.journal import Courier, FoldRun
from medseg.training.tracking import RunIds, Tracker, explanation, flat
from medseg.workspace import Provenance, RunFolder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PROGRAM = Path(__file__).with_name("tiny_training.py")
SCRIPT = Path(__file__).resolve().parents[2] / "medseg" / "inference" / "pyfunc.py"


def closed_port():
    """The address of a server that does not run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


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
    tracker.log_model(RunFolder(tiny.root / "run"), SCRIPT)
    files = [tiny.root / "mlflow.db", *[f for f in (tiny.root / "mlartifacts").rglob("*") if f.is_file()]]
    assert len(files) > 6
    for file in files:
        assert b"case_0" not in file.read_bytes(), file


def test_registered_model_predicts_from_an_array_and_from_a_path(tracked, tmp_path):
    import mlflow
    import nibabel as nib
    import numpy as np

    tiny, tracker, _ = tracked
    uri = tracker.log_model(RunFolder(tiny.root / "run"), SCRIPT, name="tiny model")
    client = MlflowClient(tracker.uri)
    assert [m.name for m in client.search_registered_models("name='tiny model'")] == ["tiny model"]
    with mlflow_state.store_at(tracker.uri), mlflow_state.quiet():
        model = mlflow.pyfunc.load_model(uri)
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


def test_a_server_that_cannot_be_reached_is_given_up_within_seconds(tmp_path, monkeypatch):
    tiny = Tiny(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port())
    tracker = Tracker.open(tiny.workspace, tiny.plan, tiny.fingerprint)
    start = time.monotonic()
    with pytest.raises(ResourceError, match="MLflow cannot be used"):
        tiny.run(epochs=1, tracker=tracker)
    assert time.monotonic() - start < 15


def environment():
    """Without what MLflow's own threads keep there."""
    return {name: value for name, value in os.environ.items() if not name.startswith("_MLFLOW")}


class Dying:
    """A tracker whose server dies as soon as the training begins."""

    uri = ""

    def begin(self, plan, run, fold, split, budget, device, devices):
        return FoldRun(closed_port(), "a" * 32, "b" * 32, "fold_0", False)


def test_a_server_that_dies_costs_a_timed_training_nothing(tmp_path, capfd):
    tiny = Tiny(tmp_path)
    _ = tiny.store
    talk = Talk()
    before = environment()
    start = time.monotonic()
    result = tiny.run(seconds=3.0, tracker=Dying(), progress=talk)
    assert time.monotonic() - start < 25
    assert result.finished
    assert 2.4 < result.seconds < 3.3
    assert len(tiny.weights()) > 0
    assert any("what it misses is sent later" in line for line in talk.lines)
    assert any(f"the numbers of {result.epochs} epochs did not reach MLflow" in line for line in talk.lines)
    assert "could not be tracked" in talk.lines[-1]
    assert len(talk.lines) == 3
    assert environment() == before
    assert capfd.readouterr() == ("", "")


RUN = FoldRun("nonsense://nowhere", "a", "b", "fold_0", False)


def row(epoch):
    return {"epoch": epoch, "loss": 1 / epoch}


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_a_server_missed_is_sent_when_it_is_back(monkeypatch):
    monkeypatch.setattr(journal, "AGAIN", 0.0)
    sent, down = [], [True]

    def send(self, rows):
        if down[0]:
            raise ConnectionError("nobody home\nand more")
        sent.extend(r["epoch"] for r, _ in rows)

    monkeypatch.setattr(FoldRun, "send", send)
    with Courier(RUN) as courier:
        assert courier.log(row(1)) == ""
        wait_until(lambda: courier._failed is not None)
        assert courier.log(row(2)).endswith("cannot be reached; what it misses is sent later: nobody home")
        assert courier.log(row(3)) == ""  # said once
        down[0] = False
        courier.log(row(4))
        wait_until(lambda: len(sent) == 4)
        courier.log(row(5))
    assert sent == [1, 2, 3, 4, 5]
    assert courier.lost == ""


def test_a_failed_server_is_left_in_peace_for_a_while(monkeypatch):
    calls = []

    def send(self, rows):
        calls.append(len(rows))
        raise ConnectionError("no")

    monkeypatch.setattr(FoldRun, "send", send)
    with Courier(RUN) as courier:
        courier.log(row(1))
        wait_until(lambda: courier._failed is not None)
        for epoch in range(2, 6):
            courier.log(row(epoch))
        wait_until(lambda: courier._inbox.empty())
    assert calls == [1, 5]  # the second attempt at the end
    assert courier.lost == "the numbers of 5 epochs did not reach MLflow at nonsense://nowhere (no)"


def test_a_server_that_never_answers_does_not_hold_the_end_up(monkeypatch):
    monkeypatch.setattr(journal, "CLOSING", 0.2)
    released = threading.Event()
    monkeypatch.setattr(FoldRun, "send", lambda self, rows: released.wait(30))
    start = time.monotonic()
    with Courier(RUN) as courier:
        assert courier.log(row(1)) == courier.log(row(2)) == ""
    assert time.monotonic() - start < 2
    assert courier.lost.endswith("(no answer)")
    released.set()
    courier._thread.join()


def test_resuming_sends_what_did_not_arrive_before(monkeypatch):
    sent = []
    monkeypatch.setattr(FoldRun, "arrived", lambda self: {1, 3})
    monkeypatch.setattr(FoldRun, "send", lambda self, rows: sent.extend(r["epoch"] for r, _ in rows))
    with Courier(RUN) as courier:
        courier.restore([row(1), row(2), row(3)])
        courier.log(row(4))
    assert sent == [2, 4]


def test_two_folds_in_one_process_are_one_parent_in_the_workspace(tmp_path, monkeypatch, capfd):
    """As `medseg run --folds all` does it: the tracker is opened anew for every fold, and the model is logged after each."""
    import mlflow

    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    tiny = Tiny(tmp_path / "work")
    tiny.root.mkdir()
    uri = mlflow.tracking._tracking_service.utils._tracking_uri
    before = environment()
    for fold in (0, 1):
        tracker = Tracker.open(tiny.workspace, tiny.plan, tiny.fingerprint)
        assert tracker.uri == f"sqlite:///{(tiny.root / 'mlflow.db').as_posix()}"
        tiny.run(fold=fold, epochs=1, tracker=tracker)
        tracker.log_model(RunFolder(tiny.root / "run"), SCRIPT)
        assert environment() == before
        assert mlflow.tracking._tracking_service.utils._tracking_uri == uri
    assert list(here.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    client = MlflowClient(tracker.uri)
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"made up 3d", "fold_0", "fold_1"}
    assert {r.data.tags.get("mlflow.parentRunId") for r in runs.values()} == {None, runs["made up 3d"].info.run_id}
    (model,) = client.search_registered_models()
    assert [int(v.version) for v in client.search_model_versions(f"name='{model.name}'")] in ([1, 2], [2, 1])
    assert {m.experiment_id for m in client.search_logged_models([experiment.experiment_id])} == {experiment.experiment_id}


def test_an_active_run_and_experiment_of_the_caller_are_left_alone(tracked, tmp_path):
    import mlflow

    tiny, tracker, _ = tracked
    provenance = Provenance.load(tiny.root / "run" / "provenance.json")
    with mlflow_state.store_at(f"sqlite:///{(tmp_path / 'mine.db').as_posix()}"), mlflow_state.quiet():
        mlflow.set_experiment("mine")
        try:
            with mlflow.start_run() as mine:
                uri = tracker.log_model(RunFolder(tiny.root / "run"), SCRIPT)
                assert mlflow.active_run().info.run_id == mine.info.run_id
                assert mlflow.get_tracking_uri().endswith("mine.db")
        finally:
            mlflow.tracking.fluent._active_experiment_id = None
    assert MlflowClient(tracker.uri).get_logged_model(uri.removeprefix("models:/")).source_run_id == provenance.mlflow_run


def test_a_model_whose_run_is_unknown_gets_a_new_one(tracked, tmp_path):
    import shutil

    tiny, tracker, _ = tracked
    run = RunFolder(tmp_path / "copy")
    shutil.copytree(tiny.root / "run", run.root)
    Provenance.load(run.provenance_file).model_copy(update={"mlflow_run": "0" * 32}).save(run.provenance_file)
    uri = tracker.log_model(run, SCRIPT, name="moved model")
    parent = Provenance.load(run.provenance_file).mlflow_run
    client = MlflowClient(tracker.uri)
    assert parent != "0" * 32
    assert client.get_run(parent).info.status == "FINISHED"
    assert client.get_run(parent).data.tags["medseg.model_uri"] == uri
    assert tracker.log_model(run, SCRIPT, name="moved model") == uri  # once
    assert tracker.log_model(run, SCRIPT, name="other name") != uri


def test_a_model_that_cannot_be_logged_is_a_resource_error(tracked, tmp_path):
    tiny, tracker, _ = tracked
    start = time.monotonic()
    with pytest.raises(ResourceError, match="MLflow cannot be used"):
        replace(tracker, uri=closed_port()).log_model(RunFolder(tiny.root / "run"), SCRIPT)
    assert time.monotonic() - start < 15
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no')")
    run = RunFolder(tmp_path / "copy")
    import shutil

    shutil.copytree(tiny.root / "run", run.root)
    Provenance.load(run.provenance_file).model_copy(update={"mlflow_run": ""}).save(run.provenance_file)
    with pytest.raises(ResourceError, match="MLflow cannot be used"):
        tracker.log_model(run, broken)


def test_the_logged_model_says_what_it_takes_and_gives(tracked):
    import mlflow

    tiny, tracker, _ = tracked
    uri = tracker.log_model(RunFolder(tiny.root / "run"), SCRIPT)
    with mlflow_state.store_at(tracker.uri), mlflow_state.quiet():
        folder = Path(mlflow.artifacts.download_artifacts(uri))
        info = mlflow.models.get_model_info(uri)
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert f"medseg=={version('medseg')}" in requirements
    assert info.signature.inputs is None
    assert info.signature.outputs.to_dict() == [
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            "name": "labels",
            "required": True,
        }
    ]
    assert info.metadata["inputs"].startswith("a path; a list of paths")


def test_plan_as_parameters_and_explanation(tmp_path):
    tiny = Tiny(tmp_path)
    values = flat(tiny.plan)
    assert values["training.steps"] == "3"
    assert values["window"] == "[8, 8, 8]"
    assert not any(name.startswith("reasons") for name in values)
    text = explanation(tiny.plan)
    assert "| training.steps | 3 | set by hand (--set training.steps=3) |" in text


def test_processes_that_begin_at_once_make_the_database_once(tmp_path):
    """MLflow's own migrations would break a database that two of them make."""
    script = (
        "import sys; from medseg.training.tracking import Tracker; sys.stdin.readline(); "
        "print(len(Tracker(sys.argv[1], '', 'x', 'y')._client().search_experiments()))"
    )
    uri = f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        out, error = process.communicate(timeout=120)
        assert (process.returncode, out.strip()) == (0, "1"), error
