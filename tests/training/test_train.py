from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_training import Talk, Tiny, fit_and_record

from medseg.claim import Claim
from medseg.errors import DatasetError, ModelError, UsageError
from medseg.models.weights import load_weights
from medseg.plans import Plan
from medseg.tasks.base import find_task
from medseg.training import signals
from medseg.training.budget import Budget, Clock
from medseg.training.module import Learner, seed_device
from medseg.training.preflight import check_kind, write_provenance
from medseg.training.ranks import run_ranks
from medseg.training.train import Job, TrainingResult
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
    assert Provenance.load(folder / "provenance.json").plan_digest == tiny.plan.trained_digest()
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "fold_0/metrics.csv",
        "fold_0/network_0.safetensors",
        "fold_0/past.json",
        "fold_0/state/finished.json",
        "plan.json",
        "provenance.json",
    ]
    network = find_task(tiny.plan.task)(tiny.plan).network()
    load_weights(network, folder / "fold_0" / "network_0.safetensors", tiny.plan.trained_digest())
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
    assert not (tiny.root / "killed" / "fold_0" / "network_0.safetensors").exists()
    assert (tiny.root / "killed" / "fold_0" / "state" / "checkpoint.safetensors").is_file()
    result = tiny.run("killed", epochs=5, resume=True)
    assert result.finished
    assert result.epochs == 5
    assert tiny.weights("killed") == tiny.weights("reference")
    assert rows(tiny, "killed") == rows(tiny, "reference")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Six epochs of three steps for at most three networks of six steps."""
    tiny = Tiny(tmp_path_factory.mktemp("several"), SEVERAL)
    tiny.run("reference", epochs=6)
    return tiny


SEVERAL = (("training.network_steps", "6"), ("training.networks", "3"))


def test_a_long_training_trains_networks_one_after_another(several):
    result = TrainingResult.load(several.root / "reference" / "fold_0" / "state" / "finished.json")
    assert (result.networks, result.epochs, result.steps) == (3, 6, 18)
    files = RunFolder(several.root / "reference").weights()
    assert [file.name for file in files] == ["network_0.safetensors", "network_1.safetensors", "network_2.safetensors"]
    assert len({file.read_bytes() for file in files}) == 3
    table = rows(several, "reference")
    assert [row["network"] for row in table] == ["1", "1", "2", "2", "3", "3"]
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4", "5", "6"]
    assert [float(row["progress"]) for row in table] == [0.5, 1, 0.5, 1, 0.5, 1]
    assert [float(row["learning_rate"]) < 0.1 * several.plan.training.learning_rate for row in table] == [False, True] * 3
    ends = [float(row["val/dice"]) for row in table if float(row["progress"]) == 1]
    assert result.score == pytest.approx(sum(ends) / 3, abs=1e-5)


def test_a_renewed_network_keeps_nothing_of_the_one_before(several):
    plan = several.plan
    learner = Learner(plan, 0, Clock(Budget(epochs=6), plan.training, 3), torch.device("cpu"))
    optimizer = learner.configure_optimizers()
    learner.trainer = SimpleNamespace(optimizers=[optimizer])
    first = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    for parameter in learner.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    learner.renew(0)
    assert all(torch.equal(tensor, first[name]) for name, tensor in learner.network.state_dict().items())
    assert all(torch.equal(tensor, first[name]) for name, tensor in learner.average.state_dict().items())
    assert not optimizer.state
    learner.renew(1)
    drawn = [name for name, tensor in first.items() if tensor.ndim > 2]
    assert drawn
    assert not any(torch.equal(learner.network.state_dict()[name], first[name]) for name in drawn)
    assert not any(torch.equal(learner.average.state_dict()[name], first[name]) for name in drawn)


def test_one_network_where_patience_decides(several):
    result = several.run("patient", epochs=6, patience=6)
    assert (result.networks, result.patience) == (1, 6)
    assert len(RunFolder(several.root / "patient").weights()) == 1


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ("medseg.training.history.History.save", 3),  # the second network's first epoch
        ("medseg.training.train.Job.deliver", 1),
        ("medseg.training.module.Learner.renew", 1),
        ("medseg.training.module.Learner.renew", 2),
        ("medseg.training.supervisor.Supervisor._save", 4),
        ("medseg.training.train.Job.deliver", 3),
        ("medseg.training.train.Job.finish", 1),
    ],
)
def test_killed_anywhere_and_resumed_it_ends_with_the_same_weights(several, method, count):
    name = f"killed {method.rpartition('.')[2]} {count}"
    process = start(several, name=name, epochs=6, edits=dict(SEVERAL), die=(method, count))
    process.communicate()
    assert process.returncode == 9
    assert not (several.root / name / "fold_0" / "state" / "finished.json").exists()
    assert several.run(name, epochs=6, resume=True).networks == 3
    for number in range(3):
        assert several.weights(name, number=number) == several.weights("reference", number=number)
    assert rows(several, name) == rows(several, "reference")


def test_a_fold_is_no_model_before_it_is_finished(several):
    process = start(several, name="part", epochs=6, edits=dict(SEVERAL), die=("medseg.training.train.Job.deliver", 2))
    process.communicate()
    with pytest.raises(ModelError, match="is not a trained model"):
        RunFolder(several.root / "part").weights()


def test_another_length_divides_what_is_left_anew(several):
    process = start(several, name="longer", epochs=6, edits=dict(SEVERAL), die=("medseg.training.history.History.save", 3))
    process.communicate()
    result = several.run("longer", epochs=12, resume=True)
    assert (result.networks, result.steps) == (3, 36)
    assert several.weights("longer") == several.weights("reference")  # was trained
    assert several.weights("longer", number=1) != several.weights("reference", number=1)
    assert [row["network"] for row in rows(several, "longer")] == ["1"] * 2 + ["2"] * 5 + ["3"] * 5


@pytest.mark.parametrize(("begun", "resumed"), [(None, 5), (5, None), (5, 6)])
def test_resuming_with_another_patience_is_refused(several, begun, resumed):
    name = f"patience {begun} {resumed}"
    process = start(
        several, name=name, epochs=6, patience=begun, edits=dict(SEVERAL), die=("medseg.training.supervisor.Supervisor._save", 1)
    )
    process.communicate()
    with pytest.raises(UsageError) as caught:
        several.run(name, epochs=6, patience=resumed, resume=True)
    assert str(caught.value) == (
        f"--patience: this training was begun with another patience; found {str(resumed).lower()}, expected {str(begun).lower()}. "
        "Resume it as it was begun, or choose another output folder."
    )


@pytest.fixture
def paced(monkeypatch):
    """Training takes time by the clock of this fixture only: so many seconds each step."""

    class Time:
        now, pace = 0.0, 0.05

        def monotonic(self):
            return self.now

    time = Time()
    real = Learner.training_step

    def training_step(self, batch, batch_idx):
        time.now += time.pace
        return real(self, batch, batch_idx)

    monkeypatch.setattr("medseg.training.budget.time", time)
    monkeypatch.setattr("medseg.training.validation.time", time)
    monkeypatch.setattr(Learner, "training_step", training_step)
    return time


def test_time_is_shared_among_networks(several, paced):
    result = several.run("timed", seconds=4.0, save_every=1000)
    assert (result.networks, result.finished) == (3, True)
    table = rows(several, "timed")
    counts = [sum(row["network"] == n for row in table) for n in "123"]
    assert sum(counts) <= 27  # epochs of 0.15 s in 4 s
    assert max(counts) - min(counts) <= 1, counts
    ends = [float(a["progress"]) for a, b in zip(table, [*table[1:], {"network": ""}], strict=True) if a["network"] != b["network"]]
    assert all(end > 0.95 for end in ends), ends  # one step of 27 may not fit in


def test_a_stub_of_a_network_is_not_delivered(several, paced, monkeypatch):
    """The machine comes to a crawl after the second network has begun."""
    real = Learner.renew

    def renew(self, number):
        paced.pace = 1.0
        return real(self, number)

    monkeypatch.setattr(Learner, "renew", renew)
    result = several.run("crawling", seconds=2.4, save_every=1000)
    assert result.networks == 1
    assert len(RunFolder(several.root / "crawling").weights()) == 1
    assert {row["network"] for row in rows(several, "crawling")} == {"1", "2"}
    first = [float(row["val/dice"]) for row in rows(several, "crawling") if row["network"] == "1" and row["val/dice"]]
    assert result.score == pytest.approx(first[-1], abs=1e-5)


def test_two_ranks_agree_where_networks_end_and_resume(tmp_path, monkeypatch):
    """Networks of 30 steps: a signal takes a while to reach the ranks, and must find them at work."""
    several = Tiny(tmp_path, (("training.network_steps", "30"), ("training.networks", "3")))
    monkeypatch.setattr("medseg.training.supervisor.TELL_EVERY", 0.0)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert several.run("two", epochs=30, devices=2).networks == 3
    part = several.run("two parts", epochs=30, devices=2, progress=Interrupting("SIGTERM", 12.5), save_every=1000)
    assert not part.finished
    assert several.run("two parts", epochs=30, devices=2, resume=True).networks == 3
    for number in range(3):
        assert several.weights("two parts", number=number) == several.weights("two", number=number)


def test_two_ranks_share_the_time_among_networks(several):
    result = several.run("two timed", seconds=4.0, devices=2)
    assert (result.finished, len(RunFolder(several.root / "two timed").weights())) == (True, result.networks)


def test_one_process_at_a_time_trains_a_fold(several):
    with Claim(several.root / "claimed" / "fold_0", "training"), pytest.raises(UsageError, match="another training is writing there"):
        several.run("claimed", epochs=1)


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
    assert not (tiny.root / name / "fold_0" / "network_0.safetensors").exists()
    assert tiny.run(name, epochs=5, resume=True).finished
    assert tiny.weights(name) == tiny.weights("reference")
    assert rows(tiny, name) == rows(tiny, "reference")


def test_time_is_kept_with_validation_and_the_schedule_ends_at_zero(tmp_path, paced):
    tiny = Tiny(tmp_path)
    _ = tiny.store
    talk = Talk()
    result = tiny.run(seconds=3.0, progress=talk)
    assert 2.8 < result.seconds <= 3.0
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
    load_weights(find_task(tiny.plan.task)(tiny.plan).network(), *RunFolder(tiny.root / "patient").weights(), tiny.plan.trained_digest())


def test_any_score_beats_an_undefined_one(tiny, monkeypatch):
    from medseg.training import supervisor

    scores = iter([float("nan"), float("nan"), 0.1, float("nan"), 0.05])
    real = supervisor.Validator.run

    def validate(self, network, limit):
        found = real(self, network, limit)
        return supervisor.Validated(found.scores, next(scores), found.cases, found.seconds)

    monkeypatch.setattr(supervisor.Validator, "run", validate)
    result = tiny.run("undefined", epochs=5, patience=2)
    assert (result.stopped, result.epochs, result.score) == (True, 5, 0.1)


def test_a_plan_for_another_kind_of_device_is_mentioned(tmp_path):
    tiny = Tiny(tmp_path, (("memory.device", "cuda"), ("memory.budget", "15")))
    assert check_kind(tiny.plan, torch.device("cuda", 1)) == ""
    talk = Talk()
    tiny.run(epochs=1, progress=talk)
    (line,) = talk.lines
    assert line.startswith("warning: this plan was made for cuda with 15 GiB and trains on cpu")


def test_an_untracked_fold_leaves_the_run_of_the_others_in_place(tiny, tmp_path):
    run = RunFolder(tmp_path)
    for given, kept in (("abc", "abc"), ("", "abc"), ("def", "def")):
        write_provenance(run, tiny.plan, torch.device("cpu"), "", given)
        assert Provenance.load(run.provenance_file).mlflow_run == kept


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A SLURM job whose `scontrol` writes down what it is asked; the result sets the state of the job."""
    log = tmp_path / "log"
    log.touch()

    def make(state="RUNNING"):
        program = tmp_path / "bin" / "scontrol"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "$@" >> {log}\necho "JobId=12 JobState={state} Reason=None"\n')
        program.chmod(0o755)
        return log

    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return make


@pytest.mark.skipif(sys.platform == "win32", reason="no SLURM")
def test_a_job_is_requeued_unless_it_was_cancelled(slurm, monkeypatch):
    log = slurm()
    assert signals.requeue()
    assert log.read_text().splitlines() == ["show job --oneliner 12", "requeue 12"]
    slurm("CANCELLED")
    assert not signals.requeue()
    assert len(log.read_text().splitlines()) == 3
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not signals.requeue()


@pytest.mark.skipif(sys.platform == "win32", reason="no SLURM")
@pytest.mark.parametrize(("name", "asked"), [("SIGTERM", True), ("SIGUSR1", True), ("SIGINT", False)])
def test_under_slurm_a_signal_requeues_and_the_job_goes_on_by_itself(tiny, slurm, monkeypatch, name, asked):
    monkeypatch.setattr("medseg.training.supervisor.TELL_EVERY", 0.0)
    log = slurm()
    folder = f"slurm {name}"
    talk = Interrupting(name, 2 / 3)
    assert tiny.run(folder, epochs=5, progress=talk, save_every=1000).interrupted == name
    assert ("requeue 12" in log.read_text()) == asked
    assert ("asked SLURM to run this job again" in talk.lines) == asked
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with pytest.raises(UsageError, match="--resume"):
        tiny.run(folder, epochs=5)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert tiny.run(folder, epochs=5).finished
    assert tiny.weights(folder) == tiny.weights("reference")


def test_training_on_every_case(tiny):
    result = tiny.run("all", fold=None, epochs=1)
    assert (result.score, result.cases, result.fold) == (None, 0, None)
    assert (tiny.root / "all" / "fold_none" / "network_0.safetensors").is_file()
    with pytest.raises(UsageError, match="training on every case leaves none"):
        tiny.run("all2", fold=None, epochs=1, patience=2)


def test_resuming_what_is_finished_returns_it(tiny):
    talk = Talk()
    before = tiny.weights("reference")
    result = tiny.run("reference", epochs=5, resume=True, progress=talk)
    assert result.finished
    assert result.epochs == 5
    (line,) = talk.lines
    assert "already trained" in line
    assert tiny.weights("reference") == before


def test_a_finished_training_says_that_another_length_is_ignored(tiny):
    before = tiny.weights("reference")
    talk = Talk()
    assert tiny.run("reference", epochs=7, resume=True, progress=talk).epochs == 5
    assert "it was trained for 5 epochs; 7 epochs is ignored. To train anew" in talk.lines[1]
    talk = Talk()
    tiny.run("reference", seconds=300, resume=True, progress=talk)
    assert "trained for 5 epochs; 5 minutes is ignored" in talk.lines[1]
    assert tiny.weights("reference") == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_resuming_with_another_length_says_so_and_takes_it(tiny, monkeypatch):
    monkeypatch.setattr("medseg.training.supervisor.TELL_EVERY", 0.0)
    assert not tiny.run("longer", epochs=5, progress=Interrupting("SIGTERM", 4 / 3), save_every=1000).finished
    with pytest.raises(UsageError, match="longer already; found 1 epoch, expected more than the 1 that"):
        tiny.run("longer", epochs=1, resume=True)
    talk = Talk()
    result = tiny.run("longer", epochs=3, resume=True, progress=talk)
    assert talk.lines == ["this training was begun for 5 epochs; from here on its length is 3 epochs in all"]
    assert (result.finished, result.epochs, result.budget_epochs, result.budget_seconds) == (True, 3, 3, None)
    assert float(rows(tiny, "longer")[-1]["progress"]) == 1


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
    assert not list(tmp_path.glob("run/fold_0/network_0.safetensors"))


def test_two_processes_train_one_model(tiny):
    threads = torch.get_num_threads()
    talk = Talk()
    result = tiny.run("two", epochs=2, devices=2, progress=talk)
    assert result.finished
    assert (result.epochs, result.steps, result.cases) == (2, 6, 2)
    assert len(rows(tiny, "two")) == 2
    assert talk.updates
    load_weights(find_task(tiny.plan.task)(tiny.plan).network(), *RunFolder(tiny.root / "two").weights(), tiny.plan.trained_digest())
    assert torch.get_num_threads() == threads


def test_ranks_end_with_the_same_weights(tiny):
    """They see different windows, so equal weights mean that gradients are averaged, and that the average follows alike."""
    folder = RunFolder(tiny.root / "ranks").fold(0)
    plan = tiny.plan.edited({"training.network_steps": "3", "training.networks": "2"})
    job = Job(plan, tiny.store.folder, tiny.splits[0], 0, folder, Budget(epochs=2), None, False, "cpu", 2, None, 1000.0)
    assert run_ranks(partial(fit_and_record, job), 2, Talk()).networks == 2
    first, second = ((folder / f"rank_{rank}.txt").read_text() for rank in range(2))
    assert first == second


def test_time_is_kept_by_two_processes(tiny):
    result = tiny.run("two timed", seconds=3.0, devices=2)
    assert result.finished
    assert result.score is not None
    assert float(rows(tiny, "two timed")[-1]["progress"]) > 0.9


@pytest.mark.skipif(sys.platform == "win32", reason="process groups of POSIX")
def test_ctrl_c_with_two_processes_saves_once_and_in_order(tiny):
    """A terminal sends it to parent and children."""
    command = [sys.executable, str(PROGRAM), str(tiny.root), json.dumps({"name": "two stopped", "epochs": 500, "devices": 2})]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for_rows(tiny, "two stopped", 1, process)
    os.killpg(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
    result = TrainingResult.parse(json.loads(out), "output")
    assert (result.finished, result.interrupted) == (False, "SIGINT")
    assert (tiny.root / "two stopped" / "fold_0" / "state" / "checkpoint.safetensors").is_file()


def test_a_batch_that_cannot_be_shared(tiny):
    with pytest.raises(UsageError, match=r"found 3 devices for 2 windows per step. .*training.batch_size=3"):
        tiny.run("three", epochs=2, devices=3)
    assert not (tiny.root / "three").exists()


def test_seeding_every_step_leaves_nothing_behind():
    torch.manual_seed(5)
    expected = torch.rand(3)
    queued = len(torch.cuda._queued_calls)
    seed_device(torch.device("cpu"), 5)
    assert torch.equal(torch.rand(3), expected)
    assert len(torch.cuda._queued_calls) == queued
