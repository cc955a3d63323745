"""The cases that folds leave out: which they are, and how well the model does on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.dataset import Dataset
from medseg.errors import ImageError, ModelError, Problem
from medseg.evaluation.records import Before, Evaluation
from medseg.evaluation.selection import Selection
from medseg.io.images import read_case, read_prediction
from medseg.plans import Plan
from medseg.progress import Progress
from medseg.record import Record
from medseg.training.past import Past, past_of_cases
from medseg.training.splits import Split, Splits, choose_split, left_out, make_splits
from medseg.workspace import RunFolder, Workspace

if TYPE_CHECKING:
    from medseg.tasks.cleaning import HeldOut  # imports torch by its package, which takes seconds


class Learned(Record):
    """That the plan of a model folder holds what was learned of held-out predictions (`learned.json`)."""

    cases: int
    changed: bool


def splits_of(chosen: Plan, workspace: Workspace, folder: RunFolder, fold: int | None) -> Splits:
    """The splits of a model folder: the user's, or made once, then read, so that every fold and every resumption sees the same.

    Raises:
        UsageError: there is no such fold.
        ModelError: the folder has begun with other splits than the user's.
        DatasetError: there are fewer patients than folds.
    """
    dataset, given = workspace.dataset(), workspace.splits()
    present = Splits.load(folder.splits_file) if folder.splits_file.is_file() else given
    if given is not None or (present is not None and present.source):
        check_splits(folder, present, given)
    if fold is None:
        ids = {c.id for c in dataset.cases} if given is None else {i for split in given.folds for i in (*split.train, *split.val)}
        return Splits(folds=(Split(train=tuple(c.id for c in dataset.cases if c.id in ids), val=()),))
    splits = present or Splits(folds=make_splits(dataset, workspace.fingerprint(), chosen.training.folds, chosen.training.seed))
    choose_split(splits.folds, fold)
    return splits


def check_splits(folder: RunFolder, present: Splits | None, wanted: Splits | None) -> None:
    """Refuse to go on with a model of other folds than the wanted ones; None are medseg's own. Raises ModelError."""
    if (present.folds if present else None) != (wanted.folds if wanted else None):
        raise ModelError.of(
            "has begun with other splits",
            where=str(folder.root),
            found=_told(present),
            expected=_told(wanted),
            fix="Choose another folder for -o, or go on with the splits that this one has.",
        )


def check_continued(folder: RunFolder, workspace: Workspace, given: Splits | None) -> None:
    """Refuse to go on with a run of other folds than those given; without any it goes on with what it has. Raises ModelError."""
    if given is None or not (folder.plan_file.is_file() or folder.configurations.is_dir()):
        return
    begun = [file for file in (folder.splits_file, *sorted(folder.configurations.glob("*/splits.json"))) if file.is_file()]
    check_splits(folder, Splits.load(begun[0]) if begun else workspace.splits(), given)


def _told(splits: Splits | None) -> str:
    if splits is None:
        return "medseg's own"
    count = len(splits.folds)
    return f"{f'those of {splits.source}' if splits.source else 'those that medseg made'}, {count} fold{'s' if count > 1 else ''}"


def trained_with(folder: RunFolder) -> dict[str, frozenset[str]]:
    """Case -> the cases that the fold which leaves it out trains on; empty where the model folder does not say."""
    if not folder.splits_file.is_file():
        return {}
    return {case: frozenset(split.train) for split in reversed(Splits.load(folder.splits_file).folds) for case in split.val}


def trained_on(folder: RunFolder, ids: Iterable[str]) -> int:
    """How many of these cases some network of a model, or of one that it began with, has trained on; 0 where the model folder does not say."""
    wanted, seen = set(ids), set[str]()
    for file in folder.root.glob("fold_*/past.json"):
        if any(file.parent.glob("network_*.safetensors")):
            seen |= Past.load(file).seen(Plan.load(folder.plan_file).data, wanted)
    if not folder.splits_file.is_file():
        return len(seen)
    splits = Splits.load(folder.splits_file).folds
    every = {case for split in splits for case in (*split.train, *split.val)}
    trained = {file.parent for file in folder.weights()}
    seen |= every if folder.fold(None) in trained else set()
    for number, split in enumerate(splits):
        seen = seen | set(split.train) if folder.fold(number) in trained else seen
    return len(seen & wanted)


def warn_of_seen(folder: RunFolder, found: Evaluation, progress: Progress) -> None:
    """Say how many of the scored cases a model has trained on, where it has."""
    if seen := trained_on(folder, found.ids):
        progress.say(
            f"warning: the model has trained on {seen} of these {len(found.cases)} cases, so their scores say little about unseen ones "
            f"({folder.report} has those of cases it left out)"
        )


def report(
    folder: RunFolder,
    dataset: Dataset,
    folds: Sequence[int],
    selected: bool,
    device: str,
    memory: float | None,
    workers: int | None,
    learn: bool,
    progress: Progress,
) -> Evaluation:
    """Predict the cases that each fold left out, from their files and with that fold's weights alone, and evaluate them together.

    Args:
        selected: weights or configurations were chosen by their scores on these cases.
        learn: these are all cases, so let the task learn of them how to finish predictions; the plan keeps it.
    """
    from medseg.evaluation.scoring import evaluate

    splits = Splits.load(folder.splits_file).folds
    by_fold = left_out(splits, folds)
    held_out = [case for cases in by_fold.values() for case in cases]
    if learn:
        if not folder.learned_file.is_file():
            _learn(folder, dataset, predict_held_out(folder, dataset, folds, device, memory, progress, learned=False), progress)
        selected = selected or Learned.load(folder.learned_file).changed
    predict_held_out(folder, dataset, folds, device, memory, progress)
    seen, unknown = past_of_cases(folder, by_fold)
    return evaluate(
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
        selected=selected,
        before=Before(cases=seen, unknown=unknown),
        selection=Selection.load(folder.selection_file) if folder.selection_file.is_file() else None,
    )


def with_priors(dataset: Dataset, predictions: Mapping[str, Path], splits: Sequence[Split]) -> Dataset:
    """The cases of the folds with predictions (case id -> label map) of an earlier stage as a further input of each.

    Raises:
        ModelError: cases that were not predicted.
    """
    wanted = {case for split in splits for case in (*split.train, *split.val)}
    cases = [case for case in dataset.cases if case.id in wanted]
    missing = [case.id for case in cases if case.id not in predictions]
    if missing:
        raise ModelError.of(
            f"{len(missing)} cases were not predicted by the stage before, because none of its folds left them out",
            where=", ".join(missing[:5]),
            fix="Train into a new folder, so that every case is in one of the folds.",
        )
    return dataset.model_copy(update={"cases": tuple(case.model_copy(update={"prior": predictions[case.id]}) for case in cases)})


def predict_held_out(
    folder: RunFolder,
    dataset: Dataset,
    folds: Iterable[int],
    device: str,
    memory: float | None,
    progress: Progress,
    learned: bool = True,
) -> dict[str, Path]:
    """Predict the cases that folds left out with their own weights into `folder.held_out`; case id -> label map.

    Args:
        learned: with what was learned of such predictions applied.

    Raises:
        ImageError: cases that could not be predicted.
    """
    from medseg.inference.finishing import finish_written
    from medseg.inference.output import scored_formats
    from medseg.inference.predictor import Predictor

    found: dict[str, Path] = {}
    splits = Splits.load(folder.splits_file).folds
    for fold, ids in left_out(splits, folds).items():
        predictor = Predictor.load(folder.root, device=device, memory=memory, folds=[fold], learned=learned)
        cases = [dataset.case(case) for case in ids]
        if learned:
            finish_written(predictor, cases, folder.held_out)
        predicted = predictor.predict(cases, folder.held_out, formats=scored_formats(predictor.plan.data.labels), progress=progress)
        if predicted.failures:
            raise ImageError([Problem(str(failure)) for failure in predicted.failures])
        found |= {case.id: folder.held_out / case.file for case in predicted.cases}
    return found


def _learn(folder: RunFolder, dataset: Dataset, predictions: Mapping[str, Path], progress: Progress) -> None:
    """Let the task learn of predictions in which nothing is finished yet; the plan keeps it."""
    from medseg.tasks.base import learned, unlearned
    from medseg.tasks.cleaning import HeldOut

    plan = Plan.load(folder.plan_file)

    def cases() -> Iterator[HeldOut]:
        for case_id, file in progress.track(predictions.items(), len(predictions), "learn of held-out cases"):
            case = read_case(dataset.case(case_id), labels=plan.data.labels)
            assert case.label is not None
            yield HeldOut(read_prediction(file, plan.data.labels).array[0], case.label, case.grid.spacing)

    after, reasons = learned(plan, cases())
    for field, reason in reasons.items():
        progress.say(f"{field}: {reason}")
    after.save(folder.plan_file)
    Learned(cases=len(predictions), changed=after.target != unlearned(plan).target).save(folder.learned_file)
