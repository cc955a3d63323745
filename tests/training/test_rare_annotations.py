"""Trainings on annotations that are missing: voxels that nobody annotated, classes that few or no cases hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_training import SHAPE, Talk, Tiny, train

from medseg.case import Case
from medseg.domains.base import find_domain
from medseg.geometry import Grid
from medseg.io.images import read_case
from medseg.io.store import Store
from medseg.training.budget import Budget
from medseg.training.data import Windows
from medseg.training.splits import Split, make_splits
from medseg.workspace import RunFolder

IGNORED = 3
SMALL = {
    "window": "[24, 32, 24]",
    "network.features": "[16, 32]",
    "network.strides": "[[1, 1, 1], [2, 2, 2]]",
    "network.kernels": "[[3, 3, 3], [3, 3, 3]]",
    "network.encoder": "[0, 1]",
    "network.decoder": "[1]",
    "training.batch_size": "2",
    "training.steps": "60",
}


def test_a_few_annotated_slices_teach_whole_volumes(tmp_path, dataset, plans):
    """Two of about 35 slices of every training case are annotated; the score is that of whole cases which were left out."""
    plan = next(p for p in plans if p.name == "3d").edited({**SMALL, "data.labels.ignore": str(IGNORED)})
    domain, store = find_domain("grid")(plan), Store(tmp_path / "prepared")
    ids = [case.id for case in dataset.cases[:8]]
    for number, files in enumerate(dataset.cases[:8]):
        native = read_case(files)
        label = native.label.astype(np.int16)
        if number < 6:
            slices = np.flatnonzero((label > 0).any((0, 2)))
            kept = slices[[len(slices) // 3, 2 * len(slices) // 3]]
            label[:, [i for i in range(label.shape[1]) if i not in kept]] = IGNORED
        case = domain.prepare(Case(native.id, native.image, label, native.grid))
        store.write(case, native.grid, domain.locations(case.label), "digest")
    split = Split(train=tuple(ids[:6]), val=tuple(ids[6:]))
    windows = Windows(plan, store.folder, split.train, 0)
    assert all((windows[item][1] != IGNORED).any() for item in range(40))
    assert np.mean([np.mean(store.read(i).label != IGNORED) for i in split.train]) < 0.07
    torch.set_num_threads(1)
    result = train(plan, store, (split,), 0, RunFolder(tmp_path / "run"), Budget(epochs=1), device="cpu")
    assert result.cases == 2
    assert result.score > 0.5


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """Six cases; the second class occurs in one of them, and in no training case of the fold that leaves it out."""
    tiny = Tiny(tmp_path_factory.mktemp("rare"), (("target.blob", "1"),))
    cases = list(tiny.fingerprint.cases)
    holder = cases[2].id
    for i, stats in enumerate(cases):
        first, second = stats.classes
        absent = type(second)(voxels=0, volume=0, components=0)
        cases[i] = stats if stats.id == holder else stats.model_copy(update={"classes": (first, absent)})
    fingerprint = tiny.fingerprint.model_copy(update={"cases": tuple(cases)})
    domain, store = find_domain(tiny.plan.domain)(tiny.plan), Store(tiny.root / "prepared")
    for i, case in enumerate(tiny.dataset.cases):
        label = np.zeros(SHAPE, np.uint8)
        label[2:5, 3:9, 2:7] = 1
        if case.id == holder:
            label[6:8, 3:6, 2:5] = 2
        image = (label + np.random.default_rng(i).normal(0, 0.3, SHAPE)).astype(np.float32)[None]
        store.write(Case(case.id, image, label, Grid.plain(SHAPE)), Grid.plain(SHAPE), domain.locations(label), "digest")
    return tiny, store, make_splits(tiny.dataset, fingerprint, 3, 0), holder


@pytest.mark.parametrize("held_out", [False, True])
def test_a_class_that_one_case_holds(rare, held_out):
    """In training it has its share of windows; left out of training it is scored all the same."""
    tiny, store, splits, holder = rare
    fold = next(i for i, s in enumerate(splits) if (holder in s.val) == held_out)
    windows = Windows(tiny.plan, store.folder, splits[fold].train, fold)
    focused = [k for _, k in map(windows.place, range(60)) if k is not None]
    assert set(focused) == ({0} if held_out else {0, 1})
    assert focused.count(1) == pytest.approx(0 if held_out else len(focused) / 2, abs=1)
    torch.set_num_threads(1)
    result = train(
        tiny.plan, store, splits, fold, RunFolder(tiny.root / f"run_{held_out}"), Budget(epochs=2), device="cpu", progress=Talk()
    )
    assert result.finished
    assert math.isfinite(result.score)
    second = result.scores["posterior"]["dice"]
    assert second is None or 0 <= second <= 1  # None: neither there nor predicted
    assert second is not None or not held_out
