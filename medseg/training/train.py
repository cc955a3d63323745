"""Train one fold."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medseg.claim import Claim
from medseg.device import choose_device
from medseg.errors import ModelError, UsageError
from medseg.io.store import Store
from medseg.models.weights import load_weights, save_weights
from medseg.parallel import default_workers
from medseg.peak import PeakMemory
from medseg.plans import Plan
from medseg.progress import Progress, Silent
from medseg.record import Record
from medseg.tasks.base import Task, find_objective
from medseg.training.budget import Budget, Clock, length
from medseg.training.data import TrainingData
from medseg.training.figures import draw_curves, draw_overlay
from medseg.training.history import History
from medseg.training.module import Learner
from medseg.training.preflight import adopt, check_devices, check_kind, check_patience, check_prepared, write_provenance
from medseg.training.ranks import run_ranks
from medseg.training.signals import StopRequest, requeue, requeued
from medseg.training.splits import Split, choose_split
from medseg.training.start import KEPT, Source, Start, adopt_start, check_start
from medseg.training.supervisor import Supervisor
from medseg.training.trainer import compiles, make_trainer, memory_kept, memory_told, quiet, synchroniser
from medseg.training.validation import Agenda, Validator, mean_scores
from medseg.workspace import RunFolder, network_file

if TYPE_CHECKING:
    from medseg.training.journal import Courier, FoldRun  # these import MLflow, which an untracked training does not need
    from medseg.training.tracking import Tracker

SAVE_EVERY = 20.0  # seconds between checkpoints at the ends of epochs, at least; within long epochs fifteen times as rarely
REQUEUE = ("SIGTERM", "SIGUSR1")  # signals by which SLURM says that a job's time is over, or that others need its place
OVERLAYS = 3  # cases shown in MLflow


class TrainingResult(Record):
    """What a training came to; also `state/finished.json` of a finished fold.

    Attributes:
        fold: the fold; None trained on every case.
        plan_digest: of the plan that was trained.
        epochs, steps, seconds: how long it took, all sessions together.
        metric: what `score` measures; empty where a training has no predictions.
        networks: how many were trained, one after another; a prediction averages them.
        score: mean over classes in the last validation (with patience, in the best one), each network by itself, mean over networks; None
            without validation cases.
        scores: those validations by class; None where undefined.
        cases: number of cases they were measured on.
        finished: False when a signal ended the session; `resume=True` goes on.
        interrupted: name of that signal, or empty.
        patience: what was asked for; with it the weights are those of the best validation.
        stopped: whether it ended the training.
        tracking: MLflow's tracking URI, or empty.
        memory: GiB at the peak of a training step, on the first device, measured in this session until its first validation;
            None where it cannot be measured (see `medseg.peak.PeakMemory`).
        budget_seconds, budget_epochs: the length that was asked for; one of them is None.
    """

    fold: int | None
    plan_digest: str
    epochs: int
    steps: int
    seconds: float
    networks: int
    metric: str
    score: float | None
    scores: dict[str, dict[str, float | None]]
    cases: int
    finished: bool
    interrupted: str = ""
    patience: int | None = None
    stopped: bool = False
    tracking: str = ""
    memory: float | None = None
    budget_seconds: float | None = None
    budget_epochs: int | None = None


@dataclass(frozen=True)
class Job:
    """One fold's training as plain data, the same for every rank."""

    plan: Plan
    prepared: Path
    split: Split
    fold: int | None
    folder: Path
    budget: Budget
    patience: int | None
    resume: bool
    device: str
    devices: int
    journal: FoldRun | None
    save_every: float
    start: Start | None = None
    workers: int | None = None

    @property
    def checkpoint(self) -> Path:
        """The state to resume from."""
        return self.folder / "state" / "checkpoint.safetensors"

    @property
    def finished(self) -> Path:
        """Exists when the training is over."""
        return self.folder / "state" / "finished.json"

    def weights(self, number: int) -> Path:
        """A trained network, counted from 0."""
        return network_file(self.folder, number)

    def deliver(self, number: int, weights: dict[str, Tensor]) -> None:
        """Keep a trained network until the whole training is finished."""
        save_weights(network_file(self.folder / "state", number), weights, self.plan.trained_digest())

    def finish(self, networks: int) -> None:
        """Make a model of the networks that were delivered. A call that was interrupted is made good by the next."""
        for number in range(networks):
            with contextlib.suppress(FileNotFoundError):
                os.replace(network_file(self.folder / "state", number), self.weights(number))
        for stale in (self.folder / "state").glob("network_*"):
            stale.unlink()  # of a session that was killed, and had more networks in mind


def train(
    plan: Plan,
    store: Store,
    splits: Sequence[Split],
    fold: int | None,
    run: RunFolder,
    budget: Budget,
    patience: int | None = None,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    tracker: Tracker | None = None,
    progress: Progress | None = None,
    licence: str = "",
    save_every: float = SAVE_EVERY,
    source: Source | None = None,
    workers: int | None = None,
) -> TrainingResult:
    """Train one fold into a model folder.

    SIGTERM, SIGUSR1 and Ctrl-C save the training and end it; the result names the signal. Under SLURM the first two also ask for the job
    to be run again (`scontrol requeue`), unless it was cancelled, and a job that is run again (`SLURM_RESTART_COUNT`) goes on where it
    was, with or without `resume`: `sbatch --requeue --signal=B:USR1@120` in front of the same command is all that a training longer
    than a job needs.

    A length that is enough for several networks (`plan.training.network_steps`) trains them one after another, each from new weights.

    A training that is resumed with another budget takes the new one as its whole length, from its first session on, and says so. A
    finished one stays as it is, and says so.

    Args:
        plan: the plan; it is written into the model folder.
        store: the prepared cases.
        splits: of the cross-validation.
        fold: whose validation cases are left out; None trains on every case.
        budget: seconds or epochs.
        patience: stop after this many validations in a row without a better score, and deliver the best; there is one network then.
        resume: go on with an interrupted training; a finished one is returned as it is, one that never began is begun.
        devices: processes, one device each, that share every batch.
        licence: of the data, for the provenance.
        save_every: seconds between checkpoints.
        source: the model with whose weights networks begin; None: anew, or as the model folder says. A training goes on without it.
        workers: processes that cut windows for a GPU; None: see `TrainingData`.

    Raises:
        UsageError: the fold exists already and `resume` is off, or there is no such fold, or the devices do not fit.
        ModelError: the model folder belongs to another plan, its networks began otherwise, or training diverged.
        DatasetError: cases are not prepared.
        ResourceError: memory, disk or devices do not suffice.
    """
    progress = progress or Silent()
    resume = resume or requeued()
    split = choose_split(splits, fold)
    chosen = choose_device(device)
    folder = run.fold(fold)
    job = Job(plan, store.folder, split, fold, folder, budget, patience, resume, device, devices, None, save_every, workers=workers)
    check_devices(chosen, devices, plan.training.batch_size)
    check_patience(patience, split)
    check_prepared(store, split)
    adopt(run, plan)
    check_start(run, source)
    with Claim(folder, "training"):
        for leftover in folder.rglob(".*.partial.*"):
            leftover.unlink()  # of a session that was killed while it wrote
        if job.finished.is_file() and resume:
            progress.say(f"fold {fold if fold is not None else 'none'} is already trained: {folder}")
            result = _finished_result(job, tracker)
            wanted = (budget.seconds, None if budget.seconds is not None else budget.epochs or plan.training.epochs)
            had = (result.budget_seconds, result.budget_epochs)
            if had not in ((None, None), wanted):
                progress.say(
                    f"warning: it was trained for {length(*had)}; {length(*wanted)} is ignored. To train anew, choose another output folder, or "
                    f"remove {folder}"
                )
            return result
        if not resume and (job.finished.is_file() or job.checkpoint.is_file() or job.weights(0).is_file()):
            raise UsageError.of(
                "this fold has been trained already, wholly or in part",
                where=str(folder),
                fix="Pass --resume to go on with it, or choose another output folder.",
            )
        if kind := check_kind(plan, chosen):
            progress.say(kind)
        start = adopt_start(run, plan, fold, split, source, progress)
        journal = tracker.begin(plan, run, fold, split, budget, chosen.type, devices) if tracker is not None else None
        write_provenance(run, plan, chosen, licence, journal.parent if journal is not None else "")
        job = replace(job, journal=journal, start=start)
        result = _launch(job, progress) if journal is None else _tracked(job, store, journal, chosen, progress)
        if result.interrupted in REQUEUE and requeue():
            progress.say("asked SLURM to run this job again")
        return result


def _launch(job: Job, progress: Progress) -> TrainingResult:
    return _fit(0, 0, progress, StopRequest(), job) if job.devices == 1 else run_ranks(partial(_fit_rank, job), job.devices, progress)


def _tracked(job: Job, store: Store, journal: FoldRun, device: torch.device, progress: Progress) -> TrainingResult:
    """Train, and tell MLflow how it ended. A server that fails after the training cannot take the model away."""
    from medseg.training.mlflow_state import FAILURES, first_line, prompt

    with prompt():
        try:
            with journal.watching():
                result = _launch(job, progress)
        except BaseException:
            with contextlib.suppress(*FAILURES):
                journal.end("FAILED")
            raise
        try:
            if result.finished:
                _publish(job, store, journal, result, device)
            journal.end("FINISHED" if result.finished else "KILLED")
        except FAILURES as error:
            progress.say(f"warning: the end of the training could not be tracked: {first_line(error)}")
    return result.model_copy(update={"tracking": journal.uri})


def _publish(job: Job, store: Store, journal: FoldRun, result: TrainingResult, device: torch.device) -> None:
    """Metrics, curves and overlays (by the first network) of a finished fold, for MLflow."""
    journal.finish(result.score, result.metric)
    metrics = job.folder / "metrics.csv"
    journal.artifact(metrics)
    with tempfile.TemporaryDirectory() as folder:
        curves = Path(folder) / "curves.png"
        draw_curves(History.read(metrics), result.metric, curves)
        journal.artifact(curves, "plots")
        objective = find_objective(job.plan.task)(job.plan)
        if not isinstance(objective, Task):
            return  # it predicts nothing to show
        network = objective.network()
        load_weights(network, job.weights(0), job.plan.trained_digest())
        network = network.to(device).eval()
        ids = (job.split.val or job.split.train)[:OVERLAYS]
        validator = Validator(job.plan, store, ids, device)
        for number, case_id in enumerate(ids, 1):
            case = store.read(case_id)
            overlay = Path(folder) / f"case_{number}.png"
            if draw_overlay(case, validator.predict(network, case), job.plan.data.labels, overlay):
                journal.artifact(overlay, "overlays")


def _fit_rank(job: Job, rank: int, port: int, progress: Progress, stop: StopRequest) -> TrainingResult:
    torch.set_num_threads(max(1, default_workers() // job.devices))
    return _fit(rank, port, progress, stop, job)


def _fit(rank: int, port: int, progress: Progress, stop: StopRequest, job: Job) -> TrainingResult:
    """One rank's training."""
    plan = job.plan
    device = choose_device(job.device)
    if job.devices > 1 and device.type == "cuda":
        device = torch.device("cuda", rank)
    networks = plan.training.networks if job.patience is None else 1
    clock = Clock(job.budget, plan.training, networks, synchroniser(device))
    validator = Validator(plan, Store(job.prepared), job.split.val, device, rank, job.devices)
    history = History(job.folder / "metrics.csv")
    courier = _courier(job.journal) if job.journal is not None and rank == 0 else None
    peak = PeakMemory(device)
    supervisor = Supervisor(
        clock=clock,
        peak=peak,
        agenda=Agenda(clock.epochs, clock.seconds, job.patience),
        validator=validator,
        deliver=job.deliver,
        history=history,
        stop=stop,
        journal=courier,
        progress=progress,
        checkpoint=job.checkpoint,
        save_every=job.save_every,
        patience=job.patience,
    )
    data = TrainingData(plan, job.prepared, job.split.train, job.fold, device.type, rank, job.devices, job.workers)  # type: ignore[arg-type]
    supervisor.stop.install()
    with contextlib.ExitStack() as stack:
        stack.callback(supervisor.stop.remove)
        stack.callback(peak.stop)
        stack.enter_context(memory_kept(device))
        stack.enter_context(quiet())
        stack.enter_context(memory_told(device, job.devices))
        if courier is not None:
            stack.enter_context(courier)
        learner = Learner(plan, job.fold, clock, device, rank, job.start, progress)
        if compiles(device, clock):
            learner.network.compile()
        trainer = make_trainer(plan, job.folder, device, job.devices, clock, supervisor, rank, port)
        job.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        trainer.fit(learner, datamodule=data, ckpt_path=str(job.checkpoint) if job.resume and job.checkpoint.is_file() else None)
    if courier is not None and courier.lost:
        progress.say(f"warning: {courier.lost}; they are in {history.file}")
    result = _result(job, supervisor, trainer.global_step)
    if result.finished and trainer.is_global_zero:
        job.finish(result.networks)
        result.save(job.finished)
        job.checkpoint.unlink(missing_ok=True)
        (job.checkpoint.parent / KEPT).unlink(missing_ok=True)
    return result


def _result(job: Job, supervisor: Supervisor, steps: int) -> TrainingResult:
    validated, memory = supervisor.validated, supervisor.peak.stop()
    scores = mean_scores([one.scores for one in validated])
    return TrainingResult(
        fold=job.fold,
        plan_digest=job.plan.trained_digest(),
        epochs=len(supervisor.history.rows),
        steps=steps,
        seconds=round(supervisor.clock.elapsed, 3),
        networks=supervisor.networks,
        metric=supervisor.validator.metric,
        score=_number(sum(one.score for one in validated) / len(validated)) if validated else None,
        scores={name: {metric: _number(value) for metric, value in values.items()} for name, values in scores.items()},
        cases=validated[-1].cases if validated else 0,
        finished=not supervisor.interrupted,
        interrupted=supervisor.interrupted,
        patience=job.patience,
        stopped=supervisor.stopped,
        memory=None if memory is None else round(memory, 3),
        budget_seconds=supervisor.clock.seconds,
        budget_epochs=supervisor.clock.epochs,
    )


def _courier(journal: FoldRun) -> Courier:
    from medseg.training.journal import Courier

    return Courier(journal)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _finished_result(job: Job, tracker: Tracker | None) -> TrainingResult:
    result = TrainingResult.load(job.finished)
    present = all(job.weights(number).is_file() for number in range(result.networks))
    if result.plan_digest != job.plan.trained_digest() or not present:
        raise ModelError.of(
            "the finished training does not fit its folder",
            where=str(job.folder),
            found="weights of another plan" if present else f"not the weights of all {result.networks} networks",
            fix="Remove this folder and train again.",
        )
    return result.model_copy(update={"tracking": tracker.uri if tracker is not None else ""})
