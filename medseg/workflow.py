"""The whole flow on one page, as plain functions that a notebook can call:

    dataset -> fingerprint -> plan -> prepared cases -> windows -> network -> stitched output -> decoded prediction
            -> restored to the native geometry -> written and scored

Each verb of the command line is one call here; `pretrain`, `select`, `benchmark`, and those that only tell (`explain`, `compare`) have files of their own.
Nothing on this page knows a task or a domain by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medseg.answers import compare as compare
from medseg.answers import explain as explain
from medseg.benchmarking import benchmark as benchmark
from medseg.configurations import begin, begun, train_all
from medseg.dataset import ObjectForm
from medseg.device import Machine, choose_device, machine
from medseg.evaluation.records import Evaluation
from medseg.evaluation.selection import Selection
from medseg.held_out import check_continued, report, warn_of_seen
from medseg.io.layouts.base import LayoutOptions, Objects, make_labels
from medseg.io.store import Store
from medseg.parallel import Aside, shared_workers
from medseg.planning.verify import Verified
from medseg.planning.verify import verify as verify_dataset
from medseg.plans import Plan
from medseg.preconditions import (
    check_apart,
    check_configurations,
    check_fold_numbers,
    check_folds,
    check_length,
    check_network,
    check_wishes,
    read_plan,
)
from medseg.pretraining import pretrain as pretrain
from medseg.progress import Progress, Silent
from medseg.record import Record
from medseg.sample import sample_dataset
from medseg.selection import entrants, selected
from medseg.selection import select as select
from medseg.steps import (
    READING,
    Rules,
    Training,
    averaging,
    log_model,
    measured,
    opened,
    plan_of,
    planned,
    prepared,
    prepared_all,
    train_fold,
    warm_up,
)
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
    splits: Path | None = None,
    progress: Progress = SILENT,
) -> Verified:
    """Check every file of a dataset. Raises DatasetError with all problems at once."""
    return verify_dataset(opened(dataset, options, splits), workers=workers, progress=progress, resample_labels=resample_labels)


def plan(
    dataset: Path,
    out: Path,
    *,
    task: str | None = None,
    network: str | None = None,
    memory: float | None = None,
    device: str = "auto",
    edits: Mapping[str, str] | None = None,
    rules: Rules | None = None,
    like: Path | None = None,
    options: LayoutOptions | None = None,
    workers: int | None = None,
    resample_labels: bool = False,
    splits: Path | None = None,
    prepare: bool = False,
    progress: Progress = SILENT,
) -> tuple[Plan, ...]:
    """Verify and fingerprint a dataset, and write one plan per configuration into the workspace `out`.

    Args:
        task: what the annotations mean; None takes what the dataset's layout says.
        memory: GiB that training may use; None takes what the machine has.
        device: what training will run on; with `memory` it need not exist here.
        edits: values to replace in every configuration that has the field (see `medseg.planning.editing.edit_plans`).
        splits: a file with the folds of cross-validation, nnU-Net's `splits_final.json` or medseg's `splits.json`; None takes the
            `splits_final.json` of the dataset, where there is one, and else lets medseg decide.
        rules: another program's planner in place of medseg's, for example `medseg.interop.nnunet.planning.Presets("nnunet")`.
        prepare: also prepare the cases for every configuration (see `preprocess`), except cascades, which need a trained model first.
        like: a model folder; the configuration of its kind takes its network, and what the weights of this depend on, and is recommended.
    """
    workspace = Workspace(out)
    with shared_workers(workers, READING):
        described = opened(dataset, options, splits, task)

        def asked() -> tuple[Machine, Plan | None]:
            warm_up(task or described.task, network)
            return machine(device, memory), plan_of(like) if like is not None else None

        aside = Aside(asked)  # torch is imported while other processes read the cases
        if edits and rules is None:
            check_wishes(described, (), edits, task, plan_of(like).network.kind if like is not None else network, prefixed=True)
        found, fingerprint = measured(described, workspace, workers, resample_labels, progress, aside)
        offered, model = aside.result()
        plans = planned(found, fingerprint, workspace, task, network, offered, edits, rules, model)
        if prepare:
            prepared_all(plans, workspace, workers, progress, found)
    return plans


def preprocess(plan_file: Path, *, workers: int | None = None, progress: Progress = SILENT) -> Store:
    """Prepare every case of the plan's dataset; finished cases are kept, so it goes on after an interruption."""
    with shared_workers(workers, READING):
        return prepared(read_plan(plan_file), Workspace.of_plan(plan_file), workers, progress)


def train(
    plan_file: Path,
    out: Path,
    *,
    fold: int | None = 0,
    seconds: float | None = None,
    epochs: int | None = None,
    patience: int | None = None,
    resume: bool = False,
    init: Path | None = None,
    edits: Mapping[str, str] | None = None,
    device: str = "auto",
    devices: int = 1,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> TrainingResult:
    """Train one fold (None: on every case) into the model folder `out`; the length is `seconds`, `epochs`, or the plan's epochs.

    Args:
        init: a model folder, trained or pre-trained, with whose weights the networks begin where they fit; None: anew.
    """
    check_length(seconds, epochs)
    how = Training(seconds, epochs, patience, resume, device, devices, workers, progress, init)
    workspace, folder = Workspace.of_plan(plan_file), RunFolder(out)
    result = train_fold(read_plan(plan_file).edited(dict(edits or {})), workspace, folder, fold, how)
    if result.finished:
        log_model(workspace, folder, progress)
    return result


def predict(
    run: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    formats: Sequence[str] = (),
    series: Sequence[str] = (),
    probabilities: bool = False,
    uncertainty: bool = False,
    mirror: bool = True,
    overwrite: bool = False,
    device: str = "auto",
    memory: float | None = None,
    progress: Progress = SILENT,
) -> Predicted:
    """Predict on image files or folders; a failing case does not stop the others and is listed in the result.

    Args:
        formats: in which each case is written (`medseg.io.exports`); none: a DICOM segmentation for DICOM, else as the input.
        series: which DICOM series serve as channels, where rules do not tell: `T1=3` by number, `T1=PATTERN` by description.
    """
    from medseg.inference.predictor import Predictor

    predictor = Predictor.load(run, device=device, memory=memory)
    if series:
        predictor = predictor.with_series(series)
    if told := averaging(RunFolder(run)):
        progress.say(told)
    return predictor.predict(
        list(inputs),
        out,
        formats=formats,
        probabilities=probabilities,
        uncertainty=uncertainty,
        mirror=mirror,
        overwrite=overwrite,
        progress=progress,
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
    channel: str | None = None,
    objects: Objects | None = None,
    predicted: ObjectForm | None = None,
    confidence: float | None = None,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Score a folder of predictions, or a COCO file of them, against a dataset or a folder of labels; writes JSON, CSV and an HTML page into
    `out`.

    Classes come from `classes`, else from the model `run` (which also gives the page its plan and training curves), else from the
    dataset, else from the values found in the references. `channel` is the one on whose grid the cases of a dataset are read, as in
    `LayoutOptions.reference`; without it that of the model `run`. `objects` says how the references tell objects apart
    (`LayoutOptions.objects`), where neither model nor dataset does; `predicted` how predictions of another program do.
    Of a COCO file, objects of at least `confidence` are in the label maps that all is scored of but average precision and FROC.
    """
    from medseg.evaluation.scoring import evaluate as score_folder

    model = RunFolder(run) if run else None
    if out is not None:
        check_apart(out, predictions, reference)
    labels = (
        make_labels(LayoutOptions(classes=classes, objects="components" if objects == "auto" else objects), {}, reference)
        if classes
        else None
    )
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
        channel=channel,
        curves=model.curves() if model else (),
        objects=objects,
        predicted=predicted,
        confidence=confidence,
    )
    if model is not None:
        warn_of_seen(model, found, progress)
    return found


class RunResult(Record):
    """What `run` produced; `interrupted` names the signal that stopped it early, `plan` is that of the model, or of the training it stopped."""

    model: Path
    plan: str
    folds: tuple[int | None, ...]
    selection: Selection | None = None
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
    configuration: str | Sequence[str] | None = None,
    init: Path | None = None,
    edits: Mapping[str, str] | None = None,
    task: str | None = None,
    network: str | None = None,
    memory: float | None = None,
    device: str = "auto",
    devices: int = 1,
    options: LayoutOptions | None = None,
    workers: int | None = None,
    resample_labels: bool = False,
    splits: Path | None = None,
    progress: Progress = SILENT,
) -> RunResult:
    """Everything from a dataset to a model with its report. Called again with the same `out`, it goes on where it was interrupted.

    With `folds="all"` every configuration is cross-validated, and the best one, or several together, become the model (see `select`).
    Otherwise one configuration is trained, and the report covers the cases that the folds wanted by this call left out, not those of folds
    trained by earlier calls; with `folds=(None,)` every case trains and there is none.

    Args:
        seconds, epochs: length of each training.
        folds: folds to train, `None` among them for a model of every case; or "all" for cross-validation.
        configuration: names of the plans to train; None takes the recommended one, and for cross-validation all of them.
        init: a model folder, trained or pre-trained, with whose weights the networks begin; the dataset is planned for its network alone.
        splits: as in `plan`; a run that has begun goes on with the folds it has.
    """
    several = folds == "all"
    names = (configuration,) if isinstance(configuration, str) else tuple(configuration or ())
    check_length(seconds, epochs)
    check_folds(folds)
    check_configurations(names, several)
    choose_device(device)  # planning for a device that is not here would only end in a training that cannot begin
    offered, edits = machine(device, memory), dict(edits or {})
    folder, workspace = RunFolder(out), Workspace(out / "workspace")
    like = plan_of(init) if init is not None else None
    found = opened(dataset, options, splits, task)
    check_continued(folder, workspace, found.splits)
    check_network(task or found.task, network)
    check_wishes(found, names, edits, task, like.network.kind if like else network)
    if "training.folds" not in edits:
        check_fold_numbers(folds, folder, found)
    found, fingerprint = measured(found, workspace, workers, resample_labels, progress)
    chosen = begun(folder, found, fingerprint, names, edits, several, progress)
    if not chosen:
        plans = planned(found, fingerprint, workspace, task, network, offered, like=like)
        chosen = begin(folder, plans, names, edits, several, found.splits, progress)
    wanted: tuple[int | None, ...] = tuple(range(chosen[0].plan.training.folds)) if folds == "all" else tuple(folds)
    how = Training(seconds, epochs, patience, True, device, devices, workers, progress, init)
    results = train_all(chosen, workspace, wanted, how)
    trained, plan = results[-1], chosen[(len(results) - 1) // len(wanted)].plan
    selection = evaluation = None
    if trained.finished:
        if len(chosen) > 1:
            of, folded = entrants([one.folder.root for one in chosen])
            selection = selected(of, folded, workspace.dataset(), folder, device, memory, workers, progress)
            plan = Plan.load(folder.plan_file)
        if held_out := [fold for fold in wanted if fold is not None]:
            optimistic = selection is not None or any(result.patience is not None for result in results)
            evaluation = report(folder, workspace.dataset(), held_out, optimistic, device, memory, workers, several, progress)
        log_model(workspace, folder, progress)
    return RunResult(
        model=out,
        plan=plan.name,
        folds=wanted,
        selection=selection,
        report=folder.report if evaluation else None,
        evaluation=evaluation,
        tracking=trained.tracking,
        interrupted=trained.interrupted,
    )


def demo(out: Path, *, seconds: float | None = 100.0, progress: Progress = SILENT) -> RunResult:
    """`run` on the real sample that is shipped with medseg."""
    return run(sample_dataset(), out, seconds=seconds, progress=progress)
