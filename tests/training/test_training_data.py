from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch
from tiny_training import Tiny

from medseg.errors import DatasetError, ResourceError
from medseg.training import data as module
from medseg.training.data import Steps, TrainingData, Windows, collate, open_cases


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Tiny(tmp_path_factory.mktemp("tiny"))


def windows(tiny, fold=0):
    return Windows(tiny.plan, tiny.store.folder, tiny.splits[0].train, fold)


def test_an_item_depends_on_its_number_only(tiny):
    first, second = windows(tiny), pickle.loads(pickle.dumps(windows(tiny)))
    forward = [first[i] for i in range(10)]
    for i in (9, 3, 0, 7):
        for a, b in zip(second[i], forward[i], strict=True):
            np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(forward[i][0], windows(tiny, fold=1)[i][0]) for i in range(10))


def test_every_pass_visits_every_case_once(tiny):
    data = windows(tiny)
    n = len(data.ids)
    passes = [[data._id(i) for i in range(n * k, n * (k + 1))] for k in range(6)]
    assert all(sorted(p) == sorted(data.ids) for p in passes)
    assert len({tuple(p) for p in passes}) > 1


def test_focus_is_spread_and_classes_take_turns(tiny):
    data = windows(tiny)
    case = tiny.store.read(data.ids[0])
    fraction = tiny.plan.training.foreground
    focus = [data._focus(i, case) for i in range(300)]
    chosen = [f for f in focus if f is not None]
    assert len(chosen) == pytest.approx(300 * fraction, abs=1)
    assert chosen[:6] in ([0, 1] * 3, [1, 0] * 3)


def test_ranks_share_every_batch():
    whole = list(Steps(4, 6, 0, 1, lambda: 8))
    parts = [list(Steps(4, 6, rank, 3, lambda: 8)) for rank in range(3)]
    assert whole[0] == list(range(48, 54))
    assert [[i for share in shares for i in share] for shares in zip(*parts, strict=True)] == whole


def test_an_epoch_goes_on_where_it_was_left():
    assert list(Steps(4, 2, 0, 1, lambda: 6)) == [[12, 13], [14, 15]]
    assert list(Steps(4, 2, 0, 1, lambda: 7)) == [[14, 15]]
    assert len(list(Steps(4, 2, 0, 1, lambda: 8))) == 4


def test_batches(tiny):
    data = TrainingData(tiny.plan, tiny.store.folder, tiny.splits[0].train, 0, "cpu")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape[:2] == (2, 1)
    assert min(images.shape[2:]) >= 8  # a domain may add a margin for augmentation
    assert images.dtype == torch.float32
    assert labels.shape == (2, *images.shape[2:])
    assert labels.dtype == torch.int16
    again, _ = collate([data.windows[0], data.windows[1]])
    assert torch.equal(images, again)


def test_spawned_workers_give_the_same_windows(tiny):
    here = TrainingData(tiny.plan, tiny.store.folder, tiny.splits[0].train, 0, "cpu")
    there = TrainingData(tiny.plan, tiny.store.folder, tiny.splits[0].train, 0, "cuda")
    there.pin, there.workers = False, 1
    for (a, b), (c, d) in zip(here.train_dataloader(), there.train_dataloader(), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_keeps_its_class_and_its_problems(tiny, workers):
    data = TrainingData(tiny.plan, tiny.store.folder, ["no such case"], 0, "cpu")
    data.workers = workers
    batch = next(iter(data.train_dataloader()))
    with pytest.raises(DatasetError, match="a prepared case is missing or damaged") as caught:
        data.on_before_batch_transfer(batch, 0)
    (problem,) = caught.value.problems
    assert problem.fix == "Run `medseg preprocess` again."


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_open_files_stay_within_a_quarter_of_the_limit(monkeypatch):
    import resource

    for limit, cases in ((256, 32), (1024, 128), (10**6, 512), (resource.RLIM_INFINITY, 512), (4, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        assert open_cases() == cases


def test_a_case_is_closed_before_too_many_are_open(tiny, monkeypatch):
    monkeypatch.setattr(module, "open_cases", lambda: 2)
    data = windows(tiny)
    for i in range(12):
        _ = data[i]
        assert len(data._open) <= 2
    assert len(pickle.loads(pickle.dumps(data))._open) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_too_many_open_files_are_called_so(tiny):
    import os
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = os.open(os.devnull, os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + 1, hard))
    try:
        with pytest.raises(ResourceError, match=r"too many files are open\. Raise the limit"):
            tiny.store.read(tiny.dataset.cases[0].id)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(here)
