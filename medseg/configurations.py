"""The configurations of a run: chosen or found again, each in a model folder of its own, and trained one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.dataset import Dataset, Splits
from medseg.errors import PlanError, Problem
from medseg.fingerprint import Fingerprint
from medseg.plans import Plan
from medseg.preconditions import check_begun, check_cascade, check_continuation, check_memory, unseen
from medseg.progress import Progress
from medseg.record import write_folder
from medseg.steps import Training, train_fold
from medseg.workspace import RunFolder, Workspace

# torch, lightning and mlflow take seconds to import, so what needs them is imported by the step that does.
if TYPE_CHECKING:
    from medseg.training.train import TrainingResult


@dataclass(frozen=True)
class Configuration:
    """A configuration of a run, and the model folder in which its folds are trained."""

    plan: Plan
    folder: RunFolder


def begun(
    folder: RunFolder,
    found: Dataset,
    fingerprint: Fingerprint,
    names: Sequence[str],
    edits: Mapping[str, str],
    several: bool,
    progress: Progress,
) -> tuple[Configuration, ...]:
    """The configurations with which a run has begun, with the plans it has; none for a new run.

    Raises:
        ModelError: it is a run of other data, of other configurations, or of other plans than the wanted ones.
    """
    plans = sorted(folder.configurations.glob("*/plan.json")) or ([folder.plan_file] if folder.plan_file.is_file() else [])
    present = _in_order([Configuration(Plan.load(file), RunFolder(file.parent)) for file in plans])
    if not present:
        return ()
    check_begun(folder, [one.plan.name for one in present], names, several)
    for one in present:
        check_continuation(folder, one.plan, found, fingerprint, None if len(present) > 1 or not names else names[0], edits)
    progress.say(
        f"going on with the plan{'s' if len(present) > 1 else ''} in {folder.plan_file if len(present) == 1 else folder.configurations}"
    )
    return present


def begin(
    folder: RunFolder,
    plans: Sequence[Plan],
    names: Sequence[str],
    edits: Mapping[str, str],
    several: bool,
    splits: Splits | None,
    progress: Progress,
) -> tuple[Configuration, ...]:
    """The configurations of a new run: the wanted or recommended one; of several the named ones or all, each in a folder of its own.

    All are without a cascade that the user's `splits` do not allow.

    Raises:
        PlanError: there is no such configuration, or a configuration cannot take an edit or these splits; all problems at once.
    """
    from medseg.planning.planner import choose_plan

    chosen = [choose_plan(plans, name) for name in names] or (_possible(plans, splits, progress) if several else [choose_plan(plans, None)])
    edited: list[Plan] = []
    problems: list[Problem] = []
    for one in chosen:
        try:
            check_cascade(one, splits)
            edited.append(one.edited(dict(edits)))
            if len(chosen) > 1 and edits:  # the last of them must not be refused after days of training the others
                check_memory(edited[-1])
        except PlanError as error:
            said = f"configuration '{one.name}', " if len(chosen) > 1 else ""
            problems += [replace(problem, where=f"{said}{problem.where}") for problem in error.problems]
    if problems:
        raise PlanError(problems)
    if len(edited) == 1:
        return (Configuration(edited[0], folder),)

    def write(target: Path) -> None:
        for one in edited:
            one.save(target / one.name / folder.plan_file.name)

    write_folder(folder.configurations, write)
    return _in_order([Configuration(one, RunFolder(folder.configurations / one.name)) for one in edited])


def _possible(plans: Sequence[Plan], splits: Splits | None, progress: Progress) -> list[Plan]:
    """The plans that these splits allow; says which they do not."""
    for one in plans:
        if cases := unseen(one, splits):
            progress.say(
                f"{one.name} is left out: it learns from predictions of cases that '{one.previous}' has not seen, and no fold leaves out "
                f"{len(cases)} of the training cases"
            )
    return [one for one in plans if not unseen(one, splits)]


def _in_order(configurations: Sequence[Configuration]) -> tuple[Configuration, ...]:
    """By name, but each after the one that it takes the prediction of."""
    previous = {one.plan.name: one.plan.previous for one in configurations}

    def stage(name: str) -> int:
        return 1 + stage(previous[name]) if name in previous else 0

    return tuple(sorted(configurations, key=lambda one: (stage(one.plan.name), one.plan.name)))


def train_all(chosen: Sequence[Configuration], workspace: Workspace, folds: Sequence[int | None], how: Training) -> list[TrainingResult]:
    """Train the folds of every configuration, one after another in the order given; a training that is interrupted is the last.

    A cascade whose earlier stage is among them takes it from there, unless patience chose its weights by the cases that it would predict.
    """
    homes = {one.plan.name: one.folder for one in chosen}
    several = _foretell(chosen, folds, how)
    results: list[TrainingResult] = []
    for one in chosen:
        if how.patience is None and one.plan.previous in homes and not one.folder.previous.plan_file.is_file():
            _copy_trained(homes[one.plan.previous], one.folder.previous)
        for fold in folds:
            if several:
                how.progress.say(f"{one.plan.name}, {one.folder.fold(fold).name}")
            results.append(train_fold(one.plan, workspace, one.folder, fold, how))
            if not results[-1].finished:
                return results
    return results


def _foretell(chosen: Sequence[Configuration], folds: Sequence[int | None], how: Training) -> bool:
    """Say what trainings will take, and whether there are several."""
    from medseg.training.budget import length

    names = [one.plan.name for one in chosen]
    stages = [one for one in chosen if one.plan.previous and (how.patience is not None or one.plan.previous not in names)]
    trainings = [one.folder.finished_file(fold) for one in chosen for fold in folds]
    trainings += [one.folder.previous.finished_file(fold) for one in stages for fold in range(one.plan.training.folds)]
    count = len(trainings)
    if count > 1:
        epochs = sorted({how.epochs if how.epochs is not None else one.plan.training.epochs for one in chosen})
        each = length(how.seconds, None) if how.seconds is not None else " or ".join(length(None, n) for n in epochs)
        total = "" if how.seconds is None else f", {length(how.seconds * count, None)} in all (preparing and predicting come on top)"
        names += [f"{one.plan.previous} for {one.plan.name}" for one in stages]
        what = "" if len(names) == 1 else f"{len(names)} configurations ({', '.join(names)}): "
        done = sum(file.is_file() for file in trainings)
        how.progress.say(f"{what}{count} trainings of {each}{total}" + (f"; {done} of them are done" if done else ""))
    return count > 1


def _copy_trained(folder: RunFolder, target: RunFolder) -> None:
    """A copy of a cross-validated model in which its folds count as trained."""
    further = [folder.splits_file, *folder.curves(), *folder.root.glob("fold_*/state/finished.json"), *folder.origins()]
    write_folder(target.root, lambda place: folder.copy(place, further))
