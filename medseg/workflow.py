"""The whole flow on one page, as plain functions that a notebook can call:

    dataset -> fingerprint -> plan -> prepared cases -> windows -> network -> stitched output -> decoded prediction
            -> restored to the native geometry -> written and scored

Each verb of the command line is one call here. Nothing on this page knows a task or a domain by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medseg.dataset import Dataset, LabelClass, Labels
from medseg.device import choose_device, machine
from medseg.errors import ImageError, ModelError, PlanError, Problem, ResourceError, UsageError
from medseg.evaluation.records import Comparison, Evaluation
from medseg.fingerprint import Fingerprint
from medseg.io.layouts.base import LayoutOptions, open_dataset
from medseg.io.store import Store
from medseg.planning.explain import Decision
from medseg.planning.explain import explain as explain_plan
from medseg.planning.verify import Verified
from medseg.planning.verify import verify as verify_dataset
from medseg.plans import Plan
from medseg.preconditions import check_folds, check_length, check_memory, check_workspace
from medseg.progress import Progress, Silent
from medseg.record import Record
from medseg.workspace import RunFolder, Workspace

# torch, lightning and mlflow take seconds to import, so what needs them is imported by the verb that does.
if TYPE_CHECKING:
    from medseg.inference.predictor import Predicted
    from medseg.training.splits import Split
    from medseg.training.train import TrainingResult

SILENT = Silent()
PYFUNC = Path(__file__).parent / "inference" / "pyfunc.py"  # logged with each model; MLflow runs it where the model is loaded


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
    options: LayoutOptions | None = None,
    workers: int | None = None,
    resample_labels: bool = False,
    progress: Progress = SILENT,
) -> tuple[Plan, ...]:
    """Verify and fingerprint a dataset, and write one plan per configuration into the workspace `out`.

    Args:
        task: what the annotations mean; None takes what the dataset's layout says.
        memory: GiB that training may use; None takes what the machine has.
    """
    from medseg.planning.planner import make_plans

    offered = machine(device, memory)
    workspace = Workspace(out)
    found, fingerprint = _measured(dataset, workspace, options, workers, resample_labels, progress)
    plans = make_plans(found, fingerprint, task=task or found.task, domain=found.domain, network=network, machine=offered)
    found.save(workspace.dataset_file)
    fingerprint.save(workspace.fingerprint_file)
    for one in plans:
        one.save(workspace.plan_file(one.name))
    return plans


def explain(plan_file: Path) -> tuple[Decision, ...]:
    """Every decision of a plan with its reason; with the evidence where the fingerprint lies beside it."""
    chosen = Plan.load(plan_file)
    workspace = Workspace.of_plan(plan_file)
    return explain_plan(chosen, workspace.fingerprint() if workspace.fingerprint_file.is_file() else None)


def preprocess(plan_file: Path, *, workers: int | None = None, progress: Progress = SILENT) -> Store:
    """Prepare every case of the plan's dataset; finished cases are kept, so it goes on after an interruption."""
    chosen = Plan.load(plan_file)
    workspace = Workspace.of_plan(plan_file)
    return _prepared(chosen, workspace, workers, progress)


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
    return _train(
        Plan.load(plan_file).edited(dict(edits or {})),
        Workspace.of_plan(plan_file),
        RunFolder(out),
        fold,
        seconds=seconds,
        epochs=epochs,
        patience=patience,
        resume=resume,
        device=device,
        devices=devices,
        workers=workers,
        progress=progress,
    )


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
    labels = Labels(classes=tuple(LabelClass(name=n, values=v) for n, v in classes.items())) if classes else None
    return score_folder(
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


def compare(first: Path, second: Path) -> Comparison:
    """Compare two evaluations case by case; each is given as a report folder or as a run that has one."""
    from medseg.evaluation.comparison import compare as compare_evaluations

    return compare_evaluations(_evaluation(first), _evaluation(second))


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

    The report covers the cases that each trained fold left out; with `folds=(None,)` every case trains and there is none.

    Args:
        folds: folds to train, `None` among them for a model of every case; or "all" for cross-validation.
        configuration: name of the plan to train; None takes the recommended one.
    """
    check_length(seconds, epochs)
    check_folds(folds)
    choose_device(device)
    folder, workspace = RunFolder(out), Workspace(out / "workspace")
    if folder.plan_file.is_file():
        chosen = _continued(folder, workspace, dataset, options, configuration, dict(edits or {}), workers, resample_labels, progress)
    else:
        plans = plan(
            dataset,
            workspace.root,
            task=task,
            network=network,
            memory=memory,
            device=device,
            options=options,
            workers=workers,
            resample_labels=resample_labels,
            progress=progress,
        )
        chosen = _configuration(plans, configuration).edited(dict(edits or {}))
    wanted: tuple[int | None, ...] = tuple(range(chosen.training.folds)) if folds == "all" else tuple(folds)
    results = []
    for fold in wanted:
        results.append(
            _train(
                chosen,
                workspace,
                folder,
                fold,
                seconds=seconds,
                epochs=epochs,
                patience=patience,
                resume=True,
                device=device,
                devices=devices,
                workers=workers,
                progress=progress,
            )
        )
        if not results[-1].finished:
            break
    interrupted = results[-1].interrupted if not results[-1].finished else ""
    held_out = [fold for fold in wanted if fold is not None] if not interrupted else []
    evaluation = _report(folder, workspace.dataset(), held_out, device, memory, workers, progress) if held_out else None
    return RunResult(
        model=out,
        plan=chosen.name,
        folds=wanted,
        report=folder.report if evaluation else None,
        evaluation=evaluation,
        tracking=results[-1].tracking,
        interrupted=interrupted,
    )


def demo(out: Path, *, seconds: float | None = 100.0, progress: Progress = SILENT) -> RunResult:
    """`run` on the real sample that is shipped with medseg."""
    return run(sample_dataset(), out, seconds=seconds, progress=progress)


def sample_dataset() -> Path:
    """The folder of the shipped hippocampus sample: in the installed package, or in the source tree."""
    package = Path(__file__).resolve().parent
    for folder in (package / "datasets" / "hippocampus", package.parent / "datasets" / "hippocampus"):
        if (folder / "dataset.json").is_file():
            return folder
    raise UsageError.of(
        "the sample dataset is not installed", expected="datasets/hippocampus", fix="Reinstall medseg, or run from its source tree."
    )


def _measured(
    dataset: Path, workspace: Workspace, options: LayoutOptions | None, workers: int | None, resample_labels: bool, progress: Progress
) -> tuple[Dataset, Fingerprint]:
    """Verify a dataset and take its fingerprint; refuses a workspace that belongs to something else before it reads a voxel."""
    from medseg.planning.fingerprinting import make_fingerprint

    found = open_dataset(dataset, options or LayoutOptions())
    check_workspace(workspace, found)
    verified = verify_dataset(found, workers=workers, progress=progress, resample_labels=resample_labels, cache=workspace.cache)
    for warning in verified.warnings:
        progress.say(f"warning: {warning}")
    return verified.dataset, make_fingerprint(verified.dataset, found.domain, workspace.cache, workers=workers, progress=progress)


def _continued(
    folder: RunFolder,
    workspace: Workspace,
    dataset: Path,
    options: LayoutOptions | None,
    configuration: str | None,
    edits: dict[str, str],
    workers: int | None,
    resample_labels: bool,
    progress: Progress,
) -> Plan:
    """The plan of a run that has begun, if it is of this dataset and of these wishes."""
    chosen = Plan.load(folder.plan_file)
    found, fingerprint = _measured(dataset, workspace, options, workers, resample_labels, progress)
    if chosen.data.digest != fingerprint.digest:
        raise ModelError.of(
            "is a run of other data",
            where=str(folder.root),
            found=f"dataset '{chosen.data.name}', digest {chosen.data.digest}",
            expected=f"'{found.name}', digest {fingerprint.digest}",
            fix="Choose another folder for -o.",
        )
    if configuration not in (None, chosen.name) or chosen.edited(edits).content_digest() != chosen.content_digest():
        raise ModelError.of(
            "has begun with another plan",
            where=str(folder.root),
            found=f"configuration '{chosen.name}' without the wanted changes",
            expected=", ".join([configuration or chosen.name, *(f"{k}={v}" for k, v in edits.items())]),
            fix="Choose another folder for -o.",
        )
    progress.say(f"going on with the plan in {folder.plan_file}")
    return chosen


def _train(
    chosen: Plan,
    workspace: Workspace,
    folder: RunFolder,
    fold: int | None,
    *,
    seconds: float | None,
    epochs: int | None,
    patience: int | None,
    resume: bool,
    device: str,
    devices: int,
    workers: int | None,
    progress: Progress,
) -> TrainingResult:
    from medseg.training.budget import Budget
    from medseg.training.preflight import claim
    from medseg.training.splits import choose_split
    from medseg.training.tracking import Tracker
    from medseg.training.train import train as train_fold

    choose_device(device)
    check_memory(chosen)
    splits = _splits(chosen, workspace, folder, fold)
    choose_split(splits, fold)
    claim(folder, chosen)
    store = _prepared(chosen, workspace, workers, progress)
    tracker = Tracker.open(workspace, chosen, workspace.fingerprint())
    result = train_fold(
        chosen,
        store,
        splits,
        fold,
        folder,
        Budget(seconds=seconds, epochs=epochs if epochs is not None or seconds is not None else chosen.training.epochs),
        patience=patience,
        resume=resume,
        device=device,
        devices=devices,
        tracker=tracker,
        progress=progress,
        licence=workspace.dataset().licence,
    )
    if result.finished:
        try:
            tracker.log_model(folder, PYFUNC)
        except ResourceError as error:  # the model is on disk; tracking must not take it away
            progress.say(f"warning: the model could not be logged. {error}")
    return result


def _evaluation(path: Path) -> Evaluation:
    report = RunFolder(path).report
    found = report if report.is_dir() else path
    if not (found / "summary.json").is_file():
        raise UsageError.of(
            "holds no evaluation",
            where=str(path),
            expected="summary.json",
            fix="Pass a folder that `medseg evaluate` or `medseg run` wrote.",
        )
    return Evaluation.open(found)


def _prepared(chosen: Plan, workspace: Workspace, workers: int | None, progress: Progress) -> Store:
    from medseg.preprocessing.prepare import prepare

    return prepare(workspace.dataset(), chosen, workspace.prepared(chosen), workers=workers, progress=progress, cache=workspace.cache)


def _splits(chosen: Plan, workspace: Workspace, folder: RunFolder, fold: int | None) -> tuple[Split, ...]:
    """The splits of a model folder: made once, then read, so that every fold and every resumption sees the same."""
    from medseg.training.splits import Split, Splits, make_splits

    dataset = workspace.dataset()
    if fold is None:
        return (Split(train=tuple(c.id for c in dataset.cases), val=()),)
    if folder.splits_file.is_file():
        return Splits.load(folder.splits_file).folds
    splits = make_splits(dataset, workspace.fingerprint(), chosen.training.folds, chosen.training.seed)
    Splits(folds=splits).save(folder.splits_file)
    return splits


def _configuration(plans: Sequence[Plan], name: str | None) -> Plan:
    for one in plans:
        if one.recommended if name is None else one.name == name:
            return one
    raise PlanError.of("no such configuration", where="--configuration", found=f"'{name}'", expected=", ".join(p.name for p in plans))


def _report(
    folder: RunFolder, dataset: Dataset, folds: Sequence[int], device: str, memory: float | None, workers: int | None, progress: Progress
) -> Evaluation:
    """Predict the cases that each fold left out, from their files and with that fold's weights alone, and evaluate them together."""
    from medseg.evaluation.scoring import evaluate as score_folder
    from medseg.inference.predictor import Predictor
    from medseg.training.splits import Splits, choose_split

    splits = Splits.load(folder.splits_file).folds
    held_out: list[str] = []
    for fold in folds:
        ids = choose_split(splits, fold).val
        held_out += ids
        predictor = Predictor.load(folder.root, device=device, memory=memory, folds=[fold])
        predicted = predictor.predict([dataset.case(i) for i in ids], folder.held_out, progress=progress)
        if predicted.failures:
            raise ImageError([Problem(str(failure)) for failure in predicted.failures])
    return score_folder(
        folder.held_out,
        dataset,
        None,
        folder.report,
        workers,
        progress,
        plan=Plan.load(folder.plan_file),
        cases=held_out,
        curves=folder.curves(),
        title=f"{dataset.name}: cases left out of training",
    )
