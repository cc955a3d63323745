"""Detections become objects: what is closed when, and what broken numbers do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from medseg.imaging.detections import detections
from medseg.imaging.merging import Merged, Merger
from medseg.imaging.windows import window_starts


def boxes_seen(boxes, start, window, shape):
    """What a window sees of boxes that are full."""
    first = [max(s, 0) for s in start]
    last = [min(s + w, n) for s, w, n in zip(start, window, shape, strict=True)]
    count = len(boxes)
    ones = np.ones((count, *(1,) * len(shape)))
    return detections(boxes, ones, np.full(count, 0.8), np.ones(count, np.int64), first, last)


def merged(boxes, shape, window, watch=lambda merger, start: None, early=True):
    found: list[Merged] = []
    starts = tuple(tuple(window_starts(n, w, 0.5)) for n, w in zip(shape, window, strict=True))
    merger = Merger(shape, window, starts, found.append)
    if not early:
        merger._close_before = lambda start: None
    for start in itertools.product(*starts):
        merger.add(start, [boxes_seen(boxes, start, window, shape)])
        watch(merger, start)
    merger.finish()
    return found


def some_boxes(shape, count, seed):
    """Boxes that do not touch: a voxel of a coarse grid each."""
    rng = np.random.default_rng(seed)
    cells = list(itertools.product(*(range(n // 8) for n in shape)))
    lower = np.array([cells[i] for i in rng.permutation(len(cells))[:count]]) * 8 + rng.integers(0, 3, (count, len(shape)))
    return np.concatenate([lower, lower + rng.integers(1, 6, lower.shape)], 1).astype(float)


def key(one: Merged):
    return one.lower, one.upper, one.mask.tobytes(), one.voxels, one.score, tuple(one.votes.items())


@pytest.mark.parametrize(
    ("shape", "window"), [((64, 80), (16, 24)), ((20, 90), (32, 16)), ((16, 24, 40), (8, 24, 16)), ((6, 40, 40), (1, 16, 16))]
)
def test_closing_early_changes_nothing(shape, window) -> None:
    boxes = some_boxes(shape, 12, 0) if shape[0] > 6 else np.concatenate([[[z, 8.0, 8 * z, z + 1, 20, 8 * z + 5]] for z in range(4)])
    early, late = (merged(boxes, shape, window, early=early) for early in (True, False))
    assert sorted(map(key, early)) == sorted(map(key, late))
    assert sorted((*one.lower, *one.upper) for one in early) == sorted(tuple(box) for box in boxes.astype(int).tolist())


def test_only_what_later_windows_can_see_is_held() -> None:
    shape, window = (400, 64), (32, 32)
    boxes = some_boxes(shape, 300, 1)
    most = []

    def watch(merger, start):
        most.append(len(merger._open))
        for known in merger._open.values():
            assert known.upper[0] > start[0]

    assert len(merged(boxes, shape, window, watch)) == 300
    assert max(most) < 60


def test_where_windows_overlap_along_one_axis_only_the_other_does_not_matter() -> None:
    """All windows begin in one row: objects are closed as windows go along it."""
    counts = []
    merged(some_boxes((16, 800), 150, 2), (16, 800), (16, 32), lambda merger, start: counts.append(len(merger._open)))
    assert max(counts) < 20


def test_more_objects_than_there_was_room_for_at_first(monkeypatch) -> None:
    monkeypatch.setattr("medseg.imaging.merging.ROOM", 4)
    boxes = some_boxes((64, 64), 50, 3)
    assert len(merged(boxes, (64, 64), (64, 64))) == 50


def test_numbers_that_are_none_are_no_objects() -> None:
    boxes = np.array(
        [[0, 0, np.nan, 4], [0, 0, np.inf, 4], [-np.inf, 0, 4, 4], [5, 0, 4, 4], [1e12, 0, 2e12, 4], [-1e12, -1e12, 1e12, 1e12]]
    )
    masks = np.ones((6, 2, 2))
    found = detections(boxes, masks, np.full(6, 0.5), np.ones(6, np.int64), (0, 0), (8, 9))
    assert [(one.lower, one.upper, one.voxels) for one in found] == [((0, 0), (8, 9), 72)]
    masks[5] = np.nan
    assert detections(boxes, masks, np.full(6, 0.5), np.ones(6, np.int64), (0, 0), (8, 9)) == []


def test_masks_of_other_scales() -> None:
    (one,) = detections(np.array([[1.0, 1, 3, 3]]), np.array([[[255, 128], [127, 0]]]), np.array([0.5]), np.array([2]), (0, 0), (8, 8), 255)
    assert one.inside.tolist() == [[True, True], [False, False]]
    assert (one.voxels, one.score, one.kind) == (2, 0.5, 2)


@pytest.mark.parametrize("overlap", [0.5, 0.75])
@pytest.mark.parametrize("turn", ["plain", "transposed", "upside down", "both"])
def test_a_bent_object_that_no_window_sees_as_two_is_one_mirrored_or_not(turn, overlap) -> None:
    """A U whose legs are farther apart than a window is wide, as windows see what is connected in them."""
    truth = np.zeros((65, 77), np.uint8)
    truth[5:60, 5:12] = truth[5:60, 62:69] = truth[53:60, 5:69] = 1
    if turn in ("transposed", "both"):
        truth = np.ascontiguousarray(truth.T)
    if turn in ("upside down", "both"):
        truth = np.ascontiguousarray(truth[::-1])
    window, found = (32, 32), []
    starts = tuple(tuple(window_starts(n, 32, overlap)) for n in truth.shape)
    merger = Merger(truth.shape, window, starts, found.append)
    for start in itertools.product(*starts):
        last = [s + 32 for s in start]
        parts, count = ndimage.label(truth[start[0] : last[0], start[1] : last[1]])
        assert count < 2
        boxes = np.tile([*start, *last], (count, 1)).astype(float)
        merger.add(start, [detections(boxes, (parts == 1)[None][:count], np.full(count, 0.9), np.ones(count, np.int64), start, last)])
    merger.finish()
    (one,) = found
    assert one.voxels == truth.sum()
    assert np.array_equal(one.mask >= 128, truth[tuple(slice(a, b) for a, b in zip(one.lower, one.upper, strict=True))] == 1)
