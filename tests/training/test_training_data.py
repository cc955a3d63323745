from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from tiny_training import Tiny

from medseg.case import Case
from medseg.errors import DatasetError, ResourceError
from medseg.geometry import Grid
from medseg.io.store import Store
from medseg.planning.pretext import pretext_plan
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


class Made:
    """A store of cases that hold the given classes, and nothing but what `Windows.place` may look at."""

    def __init__(self, root, plan, holds):
        self.plan, self.root, self.ids = plan, root, tuple(holds)
        entries = len(plan.data.labels.classes) + (plan.data.labels.ignore is not None)
        for case_id, found in holds.items():
            label = np.zeros((4, 4, 4), np.uint8)
            places = [np.zeros((found.count(k), 3), np.int32) for k in range(entries)]
            grid = Grid.plain(label.shape)
            Store(root).write(Case(case_id, label[None].astype(np.float32), label, grid), grid, places, "digest")
            for file in ("image", "label", "locations"):
                (root / case_id / f"{file}.npy").unlink()

    def windows(self, fold=0):
        return Windows(self.plan, self.root, self.ids, fold)


@pytest.fixture(scope="module")
def rare(tmp_path_factory, tiny):
    """One of 20 cases holds the second class."""
    holds = {f"c{i:02}": [0] for i in range(20)} | {"c13": [0, 1], "c17": []}
    return Made(tmp_path_factory.mktemp("rare"), tiny.plan, holds)


def test_classes_have_equal_shares_however_few_cases_hold_them(rare):
    data, fraction = rare.windows(), rare.plan.training.foreground
    places = [data.place(i) for i in range(300)]
    focused = [(case_id, k) for case_id, k in places if k is not None]
    assert len(focused) == pytest.approx(300 * fraction, abs=1)
    assert [k for _, k in focused[:6]] == [0, 1] * 3
    assert {case_id for case_id, k in focused if k == 1} == {"c13"}
    turns = [case_id for case_id, k in focused if k == 0]
    holders = sorted(set(rare.ids) - {"c17"})
    assert sorted(turns[:19]) == sorted(turns[19:38]) == holders  # all of them before one comes again
    assert turns[:19] != turns[19:38]


def test_windows_without_focus_go_through_all_cases(rare):
    data = rare.windows()
    visited = [case_id for case_id, k in (data.place(i) for i in range(300)) if k is None]
    passes = [visited[n : n + 20] for n in range(0, 180, 20)]
    assert all(sorted(p) == sorted(rare.ids) for p in passes)
    assert len({tuple(p) for p in passes}) == 9


def test_places_are_a_function_of_seed_fold_and_item(rare):
    forward = [rare.windows().place(i) for i in range(100)]
    data = pickle.loads(pickle.dumps(rare.windows()))
    assert all(data.place(i) == forward[i] for i in (99, 3, 0, 41, 40, 99))
    assert forward != [rare.windows(fold=1).place(i) for i in range(100)]
    other = Made.__new__(Made)
    other.__dict__ = rare.__dict__ | {"plan": rare.plan.edited({"training.seed": "7"})}
    assert forward != [other.windows().place(i) for i in range(100)]


def test_a_class_that_no_training_case_holds_leaves_its_turns_to_the_others(tmp_path, tiny):
    places = [Made(tmp_path / "a", tiny.plan, {"a": [1], "b": [1]}).windows().place(i) for i in range(30)]
    assert {k for _, k in places} == {None, 1}
    nothing = [Made(tmp_path / "b", tiny.plan, {"a": [], "b": []}).windows().place(i) for i in range(30)]
    assert {k for _, k in nothing} == {None}
    assert sum(case_id == "a" for case_id, _ in nothing) == 15


@pytest.mark.parametrize("fraction", [0.0, 0.33, 0.5, 1.0])
def test_focus_is_spread_evenly(rare, fraction):
    data = Windows(rare.plan.edited({"training.foreground": str(fraction)}), rare.root, rare.ids, 0)
    focused = np.cumsum([data.place(i)[1] is not None for i in range(200)])
    assert (np.abs(focused - fraction * np.arange(1, 201)) <= 1).all()


def test_sparse_annotations_centre_every_window(tmp_path, tiny):
    plan = tiny.plan.edited({"data.labels.ignore": "9"})
    data = Made(tmp_path / "a", plan, {"a": [2], "b": [], "c": [0, 2]}).windows()
    places = [data.place(i) for i in range(60)]
    assert {case_id for case_id, _ in places} == {"a", "c"}  # nothing of b is annotated
    assert {k for _, k in places} == {0, 2}
    with pytest.raises(
        DatasetError, match=r"2 cases in .*: no training case has annotated voxels; found only the value 9, which is ignored"
    ):
        Made(tmp_path / "b", plan, {"a": [], "b": []}).windows().place(0)


def test_cases_without_labels_give_windows_anywhere(tmp_path, tiny):
    plan = tiny.plan.edited({"data.labels.ignore": "9"})
    grid = Grid.plain((4, 4, 4))
    Store(tmp_path).write(Case("a", np.zeros((1, 4, 4, 4), np.float32), None, grid), grid, (), "digest")
    assert Windows(plan, tmp_path, ["a"], 0).place(0) == ("a", None)


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


def test_pre_training_takes_every_case_although_few_have_annotated_voxels(tmp_path):
    """Neither classes nor the ignore value decide where its windows lie."""
    tiny = Tiny(tmp_path)
    ignoring = tiny.plan.edited({"data.labels.ignore": "3"})
    plan = pretext_plan(ignoring, "masked")
    _ = tiny.store
    for case in tiny.dataset.cases[1:]:
        folder = tmp_path / "prepared" / case.id
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "label.npy").unlink()
        np.save(folder / "locations.npy", np.zeros((0, 3), np.int32))
        (folder / "meta.json").write_text(json.dumps(meta | {"labelled": False, "counts": []}))
    ids = tuple(case.id for case in tiny.dataset.cases)
    windows = Windows(plan, tmp_path / "prepared", ids, None)
    places = [windows.place(item) for item in range(12)]
    assert {focus for _, focus in places} == {None}
    for turn in (places[:6], places[6:]):
        assert sorted(case for case, _ in turn) == sorted(ids)
    assert windows[1].image.shape == windows[0].image.shape
