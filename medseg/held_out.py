"""The cases that folds leave out: which they are, and how well the model does on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.dataset import Dataset
from medseg.errors import ImageError, ModelError, Problem
from medseg.evaluation.records import Evaluation
from medseg.evaluation.selection import Selection
from medseg.io.images import read_case, read_label
from medseg.plans import Plan
from medseg.progress import Progress
from medseg.record import Record
from medseg.training.splits import Split, Splits, choose_split, make_splits
from medseg.workspace import RunFolder, Workspace

if TYPE_CHECKING:
    from medseg.tasks.cleaning import HeldOut  # imports torch by its package, which takes seconds


class Learned(Record):
    """That the plan of a model folder holds what was learned of held-out predictions (`learned.json`)."""

    cases: int
    changed: bool


def splits_of(chosen: Plan, workspace: Workspace, folder: RunFolder, fold: int | None) -> tuple[Split, ...]:
    """The splits of a model folder: made once, then read, so that every fold and every resumption sees the same.

    Raises:
        UsageError: there is no such fold.
        DatasetError: there are fewer patients than folds.
    """
    dataset = workspace.dataset()
    if fold is None:
        return (Split(train=tuple(c.id for c in dataset.cases), val=()),)
    if folder.splits_file.is_file():
        splits = Splits.load(folder.splits_file).folds
    else:
        splits = make_splits(dataset, workspace.fingerprint(), chosen.training.folds, chosen.training.seed)
    choose_split(splits, fold)
    return splits


def trained_on(folder: RunFolder, ids: Iterable[str]) -> int:
    """How many of these cases some network of a model has trained on; 0 where the model folder does not say."""
    if not folder.splits_file.is_file():
        return 0
    splits = Splits.load(folder.splits_file).folds
    every = {case for split in splits for case in (*split.train, *split.val)}
    trained = {file.parent for file in folder.weights()}
    seen = every if folder.fold(None) in trained else set()
    for number, split in enumerate(splits):
        seen = seen | set(split.train) if folder.fold(number) in trained else seen
    return len(seen & set(ids))


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
    held_out = [case for fold in folds for case in choose_split(splits, fold).val]
    if learn:
        if not folder.learned_file.is_file():
            _learn(folder, dataset, predict_held_out(folder, dataset, folds, device, memory, progress, learned=False), progress)
        selected = selected or Learned.load(folder.learned_file).changed
    predict_held_out(folder, dataset, folds, device, memory, progress)
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
        selection=Selection.load(folder.selection_file) if folder.selection_file.is_file() else None,
    )


def with_priors(dataset: Dataset, predictions: Mapping[str, Path]) -> Dataset:
    """The dataset with predictions (case id -> label map) of an earlier stage as a further input of each case.

    Raises:
        ModelError: cases that were not predicted.
    """
    missing = [case.id for case in dataset.cases if case.id not in predictions]
    if missing:
        raise ModelError.of(
            f"{len(missing)} cases were not predicted by the stage before, because none of its folds left them out",
            where=", ".join(missing[:5]),
            fix="Train into a new folder, so that every case is in one of the folds.",
        )
    return dataset.model_copy(update={"cases": tuple(case.model_copy(update={"prior": predictions[case.id]}) for case in dataset.cases)})


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
    from medseg.inference.predictor import Predictor

    found: dict[str, Path] = {}
    splits = Splits.load(folder.splits_file).folds
    for fold in folds:
        predictor = Predictor.load(folder.root, device=device, memory=memory, folds=[fold], learned=learned)
        cases = [dataset.case(case) for case in choose_split(splits, fold).val]
        if learned:
            finish_written(predictor, cases, folder.held_out)
        predicted = predictor.predict(cases, folder.held_out, progress=progress)
        if predicted.failures:
            raise ImageError([Problem(str(failure)) for failure in predicted.failures])
        found |= {case.id: folder.held_out / case.file for case in predicted.cases}
    return found


def _learn(folder: RunFolder, dataset: Dataset, predictions: Mapping[str, Path], progress: Progress) -> None:
    """Let the task learn of predictions in which nothing is finished yet; the plan keeps it."""
    from medseg.tasks.base import find_task
    from medseg.tasks.cleaning import HeldOut

    plan = Plan.load(folder.plan_file)

    def cases() -> Iterator[HeldOut]:
        for case_id, file in progress.track(predictions.items(), len(predictions), "learn of held-out cases"):
            case = read_case(dataset.case(case_id))
            assert case.label is not None
            yield HeldOut(read_label(file).array[0], case.label, case.grid.spacing)

    task = find_task(plan.task)(plan)
    nothing, _ = task.learn(())
    target, reasons = task.learn(cases())
    for field, reason in reasons.items():
        progress.say(f"{field}: {reason}")
    said = {**plan.reasons, **{f"target.{field}": reason for field, reason in reasons.items()}}
    plan.model_copy(update={"target": target, "reasons": said}).save(folder.plan_file)
    Learned(cases=len(predictions), changed=target != nothing).save(folder.learned_file)
