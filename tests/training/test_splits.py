from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import TWO, make_dataset, make_fingerprint_of

from medseg.errors import DatasetError, PlanError, UsageError
from medseg.training.splits import choose_split, make_splits


def build(groups, rare=()):
    """A dataset whose case i belongs to patient `groups[i]`; the second class occurs only in the cases `rare`."""
    dataset = make_dataset(TWO, cases=len(groups))
    cases = tuple(c.model_copy(update={"group": f"patient {g}"}) for c, g in zip(dataset.cases, groups, strict=True))
    dataset = dataset.model_copy(update={"cases": cases})
    fingerprint = make_fingerprint_of(dataset)
    absent = replace(fingerprint.cases[0].classes[1], voxels=0, components=0, sizes=(), box=())
    if rare:
        stats = tuple(s if i in rare else s.model_copy(update={"classes": (s.classes[0], absent)}) for i, s in enumerate(fingerprint.cases))
        fingerprint = fingerprint.model_copy(update={"cases": stats})
    return dataset, fingerprint


@settings(max_examples=60)
@given(groups=st.lists(st.integers(0, 14), min_size=12, max_size=40), folds=st.integers(2, 5), seed=st.integers(0, 3))
def test_every_case_is_left_out_once_and_patients_stay_together(groups, folds, seed):
    dataset, fingerprint = build(groups)
    patients = len(set(groups))
    if patients < folds:
        with pytest.raises(DatasetError, match=f"{folds} folds need at least {folds} patients"):
            make_splits(dataset, fingerprint, folds, seed)
        return
    splits = make_splits(dataset, fingerprint, folds, seed)
    ids = sorted(c.id for c in dataset.cases)
    assert sorted(c for s in splits for c in s.val) == ids
    group = {c.id: c.group for c in dataset.cases}
    for split in splits:
        assert sorted((*split.train, *split.val)) == ids
        assert not {group[c] for c in split.train} & {group[c] for c in split.val}


def test_folds_have_equal_sizes_and_share_a_rare_class():
    dataset, fingerprint = build(range(23), rare=(0, 3, 4, 11, 20))
    splits = make_splits(dataset, fingerprint, 5, 0)
    assert sorted(len(s.val) for s in splits) == [4, 4, 5, 5, 5]
    rare = {dataset.cases[i].id for i in (0, 3, 4, 11, 20)}
    assert [len(rare & set(s.val)) for s in splits] == [1] * 5


def test_order_of_files_plays_no_part_but_the_seed_does():
    dataset, fingerprint = build([i // 2 for i in range(20)])
    turned = dataset.model_copy(update={"cases": dataset.cases[::-1]})
    first = make_splits(dataset, fingerprint, 5, 0)
    assert make_splits(turned, fingerprint, 5, 0) == first
    assert make_splits(dataset, fingerprint, 5, 1) != first


def test_one_fold_cannot_be_made():
    dataset, fingerprint = build(range(10))
    with pytest.raises(PlanError) as caught:
        make_splits(dataset, fingerprint, 1, 0)
    assert str(caught.value) == (
        "field 'training.folds': one fold alone cannot be made: all cases would be left out; found 1, expected 2 or more. "
        "Pass the cases of a single fold with --splits, or train on every case (--fold none)."
    )


def test_choose():
    dataset, fingerprint = build(range(10))
    splits = make_splits(dataset, fingerprint, 5, 0)
    assert choose_split(splits, 3) == splits[3]
    everything = choose_split(splits, None)
    assert everything.train == tuple(sorted(c.id for c in dataset.cases))
    assert everything.val == ()
    with pytest.raises(UsageError, match="no such fold; found 5, expected 0 to 4, or none"):
        choose_split(splits, 5)
