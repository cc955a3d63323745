"""The whole flow on one page, as plain functions that a notebook can call:

    dataset -> fingerprint -> plan -> prepared cases -> windows -> network -> stitched output -> decoded prediction
            -> restored to the native geometry -> written and scored

Each verb of the command line is one call here. Nothing on this page knows a task or a domain by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medseg.device import choose_device, machine
from medseg.evaluation.records import Comparison, Evaluation
from medseg.held_out import report, trained_on
from medseg.io.layouts.base import LayoutOptions, make_labels, open_dataset
from medseg.io.store import Store
from medseg.planning.difference import Change
from medseg.planning.difference import difference as plan_difference
from medseg.planning.explain import Decision
from medseg.planning.explain import explain as explain_plan
from medseg.planning.verify import Verified
from medseg.planning.verify import verify as verify_dataset
from medseg.plans import Plan
from medseg.preconditions import check_apart, check_continuation, check_folds, check_length
from medseg.progress import Progress, Silent
from medseg.record import Record
from medseg.sample import sample_dataset
from medseg.steps import Rules, Training, log_model, measured, planned, prepared, train_fold
from medseg.workspace import RunFolder, Workspace

# torch, lightning and mlflow take seconds to import, so what needs them is imported by the verb that does.
if TYPE_CHECKING:
    from medseg.inference.predictor import Predicted
    from medseg.training.train import TrainingResult

SILENT = Silent()


def verify(
    dataset: Path,
    options: LayoutOptions | None = None,
    *,
    workers: int | None = None,
    resample_labels: bool = False,
    progress: Progress = SILENT,
) -> Verified:
    """Check every file of a dataset. Raises DatasetError with all problems at once."""
    return verify_dataset(
        open_dataset(dataset, options or LayoutOptions()), workers=workers, progress=progress, resample_labels=resample_labels
    )


def plan(
    dataset: Path,
    out: Path,
    *,
    task: str | None = None,
    network: str = "unet",
    memory: float | None = None,
    device: str = "auto",
    edits: Mapping[str, str] | None = None,
    rules: Rules | None = None,
    options: LayoutOptions | None = None,
    workers: int | None = None,
    resample_labels: bool = False,
    progress: Progress = SILENT,
) -> tuple[Plan, ...]:
    """Verify and fingerprint a dataset, and write one plan per configuration into the workspace `out`.

    Args:
        task: what the annotations mean; None takes what the dataset's layout says.
        memory: GiB that training may use; None takes what the machine has.
        device: what training will run on; with `memory` it need not exist here.
        edits: values to replace in every configuration that has the field (see `medseg.planning.editing.edit_plans`).
        rules: another program's planner in place of medseg's, for example `medseg.interop.nnunet.planning.Presets("nnunet")`.
    """
    offered, workspace = machine(device, memory), Workspace(out)
    found, fingerprint = measured(dataset, workspace, options, workers, resample_labels, progress)
    return planned(found, fingerprint, workspace, task, network, offered, edits, rules)


def explain(plan_file: Path) -> tuple[Decision, ...]:
    """Every decision of a plan, or of a model folder's plan, with its reason; with the evidence where the fingerprint lies beside it."""
    chosen = Plan.load(RunFolder(plan_file).plan_file if plan_file.is_dir() else plan_file)
    workspace = Workspace(plan_file / "workspace") if plan_file.is_dir() else Workspace.of_plan(plan_file)
    return explain_plan(chosen, workspace.fingerprint() if workspace.fingerprint_file.is_file() else None)


def difference(first: Path, second: Path) -> tuple[Change, ...]:
    """Every field in which two plan files differ, with both values and both reasons; none for equal plans."""
    return plan_difference(Plan.load(first), Plan.load(second))


def preprocess(plan_file: Path, *, workers: int | None = None, progress: Progress = SILENT) -> Store:
    """Prepare every case of the plan's dataset; finished cases are kept, so it goes on after an interruption."""
    return prepared(Plan.load(plan_file), Workspace.of_plan(plan_file), workers, progress)


def train(
    plan_file: Path,
    out: Path,
    *,
    fold: int | None = 0,
    seconds: float | None = None,
    epochs: int | None = None,
    patience: int | None = None,
    resume: bool = False,
    edits: Mapping[str, str] | None = None,
    device: str = "auto",
    devices: int = 1,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> TrainingResult:
    """Train one fold (None: on every case) into the model folder `out`; the length is `seconds`, `epochs`, or the plan's epochs."""
    check_length(seconds, epochs)
    how = Training(seconds, epochs, patience, resume, device, devices, workers, progress)
    workspace, folder = Workspace.of_plan(plan_file), RunFolder(out)
    result = train_fold(Plan.load(plan_file).edited(dict(edits or {})), workspace, folder, fold, how)
    if result.finished:
        log_model(workspace, folder, progress)
    return result


def predict(
    run: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    probabilities: bool = False,
    uncertainty: bool = False,
    mirror: bool = True,
    overwrite: bool = False,
    device: str = "auto",
    memory: float | None = None,
    progress: Progress = SILENT,
) -> Predicted:
    """Predict on image files or folders; a failing case does not stop the others and is listed in the result."""
    from medseg.inference.predictor import Predictor

    predictor = Predictor.load(run, device=device, memory=memory)
    files = RunFolder(run).weights()
    if len(files) > 1:
        folds = ", ".join(dict.fromkeys(file.parent.name for file in files))
        progress.say(f"averaging {len(files)} networks ({folds})")
    return predictor.predict(
        list(inputs), out, probabilities=probabilities, uncertainty=uncertainty, mirror=mirror, overwrite=overwrite, progress=progress
    )


def evaluate(
    predictions: Path,
    reference: Path,
    out: Path | None = None,
    *,
    classes: Mapping[str, tuple[int, ...]] | None = None,
    run: Path | None = None,
    images: Path | None = None,
    metrics: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Score a folder of predictions against a dataset or a folder of labels; writes JSON, CSV and an HTML page into `out`.

    Classes come from `classes`, else from the model `run` (which also gives the page its plan and training curves), else from the
    dataset, else from the values found in the references.
    """
    from medseg.evaluation.scoring import evaluate as score_folder

    model = RunFolder(run) if run else None
    if out is not None:
        check_apart(out, predictions, reference)
    labels = make_labels(LayoutOptions(classes=classes), {}, reference) if classes else None
    found = score_folder(
        predictions,
        reference,
        labels,
        out,
        workers,
        progress,
        plan=Plan.load(model.plan_file) if model else None,
        metrics=metrics,
        images=images,
        curves=model.curves() if model else (),
    )
    if model is not None and (seen := trained_on(model, found.ids)):
        progress.say(
            f"warning: the model has trained on {seen} of these {len(found.cases)} cases, so their scores say little about unseen ones "
            f"({model.report} has those of cases it left out)"
        )
    return found


def compare(first: Path, second: Path) -> Comparison:
    """Compare two evaluations case by case; each is given as a report folder or as a run that has one."""
    from medseg.evaluation.comparison import compare as compare_evaluations
    from medseg.evaluation.comparison import open_evaluation

    return compare_evaluations(open_evaluation(first), open_evaluation(second))


class RunResult(Record):
    """What `run` produced; `interrupted` names the signal that stopped it early."""

    model: Path
    plan: str
    folds: tuple[int | None, ...]
    report: Path | None
    evaluation: Evaluation | None
    tracking: str
    interrupted: str = ""


def run(
    dataset: Path,
    out: Path,
    *,
    seconds: float | None = None,
    epochs: int | None = None,
    patience: int | None = None,
    folds: Sequence[int | None] | Literal["all"] = (0,),
    configuration: str | None = None,
    edits: Mapping[str, str] | None = None,
    task: str | None = None,
    network: str = "unet",
    memory: float | None = None,
    device: str = "auto",
    devices: int = 1,
    options: LayoutOptions | None = None,
    workers: int | None = None,
    resample_labels: bool = False,
    progress: Progress = SILENT,
) -> RunResult:
    """Everything with the recommended plan. Called again with the same `out`, it goes on where it was interrupted, with the plan it has.

    The report covers the cases that the folds wanted by this call left out, not those of folds trained by earlier calls; with
    `folds=(None,)` every case trains and there is none.

    Args:
        folds: folds to train, `None` among them for a model of every case; or "all" for cross-validation.
        configuration: name of the plan to train; None takes the recommended one.
    """
    from medseg.planning.planner import choose_plan

    check_length(seconds, epochs)
    check_folds(folds)
    choose_device(device)  # planning for a device that is not here would only end in a training that cannot begin
    offered, edits = machine(device, memory), dict(edits or {})
    folder, workspace = RunFolder(out), Workspace(out / "workspace")
    begun = Plan.load(folder.plan_file) if folder.plan_file.is_file() else None
    found, fingerprint = measured(dataset, workspace, options, workers, resample_labels, progress)
    if begun is not None:
        check_continuation(folder, begun, found, fingerprint, configuration, edits)
        progress.say(f"going on with the plan in {folder.plan_file}")
    chosen = begun or choose_plan(planned(found, fingerprint, workspace, task, network, offered), configuration).edited(edits)
    wanted: tuple[int | None, ...] = tuple(range(chosen.training.folds)) if folds == "all" else tuple(folds)
    how = Training(seconds, epochs, patience, True, device, devices, workers, progress)
    results: list[TrainingResult] = []
    for fold in wanted:
        results.append(train_fold(chosen, workspace, folder, fold, how))
        if not results[-1].finished:
            break
    trained, selected = results[-1], any(result.patience is not None for result in results)
    held_out = [fold for fold in wanted if fold is not None] if trained.finished else []
    learn = folds == "all"
    evaluation = report(folder, workspace.dataset(), held_out, selected, device, memory, workers, learn, progress) if held_out else None
    if trained.finished:
        log_model(workspace, folder, progress)
    return RunResult(
        model=out,
        plan=chosen.name,
        folds=wanted,
        report=folder.report if evaluation else None,
        evaluation=evaluation,
        tracking=trained.tracking,
        interrupted="" if trained.finished else trained.interrupted,
    )


def demo(out: Path, *, seconds: float | None = 100.0, progress: Progress = SILENT) -> RunResult:
    """`run` on the real sample that is shipped with medseg."""
    return run(sample_dataset(), out, seconds=seconds, progress=progress)
