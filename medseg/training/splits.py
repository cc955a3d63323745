"""Which cases train and which validate: stable, grouped by patient, stratified where classes are rare."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from medseg.dataset import Dataset, Split, Splits
from medseg.errors import DatasetError, PlanError, UsageError
from medseg.fingerprint import Fingerprint


def make_splits(dataset: Dataset, fingerprint: Fingerprint, folds: int, seed: int) -> tuple[Split, ...]:
    """Divide the labelled cases into folds.

    Cases of one patient (`CaseFiles.group`) stay together. Patients are placed one by one, those with the rarest classes first, each
    into the fold that lacks its rarest class most (iterative stratification, Sechidis et al. 2011), then into the fold with the fewest
    cases; what is still equal is settled by a hash of seed and patient, so the order of the files on disk plays no part.

    Raises:
        PlanError: a single fold cannot be made.
        DatasetError: there are fewer patients than folds.
    """
    if folds < 2:
        raise PlanError.of(
            "one fold alone cannot be made: all cases would be left out",
            where="field 'training.folds'",
            found=str(folds),
            expected="2 or more",
            fix="Pass the cases of a single fold with --splits, or train on every case (--fold none).",
        )
    members: dict[str, list[str]] = {}
    for case in dataset.cases:
        members.setdefault(case.group, []).append(case.id)
    if len(members) < folds:
        raise DatasetError.of(
            f"{folds} folds need at least {folds} patients",
            where=f"dataset '{dataset.name}'",
            found=f"{len(members)} in {len(dataset.cases)} cases",
            fix=f"Add cases, or plan with fewer folds (--set training.folds={max(2, len(members))})."
            if len(members) >= 2
            else "Add cases of further patients, or train on every case (--fold none).",
        )
    present = {stats.id: frozenset(k for k, c in enumerate(stats.classes) if c.voxels > 0) for stats in fingerprint.cases}
    classes = {group: frozenset(k for case in ids for k in present.get(case, frozenset())) for group, ids in members.items()}
    count = {k: sum(k in found for found in classes.values()) for k in range(len(fingerprint.labels.classes))}

    def rank(group: str) -> tuple[float, int, str]:
        rarest = min((count[k] for k in classes[group]), default=len(members))
        digest = hashlib.blake2b(f"{seed} {group}".encode(), digest_size=8).hexdigest()
        return rarest, -len(members[group]), digest

    sizes = [0] * folds
    held: list[dict[int, int]] = [{} for _ in range(folds)]
    assigned: list[list[str]] = [[] for _ in range(folds)]
    for group in sorted(members, key=rank):
        rarest_first = sorted(classes[group], key=lambda k: (count[k], k))
        best = min(range(folds), key=lambda f: (*(held[f].get(k, 0) for k in rarest_first[:1]), sizes[f], f))
        assigned[best] += members[group]
        sizes[best] += len(members[group])
        for k in classes[group]:
            held[best][k] = held[best].get(k, 0) + 1
    return tuple(
        Split(train=tuple(sorted(c for g, ids in enumerate(assigned) if g != f for c in ids)), val=tuple(sorted(assigned[f])))
        for f in range(folds)
    )


def choose_split(splits: Sequence[Split], fold: int | None) -> Split:
    """The split of a fold; None trains on every case and validates on none.

    Raises:
        UsageError: there is no such fold.
    """
    if fold is None:
        return Split(train=tuple(sorted({c for s in splits for c in (*s.train, *s.val)})), val=())
    if not 0 <= fold < len(splits):
        numbers = f"0 to {len(splits) - 1}" if len(splits) > 1 else "0"
        raise UsageError.of("there is no such fold", where="--fold", found=str(fold), expected=f"{numbers}, or none")
    return splits[fold]


def left_out(splits: Sequence[Split], folds: Iterable[int]) -> dict[int, tuple[str, ...]]:
    """Fold -> the cases that it leaves out and none before it in `folds` does: a user's folds may overlap.

    Raises:
        UsageError: there is no such fold.
    """
    found: dict[int, tuple[str, ...]] = {}
    seen: set[str] = set()
    for fold in folds:
        found[fold] = tuple(case for case in choose_split(splits, fold).val if case not in seen)
        seen.update(found[fold])
    return found


__all__ = ["Split", "Splits", "choose_split", "left_out", "make_splits"]
