"""What nnU-Net trained, read from its model folders with everything checked; of a cascade also the stages before it.

A folder holds `plans.json`, `dataset.json` and `fold_<number or all>/checkpoint_final.pth`; `fold_all` is medseg's `fold_none`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from medseg.errors import MedsegError, ModelError, PlanError, Problem
from medseg.interop.nnunet.checkpoint import Checkpoint, network_state, read_checkpoint
from medseg.interop.nnunet.checks import dataset_problems
from medseg.interop.nnunet.convert import DATASET, PLANS, plan_of
from medseg.interop.nnunet.older import load_plans
from medseg.interop.nnunet.records import NnUNetDataset, NnUNetPlans
from medseg.interop.nnunet.support import plans_problems, trainer_problem
from medseg.interop.nnunet.weights import weight_names
from medseg.models.nnunet import NnUNetSettings
from medseg.plans import Plan
from medseg.tasks.base import find_task

Fold = int | None
Kind = Literal["final", "best"]
FINAL: Kind = "final"
ALL = "all"  # nnU-Net's name of the fold that trained on every case


@dataclass(frozen=True)
class TrainedModel:
    """A model of nnU-Net as medseg has it.

    Attributes:
        plan: of all folds.
        trainer: name of the class that trained.
        states: weights of each fold under medseg's names; they may lie in the checkpoints.
        previous: of a cascade, the model of the stage before.
    """

    plan: Plan
    trainer: str
    states: Mapping[Fold, Mapping[str, Tensor]]
    previous: TrainedModel | None


def read_model(
    folder: Path, folds: Sequence[Fold] | None, checkpoint: Kind, previous: Path | None = None, later: tuple[Path, ...] = ()
) -> TrainedModel:
    """Read a model folder, and those of the stages before it.

    Args:
        folder, folds, checkpoint, previous: see `import_model`.
        later: folders of the stages after it.

    Raises:
        ModelError: see `import_model`; all problems at once.
    """
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
    stages: dict[str, str | None] = {}
    if plans is not None:
        for name in dict.fromkeys(one.configuration for one in read.values()):
            try:
                configuration = plans.configuration(name)
                problems += plans_problems(plans, configuration, f"{folder / PLANS}, configuration '{name}'")
                stages[name] = configuration.previous_stage
            except PlanError as error:
                problems += error.problems
    earlier: TrainedModel | None = None
    if len(stages) == 1:
        try:
            earlier = _read_previous(folder, *stages.popitem(), chosen, checkpoint, previous, later)
        except ModelError as error:
            problems += error.problems
    if problems or plans is None or dataset is None:
        raise ModelError(problems)

    first = read[chosen[0]]
    plan = plan_of(plans, dataset, first.configuration, mirror=first.mirror, trainer=first.trainer)
    problems += _misfits(plan, earlier, folder)
    settings, head = network_of_plan(plan)
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
    return TrainedModel(plan, first.trainer, states, earlier)


def network_of_plan(plan: Plan) -> tuple[NnUNetSettings, str]:
    """The network of a plan that nnU-Net has too, and the name of its head."""
    assert isinstance(plan.network, NnUNetSettings)
    (head,) = find_task(plan.task)(plan).heads
    return plan.network, head.name


def _read_previous(
    folder: Path, name: str, stage: str | None, folds: tuple[Fold, ...], checkpoint: Kind, previous: Path | None, later: tuple[Path, ...]
) -> TrainedModel | None:
    """The model of the stage before configuration `name`: in `previous`, or where nnU-Net puts it, beside `folder`."""
    where, fix = str(folder), "Leave --previous out."
    if stage is None:
        if previous is not None:
            raise ModelError.of(f"'{name}' is no cascade, so it has no stage before", where=where, found=str(previous), fix=fix)
        return None
    here = folder.resolve()
    found = previous
    if found is None and here.name.endswith(name):
        found = here.with_name(here.name.removesuffix(name) + stage)
    if found is None or not found.is_dir():
        raise ModelError.of(
            f"'{name}' is a cascade, and the model of the stage before it is missing",
            where=where,
            found="no folder " + (str(found) if found is not None else f"is named as that of '{name}'"),
            expected=f"the model folder of '{stage}'",
            fix=f"Pass it with --previous, or train '{stage}' with nnU-Net first.",
        )
    if found.resolve() in (here, *later):
        raise ModelError.of("the stages of this cascade need each other", where=where, found=f"'{name}' needs '{stage}'")
    model = read_model(found, folds, checkpoint, later=(here, *later))
    if model.plan.name != stage:
        raise ModelError.of(
            f"is not the stage before '{name}'",
            where=str(found),
            found=f"a model of '{model.plan.name}'",
            expected=f"'{stage}'",
            fix="Pass the right folder with --previous.",
        )
    return model


def _misfits(plan: Plan, earlier: TrainedModel | None, folder: Path) -> list[Problem]:
    """Whether two stages were trained on the same channels and labels."""
    if earlier is None:
        return []
    ours, theirs = plan.data, earlier.plan.data
    return [
        Problem(f"the stage before was trained with other {what}", str(folder), found, expected, "Pass the right folder with --previous.")
        for what, found, expected in (
            ("channels", str(len(theirs.channels)), str(len(ours.channels))),
            ("label values", str(list(theirs.labels.values)), str(list(ours.labels.values))),
        )
        if found != expected
    ]


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
