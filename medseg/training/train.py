"""Train one fold."""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer

from medseg.device import autocast_dtype, choose_device
from medseg.errors import ModelError, ResourceError, UsageError
from medseg.io.store import Store
from medseg.parallel import default_workers
from medseg.plans import Plan
from medseg.progress import Progress, Silent
from medseg.record import Record
from medseg.tasks.base import find_task
from medseg.training.budget import Budget, Clock
from medseg.training.checkpoint import PlainCheckpointIO, load_weights, save_weights
from medseg.training.data import TrainingData
from medseg.training.environment import LocalRanks
from medseg.training.figures import draw_curves, draw_overlay
from medseg.training.history import History
from medseg.training.module import Learner
from medseg.training.preflight import check_devices, check_patience, check_prepared, claim, write_provenance
from medseg.training.ranks import run_ranks
from medseg.training.signals import StopRequest, requeue
from medseg.training.splits import Split, choose_split
from medseg.training.supervisor import Journal, Supervisor
from medseg.training.validation import Agenda, Validator
from medseg.workspace import RunFolder

if TYPE_CHECKING:
    from medseg.training.tracking import FoldRun, Tracker  # imports MLflow, which an untracked training does not need

SAVE_EVERY = 20.0  # seconds between checkpoints at the ends of epochs, at least; within long epochs fifteen times as rarely
OVERLAYS = 3  # cases shown in MLflow
COMPILE_SECONDS, COMPILE_STEPS = 600.0, 5000  # shorter trainings end before compiling has paid for itself


class TrainingResult(Record):
    """What a training came to; also `state/finished.json` of a finished fold.

    Attributes:
        fold: the fold; None trained on every case.
        plan_digest: of the plan that was trained.
        epochs, steps, seconds: how long it took, all sessions together.
        metric: what `score` measures.
        score: mean over classes in the last validation (with patience, in the best one); None without validation cases.
        scores: that validation by class; None where undefined.
        cases: number of cases it was measured on.
        finished: False when a signal ended the session; `resume=True` goes on.
        interrupted: name of that signal, or empty.
        stopped: whether patience ended the training.
        tracking: MLflow's tracking URI, or empty.
    """

    fold: int | None
    plan_digest: str
    epochs: int
    steps: int
    seconds: float
    metric: str
    score: float | None
    scores: dict[str, dict[str, float | None]]
    cases: int
    finished: bool
    interrupted: str = ""
    stopped: bool = False
    tracking: str = ""


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
    journal: Journal | None
    save_every: float

    @property
    def checkpoint(self) -> Path:
        """The state to resume from."""
        return self.folder / "state" / "checkpoint.safetensors"

    @property
    def finished(self) -> Path:
        """Exists when the training is over."""
        return self.folder / "state" / "finished.json"

    @property
    def weights(self) -> Path:
        """The model."""
        return self.folder / "weights.safetensors"


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
) -> TrainingResult:
    """Train one fold into a model folder.

    Args:
        plan: the plan; it is written into the model folder.
        store: the prepared cases.
        splits: of the cross-validation.
        fold: whose validation cases are left out; None trains on every case.
        budget: seconds or epochs.
        patience: stop after this many validations in a row without a better score, and deliver the best.
        resume: go on with an interrupted training; a finished one is returned as it is, one that never began is begun.
        devices: processes, one device each, that share every batch.
        licence: of the data, for the provenance.
        save_every: seconds between checkpoints.

    Raises:
        UsageError: the fold exists already and `resume` is off, or there is no such fold, or the devices do not fit.
        ModelError: the model folder belongs to another plan, or training diverged.
        DatasetError: cases are not prepared.
        ResourceError: memory, disk or devices do not suffice.
    """
    progress = progress or Silent()
    split = choose_split(splits, fold)
    chosen = choose_device(device)
    folder = run.fold(fold)
    job = Job(plan, store.folder, split, fold, folder, budget, patience, resume, device, devices, None, save_every)
    check_devices(chosen, devices, plan.training.batch_size)
    check_patience(patience, split)
    check_prepared(store, split)
    claim(run, plan)
    if job.finished.is_file() and resume:
        progress.say(f"fold {fold if fold is not None else 'none'} is already trained: {folder}")
        return _finished_result(job, tracker)
    if not resume and (job.finished.is_file() or job.checkpoint.is_file() or job.weights.is_file()):
        raise UsageError.of(
            "this fold has been trained already, wholly or in part",
            where=str(folder),
            fix="Pass --resume to go on with it, or choose another output folder.",
        )
    journal = tracker.begin(plan, run, fold, split, budget, chosen.type, devices) if tracker is not None else None
    write_provenance(run, plan, chosen, licence, journal.parent if journal is not None else "")
    job = Job(plan, store.folder, split, fold, folder, budget, patience, resume, device, devices, journal, save_every)
    result = _launch(job, progress) if journal is None else _tracked(job, store, journal, chosen, progress)
    if result.interrupted == "SIGUSR1" and requeue():
        progress.say("asked SLURM to run this job again")
    return result


def _launch(job: Job, progress: Progress) -> TrainingResult:
    return _fit(0, 0, progress, job) if job.devices == 1 else run_ranks(partial(_fit_rank, job), job.devices, progress)


def _tracked(job: Job, store: Store, journal: FoldRun, device: torch.device, progress: Progress) -> TrainingResult:
    """Train, and tell MLflow how it ended. A server that fails after the training cannot take the model away."""
    from medseg.training.tracking import FAILURES

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
        progress.say(f"the end of the training could not be tracked: {error}")
    return result.model_copy(update={"tracking": journal.uri})


def _publish(job: Job, store: Store, journal: FoldRun, result: TrainingResult, device: torch.device) -> None:
    """Metrics, curves and overlays of a finished fold, for MLflow."""
    journal.finish(result.score, result.metric)
    metrics = job.folder / "metrics.csv"
    journal.artifact(metrics)
    with tempfile.TemporaryDirectory() as folder:
        curves = Path(folder) / "curves.png"
        draw_curves(History.read(metrics), result.metric, curves)
        journal.artifact(curves, "plots")
        task = find_task(job.plan.task)(job.plan)
        network = task.network()
        network.load_state_dict(load_weights(job.weights, job.plan.content_digest()))
        network = network.to(device).eval()
        ids = (job.split.val or job.split.train)[:OVERLAYS]
        validator = Validator(job.plan, store, ids, device)
        for number, case_id in enumerate(ids, 1):
            case = store.read(case_id)
            overlay = Path(folder) / f"case_{number}.png"
            if draw_overlay(case, validator.predict(network, case), job.plan.data.labels, overlay):
                journal.artifact(overlay, "overlays")


def _fit_rank(job: Job, rank: int, port: int, progress: Progress) -> TrainingResult:
    torch.set_num_threads(max(1, default_workers() // job.devices))
    return _fit(rank, port, progress, job)


def _fit(rank: int, port: int, progress: Progress, job: Job) -> TrainingResult:
    """One rank's training."""
    plan, steps = job.plan, job.plan.training.steps
    device = choose_device(job.device)
    if job.devices > 1 and device.type == "cuda":
        device = torch.device("cuda", rank)
    clock = Clock(job.budget, plan.training.epochs, steps)
    validator = Validator(plan, Store(job.prepared), job.split.val, device, rank, job.devices)
    history = History(job.folder / "metrics.csv")
    supervisor = Supervisor(
        clock=clock,
        agenda=Agenda(clock.epochs, clock.seconds, job.patience),
        validator=validator,
        history=history,
        stop=StopRequest(),
        journal=job.journal if rank == 0 else None,
        progress=progress,
        checkpoint=job.checkpoint,
        save_every=job.save_every,
        patience=job.patience,
    )
    data = TrainingData(plan, job.prepared, job.split.train, job.fold, device.type, rank, job.devices)  # type: ignore[arg-type]
    supervisor.stop.install()
    with contextlib.ExitStack() as stack:
        stack.callback(supervisor.stop.remove)
        stack.enter_context(_quiet())
        stack.enter_context(_memory(device))
        learner = Learner(plan, job.fold, clock, rank)
        if _compiles(device, clock):
            learner.network.compile()
        trainer = _trainer(job, device, clock, supervisor, rank, port)
        job.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        trainer.fit(learner, datamodule=data, ckpt_path=str(job.checkpoint) if job.resume and job.checkpoint.is_file() else None)
    result = _result(job, supervisor, trainer.global_step)
    if result.finished and trainer.is_global_zero:
        save_weights(job.weights, supervisor.weights(learner), plan.content_digest())
        result.save(job.finished)
        job.checkpoint.unlink(missing_ok=True)
    return result


def _result(job: Job, supervisor: Supervisor, steps: int) -> TrainingResult:
    validated = supervisor.delivered
    return TrainingResult(
        fold=job.fold,
        plan_digest=job.plan.content_digest(),
        epochs=len(supervisor.history.rows),
        steps=steps,
        seconds=round(supervisor.clock.elapsed, 3),
        metric=supervisor.validator.task.metrics[0],
        score=None if validated is None else _number(validated.score),
        scores={}
        if validated is None
        else {name: {metric: _number(value) for metric, value in values.items()} for name, values in validated.scores.items()},
        cases=0 if validated is None else validated.cases,
        finished=not supervisor.interrupted,
        interrupted=supervisor.interrupted,
        stopped=supervisor.stopped,
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _trainer(job: Job, device: torch.device, clock: Clock, supervisor: Supervisor, rank: int, port: int) -> Trainer:
    precision: Any = {torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed", None: "32-true"}[autocast_dtype(device)]
    several = job.devices > 1
    plugins: list[Any] = [PlainCheckpointIO(job.plan.content_digest())]
    if several:
        plugins.append(LocalRanks(rank, job.devices, port))
    return Trainer(
        accelerator=device.type,
        devices=job.devices if several or device.type != "cuda" else [device.index or 0],
        strategy="ddp" if several else "auto",
        precision=precision,
        plugins=plugins,
        max_epochs=clock.epochs if clock.epochs is not None else -1,
        gradient_clip_val=job.plan.training.clip,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        benchmark=device.type == "cuda",
        default_root_dir=job.folder,
        callbacks=[supervisor],
    )


def _compiles(device: torch.device, clock: Clock) -> bool:
    """Whether compiling the network pays: on GPUs with Triton, in long trainings."""
    from torch.utils._triton import has_triton

    long = clock.seconds >= COMPILE_SECONDS if clock.seconds is not None else (clock.epochs or 0) * clock.steps >= COMPILE_STEPS
    return device.type == "cuda" and long and bool(has_triton())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's hints: they concern choices that are made here on purpose."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*dataloader is not resumable.*",  # it is: see data.Steps
            ".*smaller than the logging interval.*",
            ".*Checkpoint directory.*exists and is not empty.*",
            ".*Grad strides do not match bucket view strides.*",
            ".*found .* module.* in eval mode.*",  # the averaged weights
            ".*isinstance.treespec, LeafSpec.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _memory(device: torch.device) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ResourceError.of(
            "the device ran out of memory",
            where=str(device),
            found=str(error).splitlines()[0],
            fix="Plan again with a smaller --memory, or train with a smaller batch (--set training.batch_size=N).",
        ) from error


def _finished_result(job: Job, tracker: Tracker | None) -> TrainingResult:
    result = TrainingResult.load(job.finished)
    if result.plan_digest != job.plan.content_digest() or not job.weights.is_file():
        raise ModelError.of(
            "the finished training does not fit its folder",
            where=str(job.folder),
            found="weights of another plan" if job.weights.is_file() else "no weights.safetensors",
            fix="Remove this folder and train again.",
        )
    return result.model_copy(update={"tracking": tracker.uri if tracker is not None else ""})
