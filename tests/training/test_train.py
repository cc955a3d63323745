from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_training import Talk, Tiny

from medseg.errors import DatasetError, ModelError, UsageError
from medseg.plans import Plan
from medseg.tasks.base import find_task
from medseg.training.checkpoint import load_weights
from medseg.training.train import TrainingResult
from medseg.workspace import Provenance, RunFolder

PROGRAM = Path(__file__).with_name("tiny_training.py")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    tiny = Tiny(tmp_path_factory.mktemp("tiny"))
    tiny.run("reference", epochs=5)
    return tiny


def start(tiny, **arguments):
    return subprocess.Popen([sys.executable, str(PROGRAM), str(tiny.root), json.dumps(arguments)], stdout=subprocess.PIPE, text=True)


def wait_for_rows(tiny, name, rows, process):
    file = tiny.root / name / "fold_0" / "metrics.csv"
    end = time.monotonic() + 60
    while not file.is_file() or len(file.read_text().splitlines()) <= rows:
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < end
        time.sleep(0.01)


def rows(tiny, name):
    with (tiny.root / name / "fold_0" / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)]


def test_what_a_training_leaves(tiny):
    folder = tiny.root / "reference"
    assert Plan.load(folder / "plan.json") == tiny.plan
    assert Provenance.load(folder / "provenance.json").plan_digest == tiny.plan.content_digest()
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "fold_0/metrics.csv",
        "fold_0/state/finished.json",
        "fold_0/weights.safetensors",
        "plan.json",
        "provenance.json",
    ]
    network = find_task(tiny.plan.task)(tiny.plan).network()
    network.load_state_dict(load_weights(folder / "fold_0" / "weights.safetensors", tiny.plan.content_digest()))
    table = rows(tiny, "reference")
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4", "5"]
    assert [row["step"] for row in table] == ["3", "6", "9", "12", "15"]
    assert float(table[-1]["loss"]) < float(table[0]["loss"])
    assert {"val/dice", "val/dice/anterior", "val/dice/posterior", "loss/dice", "loss/cross_entropy"} <= set(table[0])
    result = TrainingResult.load(folder / "fold_0" / "state" / "finished.json")
    assert result.score == pytest.approx(float(table[-1]["val/dice"]), abs=1e-5)
    assert (result.epochs, result.steps, result.cases, result.metric) == (5, 15, 2, "dice")


def test_learns(tmp_path):
    tiny = Tiny(tmp_path, (("training.steps", "20"),))
    assert tiny.run(epochs=4).score > 0.8


def test_same_seed_same_weights_and_other_fold_other_weights(tiny):
    tiny.run("again", epochs=5)
    assert tiny.weights("again") == tiny.weights("reference")
    tiny.run("again", fold=1, epochs=5)
    assert tiny.weights("again", 1) != tiny.weights("reference")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_kill_and_resume_ends_with_the_weights_of_the_uninterrupted_training(tiny):
    process = start(tiny, name="killed", epochs=5)
    wait_for_rows(tiny, "killed", 2, process)
    process.kill()
    process.communicate()
    assert not (tiny.root / "killed" / "fold_0" / "weights.safetensors").exists()
    assert (tiny.root / "killed" / "fold_0" / "state" / "checkpoint.safetensors").is_file()
    result = tiny.run("killed", epochs=5, resume=True)
    assert result.finished
    assert result.epochs == 5
    assert tiny.weights("killed") == tiny.weights("reference")
    assert rows(tiny, "killed") == rows(tiny, "reference")


class Interrupting(Talk):
    """Sends a signal to this process at the second progress update."""

    def __init__(self, name, at):
        super().__init__()
        self.name, self.at = name, at

    def update(self, what, done, total, note="", seconds=False):
        super().update(what, done, total, note)
        if done >= self.at > 0:
            self.at = 0
            os.kill(os.getpid(), getattr(signal, self.name))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("name", "at"), [("SIGTERM", 2 / 3), ("SIGUSR1", 4 / 3), ("SIGINT", 2.0)])
def test_a_signal_saves_within_an_epoch_or_at_its_end_and_resuming_is_exact(tiny, monkeypatch, name, at):
    monkeypatch.setattr("medseg.training.supervisor.TELL_EVERY", 0.0)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.getsignal(getattr(signal, name))
    result = tiny.run(name, epochs=5, progress=Interrupting(name, at), save_every=1000)
    assert (result.finished, result.interrupted) == (False, name)
    assert signal.getsignal(getattr(signal, name)) == before
    assert result.steps in (round(at * 3), round(at * 3) + 1)
    assert not (tiny.root / name / "fold_0" / "weights.safetensors").exists()
    assert tiny.run(name, epochs=5, resume=True).finished
    assert tiny.weights(name) == tiny.weights("reference")
    assert rows(tiny, name) == rows(tiny, "reference")


def test_time_is_kept_with_validation_and_the_schedule_ends_at_zero(tmp_path):
    tiny = Tiny(tmp_path)
    _ = tiny.store
    talk = Talk()
    result = tiny.run(seconds=3.0, progress=talk)
    assert 2.4 < result.seconds < 3.3
    assert result.score is not None
    last = rows(tiny, "run")[-1]
    assert float(last["progress"]) > 0.97
    assert float(last["learning_rate"]) < 0.01 * tiny.plan.training.learning_rate
    assert last["val/dice"]
    assert talk.updates[-1][2] == 3.0


def test_a_time_shorter_than_an_epoch_still_gives_a_model(tmp_path):
    tiny = Tiny(tmp_path, (("training.steps", "100000"),))
    result = tiny.run(seconds=0.5)
    assert result.finished
    assert 0 < result.steps < 100000
    assert result.epochs == 1
    assert result.score is not None


def test_patience_stops_and_delivers_the_best(tiny, monkeypatch):
    from medseg.training import supervisor

    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    real = supervisor.Validator.run

    def validate(self, network, limit):
        found = real(self, network, limit)
        return supervisor.Validated(found.scores, next(scores), found.cases, found.seconds)

    monkeypatch.setattr(supervisor.Validator, "run", validate)
    result = tiny.run("patient", epochs=5, patience=2)
    assert (result.stopped, result.epochs, result.score) == (True, 4, 0.5)
    network = load_weights(tiny.root / "patient" / "fold_0" / "weights.safetensors", tiny.plan.content_digest())
    assert network.keys() == load_weights(tiny.root / "reference" / "fold_0" / "weights.safetensors", tiny.plan.content_digest()).keys()


def test_training_on_every_case(tiny):
    result = tiny.run("all", fold=None, epochs=1)
    assert (result.score, result.cases, result.fold) == (None, 0, None)
    assert (tiny.root / "all" / "fold_none" / "weights.safetensors").is_file()
    with pytest.raises(UsageError, match="training on every case leaves none"):
        tiny.run("all2", fold=None, epochs=1, patience=2)


def test_resuming_what_is_finished_returns_it(tiny):
    talk = Talk()
    before = tiny.weights("reference")
    result = tiny.run("reference", epochs=5, resume=True, progress=talk)
    assert result.finished
    assert result.epochs == 5
    assert "already trained" in talk.lines[0]
    assert tiny.weights("reference") == before


def test_what_exists_is_not_overwritten(tiny):
    before = tiny.weights("reference")
    with pytest.raises(UsageError, match=r"trained already, wholly or in part.*--resume"):
        tiny.run("reference", epochs=5)
    other = Tiny(tiny.root, (("training.seed", "7"),))
    with pytest.raises(ModelError, match="belongs to another plan"):
        other.run("reference", epochs=5, resume=True)
    assert tiny.weights("reference") == before


def test_a_checkpoint_of_another_plan(tiny):
    (tiny.root / "mixed").mkdir()
    process_folder = tiny.root / "mixed" / "fold_0" / "state"
    process_folder.mkdir(parents=True)
    from medseg.training.checkpoint import save_tree

    save_tree(process_folder / "checkpoint.safetensors", {}, "another")
    with pytest.raises(ModelError, match="checkpoint belongs to another plan; found plan digest another"):
        tiny.run("mixed", epochs=5, resume=True)


def test_unprepared_cases(tiny, tmp_path):
    from medseg.io.store import Store

    tiny2 = Tiny(tmp_path)
    tiny2.store = Store(tmp_path / "empty")
    with pytest.raises(DatasetError, match=r"6 cases are not prepared.*case_00.*medseg preprocess"):
        tiny2.run(epochs=1)


def test_divergence_is_an_error_and_leaves_no_model(tmp_path, monkeypatch):
    tiny = Tiny(tmp_path)
    task = find_task(tiny.plan.task)
    real = task.loss
    monkeypatch.setattr(task, "loss", lambda self, o, t: {k: v * float("nan") for k, v in real(self, o, t).items()})
    with pytest.raises(ModelError, match=r"epoch 0: training diverged.*learning_rate="):
        tiny.run(epochs=2)
    assert not list(tmp_path.glob("run/fold_0/weights.safetensors"))


def test_two_processes_train_one_model(tiny):
    threads = torch.get_num_threads()
    talk = Talk()
    result = tiny.run("two", epochs=2, devices=2, progress=talk)
    assert result.finished
    assert (result.epochs, result.steps, result.cases) == (2, 6, 2)
    assert len(rows(tiny, "two")) == 2
    assert talk.updates
    load_weights(RunFolder(tiny.root / "two").fold(0) / "weights.safetensors", tiny.plan.content_digest())
    assert torch.get_num_threads() == threads


def test_a_batch_that_cannot_be_shared(tiny):
    with pytest.raises(UsageError, match=r"found 3 devices for 2 windows per step. .*training.batch_size=3"):
        tiny.run("three", epochs=2, devices=3)
    assert not (tiny.root / "three").exists()
