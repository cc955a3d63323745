"""Model folders: nnU-Net's to medseg's and back, each written whole or not at all.

nnU-Net's holds `plans.json`, `dataset.json` and `fold_<number or all>/checkpoint_final.pth`; `fold_all` is medseg's `fold_none`.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from medseg.errors import MedsegError, ModelError, PlanError, Problem, UsageError
from medseg.interop.nnunet.checkpoint import Checkpoint, network_state, read_checkpoint, write_checkpoint
from medseg.interop.nnunet.checks import dataset_problems
from medseg.interop.nnunet.convert import DATASET, PLANS, plan_of
from medseg.interop.nnunet.export import default_ending, nnunet_files
from medseg.interop.nnunet.older import load_plans
from medseg.interop.nnunet.records import NnUNetDataset, NnUNetPlans
from medseg.interop.nnunet.support import plans_problems, trainer_problem
from medseg.interop.nnunet.weights import weight_names
from medseg.models.nnunet import NnUNetSettings
from medseg.models.weights import load_weights, save_weights
from medseg.plans import Plan
from medseg.record import write_folder, write_text
from medseg.tasks.base import find_task
from medseg.workspace import Provenance, RunFolder, network_file

Fold = int | None
FINAL: Literal["final"] = "final"
ALL = "all"  # nnU-Net's name of the fold that trained on every case


def import_model(
    folder: Path, out: Path, *, folds: Sequence[Fold] | None = None, checkpoint: Literal["final", "best"] = FINAL
) -> tuple[Plan, tuple[Fold, ...]]:
    """Make a model folder of medseg out of a trained nnU-Net model; `medseg predict` on it equals `nnUNetv2_predict`.

    Args:
        folder: what nnU-Net trained, for example `nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres`.
        out: the model folder, which must not exist or be empty.
        folds: which ones (None within it is `fold_all`); None: all numbered ones, or `fold_all` where it is the only one.
        checkpoint: `final` is the end of the training; `best` the best validation, as nnU-Net estimates it.

    Returns:
        The plan, and the folds that were imported.

    Raises:
        ModelError: files or folds are missing or damaged, a custom trainer, a network, a preparation or a checkpoint that medseg does not
            have; all problems at once.
        UsageError: `out` holds something.
    """
    _check_free(out)
    problems: list[Problem] = []
    plans, dataset = _read_description(folder, problems)
    chosen = _choose(folder, folds, f"checkpoint_{checkpoint}.pth", problems)
    read: dict[Fold, Checkpoint] = {}
    for fold in chosen:
        file = _checkpoint_file(folder, fold, checkpoint)
        try:
            read[fold] = read_checkpoint(file)
        except ModelError as error:
            problems += error.problems
            continue
        wrong = trainer_problem(read[fold].trainer, str(file))
        problems += [wrong] if wrong is not None and wrong.found not in [p.found for p in problems] else []
    problems += _disagreement(read)
    if plans is not None:
        for name in dict.fromkeys(one.configuration for one in read.values()):
            try:
                problems += plans_problems(plans, plans.configuration(name), f"{folder / PLANS}, configuration '{name}'")
            except PlanError as error:
                problems += error.problems
    if problems or plans is None or dataset is None:
        raise ModelError(problems)

    first = read[chosen[0]]
    plan = plan_of(plans, dataset, first.configuration, mirror=first.mirror, trainer=first.trainer)
    settings, head = _network(plan)
    names = weight_names(settings, head)
    shapes = {name: tuple(weight.shape) for name, weight in find_task(plan.task)(plan).network().state_dict().items()}
    states = {}
    for fold, one in read.items():
        try:
            states[fold] = network_state(one, names, shapes, str(_checkpoint_file(folder, fold, checkpoint)))
        except ModelError as error:
            problems += error.problems
    if problems:
        raise ModelError(problems)

    def write(target: Path) -> None:
        run = RunFolder(target)
        plan.save(run.plan_file)
        _provenance(plan, first).save(run.provenance_file)
        for fold, state in states.items():
            save_weights(network_file(run.fold(fold), 0), state, plan.trained_digest())

    write_folder(out, write)
    return plan, chosen


def export_model(run: Path, out: Path, *, ending: str | None = None) -> tuple[str, ...]:
    """Make a folder that `nnUNetv2_predict_from_modelfolder` runs, with the result of `medseg predict`.

    Args:
        run: a model folder of medseg, imported from nnU-Net or trained here with its network and preparation.
        out: nnU-Net's model folder, which must not exist or be empty.
        ending: suffix of the images that nnU-Net will predict on; None is `.nii.gz` for volumes and `.png` for images.

    Returns:
        The folds' names for `nnUNetv2_predict_from_modelfolder -f`. A fold with several networks gives several: nnU-Net averages folds.

    Raises:
        ModelError: not a model, or one that nnU-Net cannot run with the same result; all reasons at once.
        UsageError: `out` holds something.
    """
    _check_free(out)
    folder = RunFolder(run)
    files = folder.weights()
    if partners := folder.partners():
        raise ModelError.of(
            "is an ensemble of configurations, and nnU-Net runs one configuration at a time",
            where=str(run),
            found=f"partners {', '.join(part.root.name for part in partners)}",
            fix="Export the models that it was selected of one by one, and average with nnUNetv2_ensemble.",
        )
    plan = Plan.load(folder.plan_file)
    name, plans, dataset = nnunet_files(plan, ending or default_ending(plan))
    settings, head = _network(plan)
    task = find_task(plan.task)(plan)
    folds = _numbers(files)
    names = weight_names(settings, head)

    def write(target: Path) -> None:
        plans.write(target / PLANS)
        write_text(target / DATASET, json.dumps(dataset.content(), indent=4))
        for fold, file in zip(folds, files, strict=True):
            state = load_weights(task.network(), file, plan.trained_digest()).state_dict()
            theirs = {names[ours]: weight for ours, weight in state.items()}
            write_checkpoint(
                target / f"fold_{fold}" / f"checkpoint_{FINAL}.pth",
                theirs | _untrained_heads(settings, task.heads[0].channels),
                plan.inference.mirror,
                plans=plans.content(),
                dataset=dataset.content(),
                configuration=name,
                fold=fold if fold == ALL else int(fold),
            )

    write_folder(out, write)
    return folds


def _read_description(folder: Path, problems: list[Problem]) -> tuple[NnUNetPlans | None, NnUNetDataset | None]:
    if not folder.is_dir():
        problems.append(Problem("no such folder", str(folder), fix="Pass a folder such as nnUNetTrainer__nnUNetPlans__3d_fullres."))
        return None, None
    plans: NnUNetPlans | None = None
    dataset: NnUNetDataset | None = None
    try:
        plans = load_plans(folder / PLANS)
    except MedsegError as error:
        problems += error.problems
    try:
        dataset = NnUNetDataset.load(folder / DATASET)
        problems += dataset_problems(dataset, str(folder / DATASET))
    except MedsegError as error:
        problems += error.problems
    return plans, dataset


def _choose(folder: Path, folds: Sequence[Fold] | None, file: str, problems: list[Problem]) -> tuple[Fold, ...]:
    """The folds to import; those that are missing become problems."""
    if not folder.is_dir():
        return ()
    found = sorted(int(match[1]) for path in folder.iterdir() if path.is_dir() and (match := re.fullmatch(r"fold_(\d+)", path.name)))
    present: list[Fold] = [*found] or ([None] if (folder / f"fold_{ALL}").is_dir() else [])
    wanted = list(dict.fromkeys(folds)) if folds is not None else [*range(max(found) + 1)] if found else present
    if not wanted:
        problems.append(Problem("holds no trained fold", str(folder), expected=f"fold_0/{file}", fix="Train it with nnU-Net first."))
    chosen: list[Fold] = []
    for fold in wanted:
        path = folder / _fold_name(fold)
        if (path / file).is_file():
            chosen.append(fold)
            continue
        inside = ", ".join(sorted(p.name for p in path.glob("*.pth"))) or "no checkpoint"
        complete = [_fold_name(f).removeprefix("fold_") for f in present if (folder / _fold_name(f) / file).is_file()]
        fix = f"Finish its training, or choose --folds {','.join(complete).replace(ALL, 'none')}." if complete else "Finish its training."
        problems.append(Problem("the fold is missing" if not path.is_dir() else f"the fold has no {file}", str(path), inside, file, fix))
    return tuple(chosen)


def _disagreement(read: dict[Fold, Checkpoint]) -> list[Problem]:
    """Folds that are not of one training."""
    problems = []
    for what, values in (
        ("configuration", {fold: one.configuration for fold, one in read.items()}),
        ("mirroring", {fold: str(list(one.mirror)) for fold, one in read.items()}),
        ("trainer", {fold: one.trainer for fold, one in read.items()}),
    ):
        if len(set(values.values())) > 1:
            found = ", ".join(f"{_fold_name(fold)}: {value}" for fold, value in values.items())
            problems.append(
                Problem(f"the folds differ in {what}", "checkpoints", found, "the same in all", "Choose folds of one training.")
            )
    return problems


def _fold_name(fold: Fold) -> str:
    return f"fold_{ALL if fold is None else fold}"


def _checkpoint_file(folder: Path, fold: Fold, checkpoint: str) -> Path:
    return folder / _fold_name(fold) / f"checkpoint_{checkpoint}.pth"


def _numbers(files: Sequence[Path]) -> tuple[str, ...]:
    """A fold of nnU-Net for each network: the fold's own number where each has one network, else all counted from 0."""
    names = [file.parent.name.removeprefix("fold_").replace("none", ALL) for file in files]
    return tuple(names) if len(set(names)) == len(names) else tuple(str(i) for i in range(len(names)))


def _network(plan: Plan) -> tuple[NnUNetSettings, str]:
    assert isinstance(plan.network, NnUNetSettings)
    (head,) = find_task(plan.task)(plan).heads
    return plan.network, head.name


def _untrained_heads(settings: NnUNetSettings, channels: int) -> dict[str, torch.Tensor]:
    """nnU-Net loads heads at all decoder stages, and predicts with the finest; those that were not trained here are zeros."""
    heads = {}
    for s in range(settings.deep_supervision + 1, len(settings.features) - 1):
        name = f"decoder.seg_layers.{len(settings.features) - 2 - s}"
        heads[f"{name}.weight"] = torch.zeros(channels, settings.features[s], *(1,) * len(settings.strides[0]))
        heads[f"{name}.bias"] = torch.zeros(channels)
    return heads


def _provenance(plan: Plan, checkpoint: Checkpoint) -> Provenance:
    return Provenance(
        medseg=version("medseg"),
        python=platform.python_version(),
        torch=torch.__version__,
        device=f"imported from nnU-Net: {checkpoint.trainer}, {checkpoint.configuration}",
        dataset=plan.data.name,
        dataset_digest=plan.data.digest,
        plan_digest=plan.trained_digest(),
        seed=plan.training.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError.of("is not empty", where=str(out), expected="a new or empty folder", fix="Choose another folder with -o.")
