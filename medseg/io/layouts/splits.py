"""Folds that a user has decided: nnU-Net's `splits_final.json` or medseg's `splits.json`.

nnU-Net's file is a list with one `{"train": [case ids], "val": [case ids]}` per fold, of any number of folds
(https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/manual_data_splits.md); medseg's has the same list under `folds`.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from medseg.dataset import Dataset, Split, Splits
from medseg.errors import DatasetError, Problem

NAME = "splits_final.json"
EXPECTED = 'a list of {"train": [case ids], "val": [case ids]}, one per fold'
SHOWN = 5


def with_splits(dataset: Dataset, file: Path | None) -> Dataset:
    """The dataset with the folds of `file`; None: with those of a `splits_final.json` of its own, if there is one.

    It lies in the dataset's folder or, of a dataset in `nnUNet_raw`, where nnU-Net keeps it: `nnUNet_preprocessed/<dataset>` beside that.

    Raises:
        DatasetError: the file cannot be read, is of another form, or says what cannot be; all problems at once.
    """
    own = [place / NAME for place in _places(dataset.root) if (place / NAME).is_file()]
    chosen = file if file is not None else own[0] if own else None
    if chosen is None:
        return dataset
    splits = read_splits(chosen, dataset)
    count = len(splits.folds)
    left = [str(other) for other in own if other.resolve() != chosen.resolve()]
    note = f"folds: {count}, as {chosen} says" + (f"; {', '.join(left)} is not used" if left else "")
    return dataset.model_copy(update={"splits": splits, "notes": (*dataset.notes, note)})


def _places(root: Path) -> tuple[Path, ...]:
    raw = root.resolve().parent
    return (root, raw.parent / "nnUNet_preprocessed" / root.resolve().name) if raw.name == "nnUNet_raw" else (root,)


def read_splits(file: Path, dataset: Dataset) -> Splits:
    """The folds in a file, checked against the cases of a dataset. Raises DatasetError with all problems."""
    problems: list[Problem] = []
    folds: list[Split] = []
    labelled, unlabelled = {c.id for c in dataset.cases}, {c.id for c in dataset.unlabelled}
    for number, entry in enumerate(_entries(file)):
        where = f"{file}, fold {number}"
        fold = _fold(entry, where, problems)
        wrong = _problems(*fold, where, labelled, unlabelled) if fold is not None else []
        problems += wrong
        if fold is not None and not wrong:
            folds.append(Split(train=tuple(fold[0]), val=tuple(fold[1])))
    if problems:
        raise DatasetError(problems)
    return Splits(folds=tuple(folds), source=file.name)


def odd_splits(dataset: Dataset) -> list[Problem]:
    """What is odd about the folds that a user has decided: it makes scores doubtful, or leaves cases unused."""
    if dataset.splits is None:
        return []
    source, folds = dataset.splits.source, dataset.splits.folds
    group = {c.id: c.group for c in dataset.cases}
    found = []
    for number, split in enumerate(folds):
        shared = {group[i] for i in split.train} & {group[i] for i in split.val}
        if shared:
            both = [c.id for c in dataset.cases if c.group in shared]
            found.append(
                Problem(
                    "patients are both trained on and left out, so the scores of this fold say little about other patients",
                    f"{source}, fold {number}",
                    f"{_counted(shared, 'patient', 'patients')} ({_some(both)})",
                    fix="Keep all cases of a patient on one side.",
                )
            )
    left_out = Counter(i for split in folds for i in split.val)
    twice = [i for i, count in left_out.items() if count > 1]
    if twice:
        found.append(
            Problem(
                "cases are left out by several folds; the report takes the prediction of the first of these",
                source,
                f"{_counted(twice, 'case', 'cases')} ({_some(twice)})",
            )
        )
    used = {i for split in folds for i in (*split.train, *split.val)}
    unused = [c.id for c in dataset.cases if c.id not in used]
    if unused:
        found.append(
            Problem(
                "cases are in no fold, so they are neither trained on nor scored, also with --fold none",
                source,
                f"{_counted(unused, 'case', 'cases')} ({_some(unused)})",
            )
        )
    return found


def _entries(file: Path) -> Sequence[Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DatasetError.of("splits cannot be read", where=str(file), found=error.strerror or str(error), fix="Check the path.") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError.of(
            "is not valid JSON", where=str(file), found=str(error), fix="Correct the file at this place, or restore it."
        ) from None
    entries = data.get("folds") if isinstance(data, dict) else data
    if not isinstance(entries, list) or not entries:
        found = "an empty list" if entries == [] else f"an object with {_some(data)}" if isinstance(data, dict) else type(data).__name__
        raise DatasetError.of("holds no splits", where=str(file), found=found, expected=EXPECTED)
    return entries


def _fold(entry: Any, where: str, problems: list[Problem]) -> tuple[list[str], list[str]] | None:
    """Training and validation cases of an entry; None and a problem where it is no fold."""
    if isinstance(entry, dict) and set(entry) == {"train", "val"}:
        lists = (entry["train"], entry["val"])
        if all(isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in lists):
            return lists
    text = json.dumps(entry, ensure_ascii=False)
    problems.append(
        Problem(
            "is no fold", where, text if len(text) <= 80 else f"{text[:77]}...", '{"train": [case ids], "val": [case ids]} and nothing else'
        )
    )
    return None


def _problems(train: list[str], val: list[str], where: str, labelled: Collection[str], unlabelled: Collection[str]) -> list[Problem]:
    """What is wrong with one fold."""
    found = []
    if unknown := [i for i in dict.fromkeys((*train, *val)) if i not in labelled]:
        bare = [i for i in unknown if i in unlabelled]
        near = difflib.get_close_matches(unknown[0], sorted(labelled)[:1000], n=1, cutoff=0.5)
        fix = (
            f"They have no label: {_some(bare)}."
            if bare
            else f"Did you mean '{near[0]}'?"
            if near
            else "Cases are named as `medseg predict` names them."
        )
        found.append(
            Problem(
                "names cases that the dataset does not have labelled",
                where,
                f"{_counted(unknown, 'case', 'cases')} ({_some(unknown)})",
                f"case ids such as {_some(sorted(labelled), 2)}",
                fix,
            )
        )
    if both := sorted(set(train) & set(val)):
        found.append(Problem("cases are both trained on and left out", where, _some(both), fix="Remove them from 'train' or from 'val'."))
    for name, ids in (("train", train), ("val", val)):
        if twice := [i for i, count in Counter(ids).items() if count > 1]:
            found.append(Problem(f"cases are listed twice in '{name}'", where, _some(twice), fix="Name each once."))
    if not train:
        found.append(Problem("'train' is empty", where, expected="at least one case"))
    if not val:
        found.append(Problem("'val' is empty", where, expected="at least one case", fix="To train on every case, use --fold none."))
    return found


def _some(ids: Collection[str], shown: int = SHOWN) -> str:
    first = ", ".join(list(ids)[:shown])
    return first + (" ..." if len(ids) > shown else "")


def _counted(things: Collection[object], one: str, several: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else several}"
