"""The cases that folds leave out: which they are, and how well the model does on them."""

from __future__ import annotations

from collections.abc import Sequence

from medseg.dataset import Dataset
from medseg.errors import ImageError, Problem
from medseg.evaluation.records import Evaluation
from medseg.plans import Plan
from medseg.progress import Progress
from medseg.training.splits import Split, Splits, choose_split, make_splits
from medseg.workspace import RunFolder, Workspace


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
        Splits(folds=splits).save(folder.splits_file)
    choose_split(splits, fold)
    return splits


def report(
    folder: RunFolder,
    dataset: Dataset,
    folds: Sequence[int],
    selected: bool,
    device: str,
    memory: float | None,
    workers: int | None,
    progress: Progress,
) -> Evaluation:
    """Predict the cases that each fold left out, from their files and with that fold's weights alone, and evaluate them together.

    `selected` says that weights were chosen by validation on these cases.
    """
    from medseg.evaluation.scoring import evaluate
    from medseg.inference.predictor import Predictor

    splits = Splits.load(folder.splits_file).folds
    held_out: list[str] = []
    for fold in folds:
        ids = choose_split(splits, fold).val
        held_out += ids
        predictor = Predictor.load(folder.root, device=device, memory=memory, folds=[fold])
        predicted = predictor.predict([dataset.case(i) for i in ids], folder.held_out, progress=progress)
        if predicted.failures:
            raise ImageError([Problem(str(failure)) for failure in predicted.failures])
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
    )
