"""The steps of the flow that several verbs share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.claim import TakenError, is_claimed
from medseg.dataset import Dataset, Split, Splits
from medseg.device import Machine, choose_device
from medseg.errors import ResourceError, UsageError
from medseg.fingerprint import Fingerprint
from medseg.garbage import importing
from medseg.held_out import predict_held_out, splits_of, with_priors
from medseg.io.layouts.base import LayoutOptions, open_dataset
from medseg.io.layouts.splits import with_splits
from medseg.io.store import Store
from medseg.parallel import Aside
from medseg.planning.verify import verify_and_measure
from medseg.plans import Plan
from medseg.preconditions import (
    check_cascade,
    check_fold_count,
    check_memory,
    check_network,
    check_outputs,
    check_same_splits,
    check_workspace,
)
from medseg.progress import Progress
from medseg.workspace import RunFolder, Workspace

# torch, lightning and mlflow take seconds to import, so what needs them is imported by the step that does.
if TYPE_CHECKING:
    from medseg.training.start import Source
    from medseg.training.train import TrainingResult

PYFUNC = Path(__file__).parent / "inference" / "pyfunc.py"  # logged with each model; MLflow runs it where the model is loaded
PAUSE = 3.0  # seconds between looks at whether another call has ended


Rules = Callable[[Dataset, Fingerprint, Machine], tuple[Plan, ...]]
"""From a dataset and its fingerprint to one plan per configuration that fits a machine."""


def opened(dataset: Path, options: LayoutOptions | None, splits: Path | None, task: str | None = None) -> Dataset:
    """What lies on disk, with the folds that the user has decided: those in `splits`, else in the dataset's own `splits_final.json`.

    `task` is the one that the user names: where it is about objects, labels of which nothing is declared are taken for these.
    """
    options = options or LayoutOptions()
    if task is not None and options.objects is None:
        from medseg.tasks.base import find_task

        options = replace(options, objects="auto" if find_task(task).objects else None)
    return with_splits(open_dataset(dataset, options), splits)


READING = ("medseg.planning.verify", "medseg.preprocessing.prepare", "scipy.ndimage")  # what a process imports that is to read cases


def measured(
    found: Dataset,
    workspace: Workspace,
    workers: int | None,
    resample_labels: bool,
    progress: Progress,
    aside: Aside[Any] | None = None,
) -> tuple[Dataset, Fingerprint]:
    """Verify a dataset and take its fingerprint; refuses a workspace that belongs to something else before it reads a voxel.

    What goes wrong `aside` meanwhile ends it.
    """
    check_workspace(workspace, found)
    for note in found.notes:
        progress.say(note)
    verified, fingerprint = verify_and_measure(found, workers, progress, resample_labels, workspace.cache, aside.check if aside else None)
    for warning in verified.warnings:
        progress.say(f"warning: {warning}")
    return verified.dataset, fingerprint


def plan_of(model: Path) -> Plan:
    """The plan of a trained model. Raises ModelError where the folder is none."""
    folder = RunFolder(model)
    folder.weights()
    return Plan.load(folder.plan_file)


def warm_up(task: str, network: str | None) -> None:
    """Import what `planned` needs: torch, and what that imports when it is first asked for a shape. Raises PlanError for an unknown name."""
    with importing():
        check_network(task, network)
        from medseg.planning import planner, shadows  # noqa: F401

        shadows.warm_up()


def planned(
    found: Dataset,
    fingerprint: Fingerprint,
    workspace: Workspace,
    task: str | None,
    network: str | None,
    offered: Machine,
    edits: Mapping[str, str] | None = None,
    rules: Rules | None = None,
    like: Plan | None = None,
) -> tuple[Plan, ...]:
    """Make the plans of a dataset, edit them, and write them, with what they were made from, into the workspace.

    `rules` of another program may take the place of medseg's own; `like` is the plan of a model whose networks are wanted again.
    """
    from medseg.planning.editing import edit_plans
    from medseg.planning.planner import make_plans
    from medseg.tasks.base import chosen_network

    if like is not None and (rules is not None or (network and chosen_network(task or found.task, network) != like.network.kind)):
        raise UsageError.of(
            "a model brings its own network", where="--like, --init", found="another network or planner", expected=f"'{like.network.kind}'",
            fix="Drop --network and --preset.",
        )  # fmt: skip
    if rules is None:
        plans = make_plans(found, fingerprint, task=task or found.task, domain=found.domain, network=network, machine=offered, like=like)
    else:
        plans = rules(found, fingerprint, offered)
    plans = edit_plans(plans, edits or {})
    for one in plans:
        check_fold_count(one, found.splits)
        check_outputs(one, found)
    found.save(workspace.dataset_file)
    if found.splits is not None:
        found.splits.save(workspace.splits_file)
    else:
        workspace.splits_file.unlink(missing_ok=True)
    fingerprint.save(workspace.fingerprint_file)
    for one in plans:
        one.save(workspace.plan_file(one.name))
    return plans


def prepared(
    chosen: Plan, workspace: Workspace, workers: int | None, progress: Progress, dataset: Dataset | None = None, previous: str = ""
) -> Store:
    """The prepared cases of a plan; those that are missing are prepared.

    Args:
        dataset: of a cascade, the workspace's dataset with priors.
        previous: digest of the model that they come from.
    """
    from medseg.preprocessing.prepare import prepare

    return prepare(
        dataset or workspace.dataset(),
        chosen,
        workspace.prepared(chosen, previous),
        workers=workers,
        progress=progress,
        cache=workspace.cache,
    )


def prepared_all(plans: Sequence[Plan], workspace: Workspace, workers: int | None, progress: Progress, dataset: Dataset) -> None:
    """Prepare the cases for several plans at a time; those of cascades need a trained model first, and are left out."""
    from medseg.preprocessing.prepare import prepare_all

    alone = {workspace.prepared(one): one for one in plans if not one.previous}
    prepare_all(dataset, alone, workers, progress, workspace.cache)


@dataclass(frozen=True)
class Training:
    """How to train any fold: what `train` and `run` were asked for."""

    seconds: float | None
    epochs: int | None
    patience: int | None
    resume: bool
    device: str
    devices: int
    workers: int | None
    progress: Progress
    init: Path | None = None


def train_fold(chosen: Plan, workspace: Workspace, folder: RunFolder, fold: int | None, how: Training) -> TrainingResult:
    """Train one fold, preparing its cases first where that has not been done; of a cascade also the stage before it, all folds."""
    from medseg.tasks.base import find_task
    from medseg.training.preflight import adopt
    from medseg.training.splits import choose_split
    from medseg.training.start import Source

    find_task(chosen.task)
    choose_device(how.device)
    predicted = check_memory(chosen)
    check_fold_count(chosen, workspace.splits())
    check_cascade(chosen, workspace.splits())
    splits = splits_of(chosen, workspace, folder, fold)
    source = Source.open(how.init, chosen, fold, choose_split(splits.folds, fold)) if how.init is not None else None
    adopt(folder, chosen)
    if fold is not None and not folder.splits_file.is_file():
        splits.save(folder.splits_file)
    dataset, previous = workspace.dataset(), ""
    if chosen.previous:
        folds = splits_of(chosen, workspace, folder, 0)
        stopped = _train_previous(chosen, workspace, folder.previous, folds, how)
        if stopped is not None:
            return stopped
        predictions = _predict_previous(folder.previous, dataset, range(len(folds.folds)), how)
        dataset, previous = with_priors(dataset, predictions, splits.folds), folder.previous.digest()
    store = prepared(chosen, workspace, how.workers, how.progress, dataset, previous)
    return train_prepared(chosen, workspace, store, splits.folds, fold, folder, how, source, predicted)


def train_prepared(
    chosen: Plan,
    workspace: Workspace,
    store: Store,
    splits: Sequence[Split],
    fold: int | None,
    folder: RunFolder,
    how: Training,
    source: Source | None,
    predicted: float,
) -> TrainingResult:
    """Train on prepared cases, with tracking; `predicted` is the memory of a step in GiB."""
    from medseg.training.budget import Budget, amount
    from medseg.training.splits import choose_split
    from medseg.training.tracking import Tracker
    from medseg.training.train import train

    tracker = Tracker.open(workspace, chosen, workspace.fingerprint())
    trained_before = folder.finished_file(fold).is_file()
    result = train(
        chosen,
        store,
        splits,
        fold,
        folder,
        Budget(how.seconds, how.epochs if how.epochs is not None or how.seconds is not None else chosen.training.epochs),
        patience=how.patience,
        resume=how.resume,
        device=how.device,
        devices=how.devices,
        tracker=tracker,
        progress=how.progress,
        licence=workspace.dataset().licence,
        source=source,
        workers=how.workers,
    )
    if result.finished and not trained_before:
        cases = len(choose_split(splits, fold).train)
        how.progress.say(amount(result.steps, chosen.training.batch_size, cases, how.seconds is not None))
    if result.memory is not None and result.finished and how.devices == 1 and not trained_before:
        how.progress.say(f"memory at the peak of a training step: {result.memory:.2f} GiB; predicted {predicted:.2f} GiB")
    return result


def _train_previous(chosen: Plan, workspace: Workspace, folder: RunFolder, splits: Splits, how: Training) -> TrainingResult | None:
    """Train all folds of the configuration before a cascade; the result of one that was interrupted, None when all are there.

    What is there already is kept: a model that was cross-validated elsewhere, with the same folds, may be put there. Several calls, one for
    each fold of the cascade, share the work: each trains folds that no other is at, and waits for those. `how.patience` is not theirs: it
    would choose their weights by the very cases that they are to predict as if they had not seen them.
    """
    plan = Plan.load(folder.plan_file if folder.plan_file.is_file() else workspace.plan_file(chosen.previous))
    if not folder.splits_file.is_file():
        splits.save(folder.splits_file)
    check_same_splits(folder, splits.folds)
    wait = _Wait(how.progress)
    told = False
    while missing := [fold for fold in range(len(splits.folds)) if not folder.finished_file(fold).is_file()]:
        if not told:
            how.progress.say(
                f"'{chosen.name}' learns from what '{plan.name}' predicts on cases that it has not seen, so that is trained first: "
                f"{len(missing)} fold{'' if len(missing) == 1 else 's'}, each as long as one of '{chosen.name}'"
            )
            told = True
        free = next((fold for fold in missing if not is_claimed(folder.fold(fold), "training")), None)
        if free is None:
            wait(f"training of fold {missing[0]} of '{plan.name}'")
            continue
        how.progress.say(f"{plan.name}, {folder.fold(free).name}")
        try:
            result = train_fold(plan, workspace, folder, free, replace(how, resume=True, init=None, patience=None))
        except TakenError:
            continue  # another call has begun it meanwhile
        if not result.finished:
            return result
    return None


def _predict_previous(folder: RunFolder, dataset: Dataset, folds: Sequence[int], how: Training) -> dict[str, Path]:
    """What the configuration before a cascade predicts on the cases that its folds left out; waits for another call that is at it."""
    wait = _Wait(how.progress)
    while True:
        if not is_claimed(folder.held_out, "prediction"):
            with suppress(TakenError):  # another call has begun meanwhile
                return predict_held_out(folder, dataset, folds, how.device, None, how.progress)
        wait("prediction of the cases left out")


class _Wait:
    """Waits a while for another call, and says once for what; Ctrl-C and signals end it like any sleep."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._said = ""

    def __call__(self, what: str) -> None:
        if what != self._said:
            self._progress.say(f"waiting for another {what}")
            self._said = what
        time.sleep(PAUSE)


def averaging(folder: RunFolder) -> str:
    """What is averaged in a prediction, in words; empty for a single network."""
    members = (folder, *folder.partners())
    files = [member.weights() for member in members]
    count = sum(map(len, files))
    folds = [", ".join(dict.fromkeys(file.parent.name for file in found)) for found in files]
    if len(members) == 1:
        return f"averaging {count} networks ({folds[0]})" if count > 1 else ""
    names = [Plan.load(folder.plan_file).name, *(member.root.name for member in members[1:])]
    said = "; ".join(f"{name}: {of}" for name, of in zip(names, folds, strict=True))
    return f"averaging {count} networks of {len(members)} configurations ({said})"


def workspace_of(runs: Sequence[Path], plans: Path | None, of: Plan) -> Workspace:
    """The workspace with the dataset of trained models: `plans`, or one that `run` left in or above a model folder.

    Raises:
        UsageError: there is none, or it is that of other data.
    """
    near = [place / "workspace" for run in runs for place in (run, run.resolve().parent.parent)]
    known = [Workspace(place) for place in ([plans] if plans is not None else near)]
    found = [one for one in known if one.dataset_file.is_file() and one.fingerprint_file.is_file()]
    if not found:
        raise UsageError.of(
            "the dataset of these models is not known",
            where="--plans" if plans is not None else str(runs[0]),
            expected="dataset.json and fingerprint.json",
            fix="Pass the folder that `medseg plan` wrote for it with --plans.",
        )
    digest = found[0].fingerprint().digest
    if digest != of.data.digest:
        raise UsageError.of(
            "these are plans of other data",
            where=str(found[0].root),
            found=f"digest {digest}",
            expected=f"'{of.data.name}', digest {of.data.digest}",
            fix="Pass the folder of plans that the models were trained with.",
        )
    return found[0]


def log_model(workspace: Workspace, folder: RunFolder, progress: Progress) -> None:
    """Log and register the model as it is now."""
    from medseg.training.tracking import Tracker

    try:
        Tracker.open(workspace, Plan.load(folder.plan_file), workspace.fingerprint()).log_model(folder, PYFUNC)
    except ResourceError as error:  # the model is on disk; tracking must not take it away
        progress.say(f"warning: the model could not be logged. {error}")
