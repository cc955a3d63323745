"""What the networks of a fold have been trained on: in their own training, and in those of the models that they began with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from medseg.dataset import Split
from medseg.plans import DataPlan, Plan
from medseg.record import Record
from medseg.workspace import RunFolder, past_file


class Seen(Record):
    """What one training saw.

    Attributes:
        model: dataset and configuration.
        dataset: name of the dataset.
        digest: of its fingerprint.
        annotated: False where only images were looked at.
        cases: ids; None where the model does not say.
    """

    model: str
    dataset: str
    digest: str
    annotated: bool
    cases: tuple[str, ...] | None

    def is_of(self, data: DataPlan) -> bool:
        """Whether these cases belong to the same dataset as a plan's, as far as digest and name tell."""
        return self.digest == data.digest or _plain(self.dataset) == _plain(data.name)


class Past(Record):
    """The trainings of a fold's networks (`RUN/fold_k/past.json`), its own first, then those of the models it began with, latest first.

    Holds case ids, as `splits.json` does, and stays in the model folder like this.
    """

    trainings: tuple[Seen, ...]

    @classmethod
    def of(cls, fold: Path, plan: Plan, annotated: bool = True) -> Self:
        """The past of a trained fold's folder; of one that does not tell, such as an imported model, that it is unknown."""
        file = past_file(fold)
        return cls.load(file) if file.is_file() else cls(trainings=(_seen(plan, None, annotated),))

    @classmethod
    def begin(cls, plan: Plan, split: Split, annotated: bool, before: Past | None) -> Self:
        """The past of a fold that is about to be trained; `before` is that of the networks with which it begins."""
        return cls(trainings=(_seen(plan, split.train, annotated), *(before.trainings if before is not None else ())))

    @property
    def before(self) -> Past:
        """Without its own training."""
        return Past(trainings=self.trainings[1:])

    def seen(self, data: DataPlan, cases: Iterable[str], annotated: bool = True) -> frozenset[str]:
        """Which of these cases of a plan's dataset some training saw with annotations, or else their images alone."""
        met = {case for one in self.trainings if one.annotated == annotated and one.is_of(data) for case in one.cases or ()}
        return frozenset(met & set(cases))

    @property
    def unknown(self) -> tuple[str, ...]:
        """Models that were trained with annotations and do not say of which cases."""
        return tuple(dict.fromkeys(one.model for one in self.trainings if one.cases is None and one.annotated))


def past_of_cases(folder: RunFolder, left_out: Mapping[int, Iterable[str]]) -> tuple[int, tuple[str, ...]]:
    """How many of the cases that folds leave out were trained on by models that these folds, or those of any part of the model, began with;
    and the names of such models that do not say what they were trained on.

    Args:
        folder: the model.
        left_out: fold -> the cases that it is scored on.
    """
    seen: set[str] = set()
    unknown: dict[str, None] = {}
    for part in folder.parts():
        plan = Plan.load(part.plan_file)
        for fold, cases in left_out.items():
            before = Past.of(part.fold(fold), plan).before
            seen |= before.seen(plan.data, cases)
            unknown |= dict.fromkeys(before.unknown)
    return len(seen), tuple(unknown)


def _seen(plan: Plan, cases: tuple[str, ...] | None, annotated: bool) -> Seen:
    return Seen(model=f"{plan.data.name} {plan.name}", dataset=plan.data.name, digest=plan.data.digest, annotated=annotated, cases=cases)


def _plain(name: str) -> str:
    """A dataset's name without the number that nnU-Net puts before it."""
    return re.sub(r"^dataset\d{3}_", "", name.strip().casefold())
