"""From trained models of several configurations to one model: the best of them, or some of them together."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.claim import Claim
from medseg.dataset import Dataset, file_digest
from medseg.device import choose_device
from medseg.errors import ImageError, MedsegError, ModelError, Problem, UsageError
from medseg.evaluation.records import Evaluation
from medseg.evaluation.selection import Selection, candidates, case_scores, choose, folder_name
from medseg.held_out import report
from medseg.plans import Plan
from medseg.progress import Progress, Silent
from medseg.record import Record, write_folder
from medseg.steps import log_model, workspace_of
from medseg.training.splits import Splits, left_out
from medseg.workspace import Members, Provenance, RunFolder

SILENT = Silent()
CANDIDATES = ".candidates"  # folder of their predictions, until one is chosen
STAGED = ".selected"  # the chosen model, until it is whole
WRITTEN = ("plan.json", "provenance.json", "splits.json", "learned.json", "fold_*", "partners", "held_out", "report")


@dataclass(frozen=True)
class Entrant:
    """A trained model that may become the model, or a part of it.

    Attributes:
        name: of its configuration; of its folder, where several entrants are of one configuration.
        folder: where every fold is trained.
        plan: its plan.
    """

    name: str
    folder: RunFolder
    plan: Plan


class SelectResult(Record):
    """What `select` produced."""

    model: Path
    selection: Selection
    report: Path
    evaluation: Evaluation


def select(
    runs: Sequence[Path],
    out: Path,
    *,
    plans: Path | None = None,
    device: str = "auto",
    memory: float | None = None,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> SelectResult:
    """Make the best of several models, or some of them together, the model `out`, by their predictions of the cases that folds left out.

    Called again, it goes on where it was interrupted. The report is that of the chosen model, which may have learned how to clean its
    predictions.

    Args:
        runs: model folders whose folds are all trained, with the same splits of the same dataset.
        plans: the workspace of that dataset; None takes the one that lies in a model folder of `run`.
    """
    choose_device(device)
    folder = RunFolder(out)
    of, splits = entrants(runs)
    workspace = workspace_of(runs, plans, of[0].plan)
    dataset = workspace.dataset()
    selection = selected(of, splits, dataset, folder, device, memory, workers, progress)
    evaluation = report(folder, dataset, range(len(splits.folds)), True, device, memory, workers, True, progress)
    log_model(workspace, folder, progress)
    return SelectResult(model=out, selection=selection, report=folder.report, evaluation=evaluation)


def entrants(runs: Sequence[Path]) -> tuple[tuple[Entrant, ...], Splits]:
    """The models in these folders, and the splits that they all have.

    Raises:
        UsageError: fewer than two folders.
        ModelError: folders that cannot be compared; all problems at once.
    """
    if len({run.resolve() for run in runs}) < 2:
        raise UsageError.of(
            "there is nothing to select of", found=", ".join(map(str, runs)), expected="two different model folders or more"
        )
    problems: list[Problem] = []
    found: list[tuple[RunFolder, Plan, Splits]] = []
    for run in runs:
        try:
            found.append(_opened(RunFolder(run)))
        except MedsegError as error:
            problems += error.problems
    for folder, plan, splits in found[1:]:
        problems += _differences(folder, plan, splits, *found[0])
    names = [plan.name for _, plan, _ in found]
    if len(set(names)) < len(names):
        names = [folder.root.resolve().name for folder, _, _ in found]
    twice = [name for name, count in Counter(names).items() if count > 1]
    problems += [Problem("several model folders have this name", found=f"'{name}'", fix="Rename one of the folders.") for name in twice]
    if problems:
        raise ModelError(problems)
    return tuple(Entrant(name, folder, plan) for name, (folder, plan, _) in zip(names, found, strict=True)), found[0][2]


def selected(
    of: Sequence[Entrant],
    splits: Splits,
    dataset: Dataset,
    out: RunFolder,
    device: str,
    memory: float | None,
    workers: int | None,
    progress: Progress,
) -> Selection:
    """Make the best of several models, or some of them together, the model in `out`. Goes on where it was interrupted.

    Each model predicts each case once, by the networks that did not train on it. Of the chosen candidate the predictions stay as `held_out`.

    Raises:
        UsageError: `out` holds something else, or is one of the models; another call is writing there.
        ImageError: cases that cannot be predicted; all of them at once.
    """
    key = _key(of, splits)
    _check_out(out, of, key)
    with Claim(out.root, "selection"):
        if out.selection_file.is_file() and out.plan_file.is_file():
            selection = Selection.load(out.selection_file)
            progress.say(f"selected already: {' + '.join(selection.chosen)}")
        else:
            selection = _compared(of, splits, dataset, out, key, device, memory, workers, progress)
            _assemble(selection, of, splits, out)
        # The predictions are known already; should they be lost, they are made again.
        chosen = out.root / CANDIDATES / folder_name(selection.chosen)
        if chosen.is_dir() and not out.held_out.exists():
            os.replace(chosen, out.held_out)
        shutil.rmtree(out.root / CANDIDATES, ignore_errors=True)
    return selection


def _opened(folder: RunFolder) -> tuple[RunFolder, Plan, Splits]:
    """A model of which every fold is trained. Raises ModelError or PlanError."""
    trained = {file.parent for file in folder.weights()}
    plan = Plan.load(folder.plan_file)
    if folder.partners():
        raise ModelError.of("is an ensemble already", where=str(folder.root), fix="Pass the models that it was selected of.")
    if not folder.splits_file.is_file():
        raise ModelError.of(
            "does not say which cases its folds left out",
            where=str(folder.root),
            expected=folder.splits_file.name,
            fix="Pass a folder in which `medseg run` or `medseg train` trained every fold.",
        )
    splits = Splits.load(folder.splits_file)
    missing = [number for number in range(len(splits.folds)) if folder.fold(number) not in trained]
    if missing:
        raise ModelError(
            Problem(
                f"{len(missing)} of {len(splits.folds)} folds are not trained",
                str(folder.root),
                f"no {', '.join(f'fold_{number}' for number in missing)}",
                "every fold",
                f"Train {'it' if len(missing) == 1 else 'them'}: `medseg train PLAN --fold {missing[0]} -o {folder.root}`, or `medseg run "
                "--folds all`.",
            )
        )
    return folder, plan, splits


def _differences(folder: RunFolder, plan: Plan, splits: Splits, first: RunFolder, other: Plan, others: Splits) -> list[Problem]:
    """In what two models differ that keeps them from being compared."""
    pairs = (
        ("the task", plan.task, other.task),
        ("the dataset", f"'{plan.data.name}', digest {plan.data.digest}", f"'{other.data.name}', digest {other.data.digest}"),
        ("the classes", ", ".join(plan.data.labels.names), ", ".join(other.data.labels.names)),
        ("the classes' values", plan.data.labels, other.data.labels),
        ("the splits", f"{len(splits.folds)} folds", f"{len(others.folds)} folds"),
        ("the cases of the folds", splits.folds, others.folds),
    )
    for what, here, there in pairs:
        if here != there:
            told = isinstance(here, str)
            return [
                Problem(
                    f"{what} differ{'s' if not what.endswith('s') else ''} from the first model's",
                    str(folder.root),
                    str(here) if told else "",
                    f"{there}, as in {first.root}" if told else f"the same as in {first.root}",
                    "Select of models that were trained on the same folds of the same dataset.",
                )
            ]
    return []


def _key(of: Sequence[Entrant], splits: Splits) -> str:
    """Changes with whatever the choice depends on: weights, plans but for what was learned later, and folds."""
    parts = [f"{one.name} {one.plan.trained_digest()} {' '.join(map(file_digest, one.folder.weights()))}{_stage_key(one)}" for one in of]
    return hashlib.blake2b("/".join([*sorted(parts), Splits(folds=splits.folds).to_json()]).encode(), digest_size=8).hexdigest()


def _stage_key(one: Entrant) -> str:
    return f" {one.folder.previous.digest()}" if one.plan.previous else ""


def _check_out(out: RunFolder, of: Sequence[Entrant], key: str) -> None:
    """Whether the model may be written there. Raises UsageError."""
    root = out.root.resolve()
    for one in of:
        if root.is_relative_to(one.folder.root.resolve()):
            raise UsageError.of("the output would lie in one of the models", where=str(out.root), fix="Choose another folder for -o.")
    if out.selection_file.is_file() and Selection.load(out.selection_file).key != key:
        raise UsageError.of("holds a model that was selected of others", where=str(out.root), fix="Choose another folder for -o.")
    taken = [path.name for pattern in WRITTEN for path in sorted(out.root.glob(pattern))]
    if taken and not out.selection_file.is_file() and not (out.root / STAGED).is_dir():
        raise UsageError.of("holds a model already", where=str(out.root), found=", ".join(taken), fix="Choose another folder for -o.")


def _compared(
    of: Sequence[Entrant],
    splits: Splits,
    dataset: Dataset,
    out: RunFolder,
    key: str,
    device: str,
    memory: float | None,
    workers: int | None,
    progress: Progress,
) -> Selection:
    """Predict the cases left out by every candidate, score them, and choose."""
    from medseg.evaluation.scoring import evaluate
    from medseg.inference.candidates import Candidates
    from medseg.inference.checks import case_problems
    from medseg.inference.output import scored_formats
    from medseg.inference.predictor import Predictor
    from medseg.tasks.base import find_task

    todo = [(fold, dataset.case(case)) for fold, cases in left_out(splits.folds, range(len(splits.folds))).items() for case in cases]
    names = candidates([one.name for one in of])
    if not find_task(of[0].plan.task).combines:
        names = tuple(name for name in names if len(name) == 1)
    taken: dict[Members, float] = dict.fromkeys(names, 0.0)
    problems: list[Problem] = []
    members: dict[str, Predictor] = {}
    loaded: int | None = None
    folders = {name: out.root / CANDIDATES / folder_name(name) for name in names}
    with Candidates(folders, [files for _, files in todo], scored_formats(of[0].plan.data.labels)) as contest:
        for fold, files in progress.track(todo, len(todo), f"predict by {len(of)} models"):
            if fold != loaded:
                members.clear()  # before others take their memory
                members |= {one.name: Predictor.load(one.folder.root, device, memory, [fold], learned=False) for one in of}
                loaded = fold
            try:
                for candidate, entry in contest.predict(members, files).items():
                    taken[candidate] += entry.seconds
            except Exception as error:  # the other cases go on, and the next call has them
                problems += case_problems(files, error)
    if problems:
        raise ImageError(problems)
    metric = find_task(of[0].plan.task).metrics[0]
    ids = [files.id for _, files in todo]
    scores = {
        name: case_scores(evaluate(folders[name], dataset, None, None, workers, progress, plan=of[0].plan, metrics=[metric], cases=ids))
        for name in names
    }
    return choose(scores, {name: seconds / len(todo) for name, seconds in taken.items()}, metric, key)


def _assemble(selection: Selection, of: Sequence[Entrant], splits: Splits, out: RunFolder) -> None:
    """Copy the chosen models into one model folder. Until it is whole there is no `plan.json`, so nothing takes it for a model."""
    staged = RunFolder(out.root / STAGED)
    shutil.rmtree(staged.root, ignore_errors=True)
    write_folder(staged.root, lambda target: _stage(selection, {one.name: one for one in of}, splits, RunFolder(target)))
    last = (staged.selection_file, staged.plan_file)
    for part in sorted(staged.root.iterdir(), key=lambda path: last.index(path) if path in last else -1):
        place = out.root / part.name
        if place.is_dir():
            shutil.rmtree(place)  # of a call that was interrupted here
        os.replace(part, place)
    staged.root.rmdir()


def _stage(selection: Selection, of: Mapping[str, Entrant], splits: Splits, staged: RunFolder) -> None:
    from medseg.tasks.base import unlearned

    (root, *partners) = (of[name] for name in selection.chosen)
    for one, target in ((root, staged), *((one, staged.partner(one.name)) for one in partners)):
        one.folder.copy(target.root, (*one.folder.curves(), *one.folder.origins()))
        unlearned(one.plan).save(target.plan_file)
    digests = {one.name: one.plan.trained_digest() for one in partners}
    Provenance.load(staged.provenance_file).model_copy(update={"partners": digests}).save(staged.provenance_file)
    splits.save(staged.splits_file)
    selection.save(staged.selection_file)
