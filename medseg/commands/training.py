"""Verbs that train a plan: train, pretrain, benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.commands.console import Bars, answer, ok, say, shown, table
from medseg.commands.groups import Course, spread
from medseg.commands.options import Device, Init, Patience, PlanFile, Set, Workers, out_option, parse_edits, parse_folds
from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.benchmarking import Benchmark
    from medseg.training.train import TrainingResult


@spread
def train(
    plan: PlanFile,
    out: Annotated[Path, out_option("Folder of the model.")],
    course: Course,
    fold: Annotated[str, typer.Option("--fold", help="Fold to leave out for validation: 0, 1, ..., or none to train on every case.")] = "0",
    patience: Patience = None,
    init: Init = None,
) -> None:
    """Train one fold of a plan (prepares the cases first where that has not been done)."""
    from medseg import workflow

    folds = parse_folds(fold)
    if folds == "all" or len(folds) != 1:
        raise UsageError.of(
            "one fold at a time", where="--fold", found=f"'{fold}'", fix="Use `medseg run --folds all` for cross-validation."
        )
    with Bars() as progress:
        result = workflow.train(plan, out, fold=folds[0], patience=patience, init=init, progress=progress, **course.arguments())
    _stopped(result)
    networks = f", {result.networks} networks" if result.networks > 1 else ""
    ok(f"trained {result.epochs} epochs{networks} in {result.seconds / 60:.1f} minutes; model in {out}")
    if result.score is not None:
        alone = ", mean of the networks alone (predictions average them)" if networks else ""
        say(f"Validation {result.metric} {result.score:.4f} over {result.cases} of the cases left out{alone}")
    say(f"Next: medseg predict {shown(out)} IMAGES -o OUT")


@spread
def pretrain(
    plan: PlanFile,
    images: Annotated[list[Path] | None, typer.Argument(help="Further images: files, folders or datasets.")] = None,
    *,
    out: Annotated[Path, out_option("Folder of the result, for --init.")],
    course: Course,
    objective: Annotated[str, typer.Option("--objective", help="What is learned without annotations, see `medseg tasks`.")] = "masked",
) -> None:
    """Train a plan's network without annotations, on all images of its dataset and further ones; trainings begin with it by --init."""
    from medseg import workflow

    with Bars() as progress:
        result = workflow.pretrain(plan, out, images or [], objective=objective, progress=progress, **course.arguments())
    _stopped(result)
    ok(f"pre-trained {result.epochs} epochs in {result.seconds / 60:.1f} minutes; weights in {out}")
    say(f"Next: medseg train {shown(plan)} --init {shown(out)} -o RUN")


def benchmark(
    target: Annotated[Path, typer.Argument(metavar="PLAN|RUN", help="A plan file, e.g. PLANS/3d.json, or a model folder, trained or not.")],
    plans: Annotated[
        Path | None, typer.Option("--plans", help="The folder of plans of a model folder. Default: the workspace in it.")
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", help="How long to measure, about; slow steps, and preparing cases, take longer.")
    ] = 60.0,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Measure so many training steps, however long they take.")] = None,
    edits: Set = None,
    device: Device = "auto",
    workers: Workers = None,
    out: Annotated[Path | None, out_option("A JSON file for the result.")] = None,
) -> None:
    """Measure how fast a plan trains and predicts on this machine, and say what limits it. Keeps nothing."""
    from medseg import workflow
    from medseg.record import check_writable

    if out is not None:
        if out.is_dir():
            raise UsageError.of("is a folder", where=str(out), expected="a file for the result, e.g. speed.json")
        check_writable(out.parent)
    with Bars() as progress:
        found = workflow.benchmark(
            target, plans=plans, seconds=seconds, steps=steps, edits=parse_edits(edits), device=device, workers=workers, progress=progress
        )
    if out is not None:
        found.save(out)
    answer(found)
    _tell(found)


def _tell(found: Benchmark) -> None:
    from medseg.verdict import lasting

    speed, used = found.training, found.prediction
    total = sum(speed.phases.values())
    where = f"{found.device}, {found.precision}" + (f", {found.threads} threads" if found.kind == "cpu" else "")
    window = " x ".join(map(str, found.window))
    plain = ", which is for float32" if found.kind == "cpu" and found.precision != "float32" else ""
    rows: list[tuple[str, str]] = [
        ("training", f"{speed.steps_per_second:.3g} steps/s, {speed.windows_per_second:.3g} windows/s, {speed.steps} steps measured"),
        ("  a step", lasting(speed.fastest, speed.slowest)),
        ("  cores", f"{speed.cores:.2g} of {found.cores} used; {_others(speed.others)}"),
        *((f"  {phase}", f"{1e3 * spent:.1f} ms, {spent / total:.0%} of a step") for phase, spent in speed.phases.items()),
        ("  waiting for data", f"{speed.waiting:.0%}, with {_processes(speed.workers)}"),
        ("  memory", f"{_gib(speed.memory)} at the peak; predicted {speed.memory_predicted:.2f} GiB{plain}"),
        ("  arithmetic", f"{speed.flops / 1e9:.4g} GFLOP per step, {speed.rate / 1e9:.4g} GFLOP/s"),
        ("  utilisation", f"{speed.utilisation:.0%} of a large matrix product, {speed.peak_rate / 1e9:.4g} GFLOP/s"),
    ]
    if speed.float32_steps_per_second is not None:
        ratio = speed.steps_per_second / speed.float32_steps_per_second
        rows.append(("  in float32", f"{speed.float32_steps_per_second:.3g} steps/s; {found.precision} is {ratio:.2g} times as fast"))
    rows.append(("  an epoch", _lasting(speed.epoch_seconds)))
    rows.append(("  the plan's training", f"{_lasting(speed.plan_seconds)}, or as --time says; validation adds a few percent"))
    if used is not None:
        views = f" of {used.views} mirrored views" if used.views > 1 else ""
        networks = f", {used.networks} networks" if used.networks > 1 else ""
        rows.append(("prediction", f"{used.windows_per_second:.3g} windows/s{views}{networks}"))
        part = "" if used.case_whole else ", by the pace of windows; reading, resampling and writing apart"
        shape = " x ".join(map(str, used.case_shape))
        rows.append(
            (
                "  a typical case",
                f"{_lasting(used.case_seconds)}: {shape} voxels, {used.case_windows} window{'s' if used.case_windows > 1 else ''}{part}",
            )
        )
        device = f"; on the device {_gib(used.device_memory)}{'' if used.measured else ', estimated'}" if used.device_memory else ""
        rows.append(("  memory", f"{_gib(used.memory)}, estimated{device}"))
    table(f"Plan {found.plan}: window {window}, batch {found.batch_size}; {where}", ("what", "measured"), rows)
    ok(found.verdict.sentence)
    for advice in found.verdict.advice:
        say(f"  {advice}")


def _processes(workers: int) -> str:
    if workers == 0:
        return "windows cut by the training itself"
    return f"{workers} process{'es' if workers > 1 else ''} that cut windows"


def _others(share: float | None) -> str:
    return "what other processes took is not known" if share is None else f"other processes took {share:.0%} of all"


def _gib(memory: float | None) -> str:
    return "unknown" if memory is None else f"{memory:.2f} GiB"


def _lasting(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _stopped(result: TrainingResult) -> None:
    """The answer of a training; one that was interrupted ends the verb."""
    answer(result)
    if not result.finished:
        say(f"stopped by {result.interrupted} after {result.epochs} epochs; the same command with --resume goes on from there")
        raise typer.Exit(1)


NEED_ARGUMENTS = (train, pretrain, benchmark)
