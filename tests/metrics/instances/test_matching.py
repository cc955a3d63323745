"""Matching of objects against brute force, and against what StarDist and panopticapi say of the same scenes."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.metrics.contingency import Objects
from medseg.metrics.instances import Contingency, Tally, add_up, match, mean_quality, panoptic
from tests.metrics.instances.scenes import class_of, panoptic_scene, scene

FLAT, SOLID = ((60, 70), 25, 1), ((20, 24, 22), 18, 2)


def between(args):
    truth, prediction = scene(*args)
    return Contingency.between(prediction, truth)


# stardist.matching.matching of StarDist 0.9.2: threshold, TP, FP, FN, mean_matched_score, panoptic_quality
@pytest.mark.parametrize(
    ("args", "rows"),
    [
        (
            FLAT,
            [
                (0.1, 17, 4, 7, 0.519515, 0.392522),
                (0.3, 16, 5, 8, 0.539484, 0.383633),
                (0.5, 8, 13, 16, 0.667733, 0.237416),
                (0.6, 5, 16, 19, 0.740317, 0.164515),
                (0.75, 3, 18, 21, 0.786513, 0.104868),
                (0.9, 0, 21, 24, 0.0, 0.0),
            ],
        ),
        (
            SOLID,
            [
                (0.1, 13, 4, 5, 0.353009, 0.262236),
                (0.3, 6, 11, 12, 0.488234, 0.167395),
                (0.5, 3, 14, 15, 0.589840, 0.101115),
                (0.6, 1, 16, 17, 0.739677, 0.042267),
                (0.75, 0, 17, 18, 0.0, 0.0),
            ],
        ),
    ],
)
def test_equal_to_stardist(args, rows):
    table = between(args)
    for threshold, tp, fp, fn, matched, quality in rows:
        tally = match(table, threshold).tallies()[1]
        assert (tally.tp, tally.fp, tally.fn) == (tp, fp, fn), threshold
        if threshold >= 0.3:
            assert (tally.sq, tally.pq) == pytest.approx((matched, quality), abs=1e-6)
        else:  # of matchings with as many pairs, StarDist takes the one whose IoU adds up to the most together with pairs that do not match
            assert tally.sq >= matched - 1e-6
        assert tally.accuracy == tp / (tp + fp + fn)
        assert tally.f1 == 2 * tp / (2 * tp + fp + fn)
        assert (tally.precision, tally.sensitivity) == (tp / (tp + fp), tp / (tp + fn))


def test_dataset_equal_to_stardist():
    """stardist.matching.matching_dataset of StarDist 0.9.2, at IoU 0.5."""
    total = add_up(match(between(((60, 70), 25, seed)), 0.5).tallies() for seed in (1, 2, 3))[1]
    assert (total.tp, total.fp, total.fn) == (33, 38, 41)
    assert (total.accuracy, total.f1) == pytest.approx((0.29464285714285715, 0.45517241379310347))
    assert (total.sq, total.pq) == pytest.approx((0.65573776, 0.29847372), abs=1e-6)


def test_equal_to_panopticapi():
    """panopticapi.evaluation (commit 1ad5afa) on three images with void, crowds and stuff."""
    cases = []
    for seed in (1, 2, 3):
        truth, prediction, crowd = panoptic_scene((60, 70), 25, seed)
        cases.append(panoptic(Contingency.between(prediction, truth, ignore=0, classes=class_of, crowd=crowd)))
    total = add_up(cases)
    assert {c: (t.tp, t.fp, t.fn) for c, t in total.items()} == {1: (7, 15, 13), 2: (14, 13, 10), 3: (6, 10, 15), 4: (3, 0, 0)}
    assert [total[c].iou for c in (1, 2, 3, 4)] == pytest.approx(
        [4.6395778324245995, 9.790013944314653, 4.012592078705107, 1.8964059419495514]
    )
    for classes, pq, sq, rq, n in (
        (None, 0.36347164407505084, 0.6657460509864347, 0.5516693163751987, 4),
        ((1, 2, 3), 0.2739170874390065, 0.6769496299875183, 0.40222575516693165, 3),
        ((4, 5), 0.6321353139831838, 0.6321353139831838, 1.0, 1),
    ):
        mean = mean_quality(total, classes)
        assert (mean.pq, mean.sq, mean.rq, mean.classes) == pytest.approx((pq, sq, rq, n))


def best(iou, threshold):
    """The largest number of pairs, and of these matchings the largest sum of IoU, by trying all."""
    rows, columns = iou.shape
    table, found = iou.tolist(), (0, 0.0)
    for k in range(1, min(rows, columns) + 1):
        for some in combinations(range(rows), k):
            for others in permutations(range(columns), k):
                values = [table[r][c] for r, c in zip(some, others, strict=True)]
                if min(values) >= threshold:
                    found = max(found, (k, sum(values)))
    return found


def table_of(iou):
    """A contingency of 100 shared voxels per pair whose IoU are about the given ones (sizes need not fit one image)."""
    rows, columns = np.nonzero(iou)
    objects = [Objects(np.arange(1, n + 1), np.ones(n, int), np.full(n, 1000), np.zeros(n, int), np.zeros(n, bool)) for n in iou.shape]
    table = Contingency(*objects, rows, columns, np.ones(len(rows), int))
    table.__dict__["iou"] = iou[rows, columns]
    return table


@settings(max_examples=100)
@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.sampled_from([0.0, 0.05, 0.2, 0.25, 0.4, 0.45, 0.5]), min_size=16, max_size=16))
def test_assignment_is_optimal(rows, columns, values):
    iou = np.array(values).reshape(4, 4)[:rows, :columns]
    for threshold in (0.05, 0.2, 0.25, 0.5):
        found = match(table_of(iou), threshold)
        assert len(set(found.truth.tolist())) == len(set(found.prediction.tolist())) == len(found.iou)
        assert (len(found.iou), pytest.approx(found.iou.sum())) == best(iou, threshold)
        assert (found.iou == iou[found.truth, found.prediction]).all()


def test_more_pairs_go_before_better_ones():
    iou = np.array([[0.45, 0.2], [0.2, 0.0]])
    assert sorted(zip(match(table_of(iou), 0.2).truth, match(table_of(iou), 0.2).prediction, strict=True)) == [(0, 1), (1, 0)]
    assert match(table_of(iou), 0.3).iou.tolist() == [0.45]


@pytest.mark.parametrize("args", [FLAT, SOLID])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
def test_numbers_play_no_part_and_sides_may_change(args, threshold):
    truth, prediction = scene(*args)
    reference = match(between(args), threshold).tallies()[1]
    numbers = np.random.default_rng(0).permutation(9000) + 1
    renumbered = Contingency.between(np.where(prediction > 0, numbers[prediction], 0), np.where(truth > 0, numbers[truth], 0))
    assert match(renumbered, threshold).tallies()[1].iou == pytest.approx(reference.iou)
    swapped = match(Contingency.between(truth, prediction), threshold).tallies()[1]
    assert (swapped.tp, swapped.fp, swapped.fn) == (reference.tp, reference.fn, reference.fp)
    mirrored = match(Contingency.between(prediction[::-1, ::-1], truth[::-1, ::-1]), threshold).tallies()[1]
    assert (mirrored.tp, mirrored.iou) == (reference.tp, pytest.approx(reference.iou))


def test_perfect_is_one():
    truth, _ = scene(*FLAT)
    for tally in (
        match(Contingency.between(truth + 5 * (truth > 0), truth), 1.0).tallies()[1],
        panoptic(Contingency.between(truth, truth))[1],
    ):
        assert {tally.accuracy, tally.precision, tally.sensitivity, tally.f1, tally.sq, tally.pq} == {1.0}


def test_half_is_enough_to_match_but_not_for_panoptic_quality():
    truth, prediction = np.array([[1, 1, 0]]), np.array([[1, 0, 0]])
    table = Contingency.between(prediction, truth)
    assert match(table, 0.5).tallies()[1] == Tally(1, 0, 0, 0.5)
    assert panoptic(table)[1] == Tally(0, 1, 1, 0.0)


def test_who_was_missed_and_who_invented():
    truth = np.array([[1, 1, 0, 2, 2, 0, 7, 7]])
    prediction = np.array([[5, 5, 0, 6, 0, 4, 7, 7]])
    found = match(Contingency.between(prediction, truth, crowd=[7]), 0.6)
    table = found.contingency
    assert table.truth.ids[found.truth].tolist() == [1]
    assert table.prediction.ids[found.prediction].tolist() == [5]
    assert table.truth.ids[found.missed].tolist() == [2]  # nobody misses a crowd
    assert table.prediction.ids[found.invented].tolist() == [4, 6]  # what lies in one is not invented


def test_objects_match_within_their_class():
    truth, prediction = np.array([[1 << 16, 2 << 16]]), np.array([[2 << 16, 2 << 16]])
    found = match(Contingency.between(prediction, truth, classes=class_of), 0.5).tallies()
    assert found == {1: Tally(0, 0, 1, 0.0), 2: Tally(1, 0, 0, 0.5)}


def test_ignored_voxels_count_in_no_iou():
    truth, prediction = np.array([[1, 1, 9, 9, 9, 0]]), np.array([[1, 1, 1, 1, 1, 0]])
    assert match(Contingency.between(prediction, truth, ignore=9), 1.0).tallies()[1] == Tally(1, 0, 0, 1.0)


def test_without_objects():
    nothing, missed, invented = Tally(), Tally(fn=2), Tally(fp=3)
    assert all(math.isnan(v) for v in (nothing.accuracy, nothing.f1, nothing.sq, nothing.pq, nothing.precision, nothing.sensitivity))
    assert (missed.accuracy, missed.f1, missed.sq, missed.pq, missed.sensitivity) == (0,) * 5
    assert math.isnan(missed.precision)
    assert (invented.accuracy, invented.f1, invented.sq, invented.pq, invented.precision) == (0,) * 5
    assert math.isnan(invented.sensitivity)
    assert mean_quality({1: nothing}).classes == 0
    assert math.isnan(mean_quality({}).pq)
    assert mean_quality({1: nothing, 2: Tally(1, 0, 0, 0.8)}).pq == 0.8


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, math.nan])
def test_impossible_thresholds(threshold):
    with pytest.raises(ValueError, match="no IoU threshold"):
        match(between(FLAT), threshold)
