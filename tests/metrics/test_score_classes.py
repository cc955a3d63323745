"""Scores of one case against brute force, and the rule for empty masks."""

import math
from collections import deque
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg.dataset import LabelClass, Labels
from medseg.errors import UsageError
from medseg.metrics import METRICS, Better, describe, score_classes
from medseg.metrics.lesions import lesion_f1

ONE = Labels(classes=(LabelClass(name="a", values=(1,)),))
TWO = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
SIMILARITY = tuple(name for name, metric in METRICS.items() if metric.better is Better.up)


def masks(high=1):
    shapes = st.one_of(hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), hnp.array_shapes(min_dims=3, max_dims=3, max_side=5))
    return shapes.flatmap(lambda s: st.tuples(*[hnp.arrays(np.uint8, s, elements=st.integers(0, high))] * 2))


@settings(max_examples=80)
@given(masks(2))
def test_overlap_counts_like_sets(pair):
    prediction, truth = pair
    scores = score_classes(prediction, truth, TWO, (1.0,) * truth.ndim, ("dice", "iou", "sensitivity", "precision", "volume_error"))
    for value, name in ((1, "a"), (2, "b")):
        p, t = set(zip(*np.nonzero(prediction == value), strict=True)), set(zip(*np.nonzero(truth == value), strict=True))
        expected = {
            "dice": (2 * len(p & t), len(p) + len(t)),
            "iou": (len(p & t), len(p | t)),
            "sensitivity": (len(p & t), len(t)),
            "precision": (len(p & t), len(p)),
            "volume_error": (len(p) - len(t), len(t)),
        }
        for metric, (a, b) in expected.items():
            assert scores[name][metric] == pytest.approx(a / b if b else math.nan, nan_ok=True), metric


@settings(max_examples=60)
@given(masks())
def test_perfect_prediction_scores_one(pair):
    _, truth = pair
    scores = score_classes(truth, truth, ONE, (1.0, 0.7, 3.0)[: truth.ndim])["a"]
    if truth.any():
        assert {scores[m] for m in SIMILARITY} == {1.0}
        assert {scores[m] for m in ("hd95", "assd", "volume_error")} == {0.0}
    else:
        assert all(math.isnan(v) for v in scores.values())


def components(mask):
    """Breadth-first search over all neighbours."""
    left, found = set(map(tuple, np.argwhere(mask).tolist())), []
    while left:
        queue = deque([left.pop()])
        component = {queue[0]}
        while queue:
            here = queue.popleft()
            for offset in product((-1, 0, 1), repeat=mask.ndim):
                there = tuple(a + b for a, b in zip(here, offset, strict=True))
                if there in left:
                    left.discard(there)
                    component.add(there)
                    queue.append(there)
        found.append(component)
    return found


@settings(max_examples=80)
@given(masks())
def test_lesion_f1_like_brute_force(pair):
    prediction, truth = (a.astype(bool) for a in pair)
    lesions, claimed = components(truth), components(prediction)
    inside = [set(map(tuple, np.argwhere(m).tolist())) for m in (truth, prediction)]
    found = sum(len(c & inside[1]) >= 0.1 * len(c) for c in lesions)
    real = sum(len(c & inside[0]) >= 0.1 * len(c) for c in claimed)
    if not lesions and not claimed:
        expected = math.nan
    elif not found or not real:
        expected = 0.0
    else:
        expected = 2 / (len(lesions) / found + len(claimed) / real)
    assert lesion_f1(prediction, truth) == pytest.approx(expected, nan_ok=True)


def test_lesion_needs_a_tenth_of_its_voxels():
    truth = np.zeros((1, 30), bool)
    truth[0, :20] = True
    prediction = np.zeros_like(truth)
    prediction[0, :1] = True
    assert lesion_f1(prediction, truth) == 0.0
    prediction[0, :2] = True
    assert lesion_f1(prediction, truth) == 1.0


@pytest.mark.parametrize(
    ("predicted", "real", "expected"),
    [
        (False, False, dict.fromkeys(METRICS, math.nan)),
        (
            False,
            True,
            dict.fromkeys(("dice", "iou", "nsd", "lesion_f1", "sensitivity"), 0.0)
            | {"precision": math.nan, "hd95": 5.0, "assd": 5.0, "volume_error": -1.0},
        ),
        (
            True,
            False,
            dict.fromkeys(("dice", "iou", "nsd", "lesion_f1", "precision"), 0.0)
            | {"sensitivity": math.nan, "hd95": 5.0, "assd": 5.0, "volume_error": math.nan},
        ),
    ],
)
def test_rule_for_empty_masks(predicted, real, expected):
    prediction, truth = np.zeros((4, 3), np.uint8), np.zeros((4, 3), np.uint8)
    prediction[1, 1], truth[2, 2] = predicted, real
    scores = score_classes(prediction, truth, ONE, (1.0, 2.0))["a"]  # diagonal between outermost centres: 3 mm and 4 mm
    assert scores == pytest.approx(expected, nan_ok=True)


def test_ignored_voxels_count_nowhere():
    labels = Labels(classes=ONE.classes, ignore=9)
    truth = np.array([[1, 1, 0, 9, 9, 9]])
    scores = score_classes(np.array([[1, 1, 0, 1, 0, 1]]), truth, labels, (1.0, 1.0))["a"]
    assert scores["dice"] == scores["precision"] == scores["nsd"] == 1.0
    assert scores["volume_error"] == scores["hd95"] == 0.0
    far = score_classes(np.array([[0, 0, 0, 1, 1, 1]]), truth, labels, (1.0, 1.0))["a"]
    assert far["sensitivity"] == 0.0
    assert math.isnan(far["precision"])


def test_regions_overlap():
    labels = Labels(classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))), order=(1, 2))
    scores = score_classes(np.array([[1, 1, 2, 0]]), np.array([[1, 2, 2, 0]]), labels, (1.0, 1.0), ("dice",))
    assert scores == {"whole": {"dice": 1.0}, "core": {"dice": pytest.approx(2 / 3)}}


@pytest.mark.parametrize("values", [(3,), (70000,), (-2,), (-2, 3, 100000)])
def test_any_label_value(values):
    labels = Labels(classes=(LabelClass(name="a", values=values),), order=(values[0],))
    rng = np.random.default_rng(0)
    truth = rng.choice([0, *values], size=(6, 7)).astype(np.int64)
    prediction = rng.choice([0, *values], size=(6, 7)).astype(np.int64)
    plain = score_classes(np.isin(prediction, values).astype(np.uint8), np.isin(truth, values).astype(np.uint8), ONE, (1.0, 2.0))
    assert score_classes(prediction, truth, labels, (1.0, 2.0)) == plain
    # Boolean masks and memory maps' integer types give the same.
    assert score_classes(np.isin(prediction, values), np.isin(truth, values), ONE, (1.0, 2.0)) == plain


def test_scores_do_not_depend_on_the_empty_surroundings():
    rng = np.random.default_rng(1)
    prediction, truth = rng.integers(0, 3, (2, 5, 6, 7))
    inner = score_classes(prediction, truth, TWO, (1.0, 0.5, 2.0))
    outer = score_classes(np.pad(prediction, 4), np.pad(truth, 4), TWO, (1.0, 0.5, 2.0))
    assert all(outer[c] == pytest.approx(inner[c]) for c in inner)


def test_inputs_that_do_not_belong_together():
    with pytest.raises(ValueError, match="do not belong together"):
        score_classes(np.zeros((2, 2)), np.zeros((2, 3)), ONE, (1.0, 1.0))
    with pytest.raises(ValueError, match="do not belong together"):
        score_classes(np.zeros((2, 2)), np.zeros((2, 2)), ONE, (1.0,))


@pytest.mark.parametrize("name", ["dise", "dice@2", "nsd@", "nsd@-1", "nsd@nan", "nsd@inf", "nsd@far"])
def test_unknown_metrics(name):
    if name == "nsd@":
        assert describe("nsd").title == "NSD at 2 mm"
    with pytest.raises(UsageError, match=r"metric|tolerance"):
        score_classes(np.zeros((2, 2), int), np.zeros((2, 2), int), ONE, (1.0, 1.0), (name,))


def test_tolerance_in_the_name():
    truth, prediction = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    truth[5:15, 5:15] = 1
    prediction[5:15, 8:18] = 1  # 3 mm to the right
    scores = score_classes(prediction, truth, ONE, (1.0, 1.0), ("nsd@1", "nsd", "nsd@3", "hd95"))["a"]
    assert scores["hd95"] == 3.0
    assert scores["nsd@1"] < scores["nsd"] < scores["nsd@3"] == 1.0
    assert describe("nsd@3").title == "NSD at 3 mm"
