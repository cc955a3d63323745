"""Verbs that train a plan: train, pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.commands.console import Bars, answer, ok, say, shown
from medseg.commands.options import (
    Device,
    Devices,
    Epochs,
    Init,
    Patience,
    PlanFile,
    Resume,
    Set,
    Time,
    Workers,
    out_option,
    parse_edits,
    parse_folds,
    parse_time,
)
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.training.train import TrainingResult


def train(
    plan: PlanFile,
    out: Annotated[Path, out_option("Folder of the model.")],
    fold: Annotated[str, typer.Option("--fold", help="Fold to leave out for validation: 0, 1, ..., or none to train on every case.")] = "0",
    time: Time = None,
    epochs: Epochs = None,
    patience: Patience = None,
    resume: Resume = False,
    init: Init = None,
    edits: Set = None,
    device: Device = "auto",
    devices: Devices = 1,
    workers: Workers = None,
) -> None:
    """Train one fold of a plan (prepares the cases first where that has not been done)."""
    from medseg import workflow

    folds = parse_folds(fold)
    if folds == "all" or len(folds) != 1:
        raise UsageError.of(
            "one fold at a time", where="--fold", found=f"'{fold}'", fix="Use `medseg run --folds all` for cross-validation."
        )
    with Bars() as progress:
        result = workflow.train(
            plan,
            out,
            fold=folds[0],
            seconds=parse_time(time),
            epochs=epochs,
            patience=patience,
            resume=resume,
            init=init,
            edits=parse_edits(edits),
            device=device,
            devices=devices,
            workers=workers,
            progress=progress,
        )
    _stopped(result)
    networks = f", {result.networks} networks" if result.networks > 1 else ""
    ok(f"trained {result.epochs} epochs{networks} in {result.seconds / 60:.1f} minutes; model in {out}")
    if result.score is not None:
        alone = ", mean of the networks alone (predictions average them)" if networks else ""
        say(f"Validation {result.metric} {result.score:.4f} over {result.cases} of the cases left out{alone}")
    say(f"Next: medseg predict {shown(out)} IMAGES -o OUT")


def pretrain(
    plan: PlanFile,
    images: Annotated[list[Path] | None, typer.Argument(help="Further images: files, folders or datasets.")] = None,
    *,
    out: Annotated[Path, out_option("Folder of the result, for --init.")],
    time: Time = None,
    epochs: Epochs = None,
    objective: Annotated[str, typer.Option("--objective", help="What is learned without annotations, see `medseg tasks`.")] = "masked",
    resume: Resume = False,
    edits: Set = None,
    device: Device = "auto",
    devices: Devices = 1,
    workers: Workers = None,
) -> None:
    """Train a plan's network without annotations, on all images of its dataset and further ones; trainings begin with it by --init."""
    from medseg import workflow

    with Bars() as progress:
        result = workflow.pretrain(
            plan,
            out,
            images or [],
            objective=objective,
            seconds=parse_time(time),
            epochs=epochs,
            resume=resume,
            edits=parse_edits(edits),
            device=device,
            devices=devices,
            workers=workers,
            progress=progress,
        )
    _stopped(result)
    ok(f"pre-trained {result.epochs} epochs in {result.seconds / 60:.1f} minutes; weights in {out}")
    say(f"Next: medseg train {shown(plan)} --init {shown(out)} -o RUN")


def _stopped(result: TrainingResult) -> None:
    """The answer of a training; one that was interrupted ends the verb."""
    answer(result)
    if not result.finished:
        say(f"stopped by {result.interrupted} after {result.epochs} epochs; the same command with --resume goes on from there")
        raise typer.Exit(1)


NEED_ARGUMENTS = (train, pretrain)
