"""Scores of instances by name."""

import math

import numpy as np
import pytest

from medseg.dataset import LabelClass, Labels
from medseg.errors import UsageError
from medseg.metrics import METRICS, Better, describe, score_classes
from medseg.metrics.instances import (
    DETECTION_METRICS,
    INSTANCE_METRICS,
    Contingency,
    match,
    panoptic,
    score_instances,
)
from medseg.metrics.lesions import covered_f1
from tests.metrics.instances.scenes import class_of, panoptic_scene

NAMES = {1: "one", 2: "two", 3: "three", 4: "stuff", 5: "absent"}


def table(seed=1):
    truth, prediction, crowd = panoptic_scene((60, 70), 25, seed)
    return Contingency.between(prediction, truth, ignore=0, classes=class_of, crowd=crowd)


def test_names_are_those_of_the_counts():
    metrics = (
        "rq",
        "pq",
        "sq",
        "object_accuracy",
        "object_f1@0.75",
        "object_accuracy@0.5:0.95",
        "object_precision",
        "object_sensitivity@0.1",
    )
    scores = score_instances(table(), NAMES, metrics)
    assert list(scores) == list(NAMES.values())
    by_pq, at = panoptic(table()), {t: match(table(), t).tallies() for t in (0.1, 0.5, 0.75)}
    for cls, name in list(NAMES.items())[:4]:
        row = scores[name]
        assert tuple(row) == metrics
        assert (row["pq"], row["sq"], row["rq"]) == (by_pq[cls].pq, by_pq[cls].sq, by_pq[cls].f1)
        assert (row["object_accuracy"], row["object_f1@0.75"]) == (at[0.5][cls].accuracy, at[0.75][cls].f1)
        assert row["object_precision"] == at[0.5][cls].precision
        assert row["object_sensitivity@0.1"] == at[0.1][cls].sensitivity
        swept = [match(table(), 0.5 + 0.05 * i).tallies()[cls].accuracy for i in range(10)]
        assert row["object_accuracy@0.5:0.95"] == pytest.approx(np.mean(swept))
    assert all(math.isnan(v) for v in scores["absent"].values())


@pytest.mark.parametrize(("predicted", "real"), [(False, False), (False, True), (True, False), (True, True)])
def test_rule_for_objects_that_are_not_there(predicted, real):
    prediction, truth = np.zeros((3, 4), int), np.zeros((3, 4), int)
    prediction[1, 1:3], truth[1, 1:3] = 5 * predicted, 8 * real
    row = score_instances(Contingency.between(prediction, truth), {1: "a"})["a"]
    assert tuple(row) == tuple(INSTANCE_METRICS)
    expected = 1.0 if predicted and real else 0.0 if predicted or real else math.nan
    rule = dict.fromkeys(INSTANCE_METRICS, expected)
    if predicted != real:
        rule["object_precision" if real else "object_sensitivity"] = math.nan
    assert row == pytest.approx(rule, nan_ok=True)


def test_lesions_may_split_and_merge():
    truth, prediction = np.zeros((1, 40), int), np.zeros((1, 40), int)
    truth[0, :20], truth[0, 20:30], truth[0, 30:] = 1, 2, 3  # touching, so that components would be one
    prediction[0, 0:4], prediction[0, 8:12], prediction[0, 18:22] = 1, 2, 3
    contingency = Contingency.between(prediction, truth)
    assert covered_f1(contingency) == pytest.approx(2 / (3 / 2 + 1))  # two of three found, all three are real
    assert score_instances(contingency, {1: "a"}, ["lesion_f1", "object_f1"])["a"] == {
        "lesion_f1": covered_f1(contingency),
        "object_f1": 0.0,
    }


def test_lesions_of_crowds_and_ignored_voxels():
    truth = np.array([[1, 1, 0, 9, 9, 9, 7, 7, 7, 0, 0]])
    prediction = np.array([[1, 1, 0, 0, 2, 2, 3, 3, 3, 0, 4]])
    assert covered_f1(Contingency.between(prediction, truth, ignore=9, crowd=[7])) == pytest.approx(2 / (1 + 2))  # only the last is false
    assert math.isnan(covered_f1(Contingency.between(prediction[:, 3:9], truth[:, 3:9], ignore=9, crowd=[7])))


def test_descriptions():
    for name in (*INSTANCE_METRICS, *DETECTION_METRICS):
        assert describe(name).better is Better.up
        assert describe(name).meaning.endswith(".")
    assert describe("object_f1").title == "Object F1 at IoU 0.5"
    assert describe("object_f1@0.75").title == "Object F1 at IoU 0.75"
    assert describe("ap").title == "AP at IoU 0.5:0.95"
    assert describe("ap@0.5").title == "AP at IoU 0.5"
    assert describe("pq").title == "PQ"
    assert set(METRICS) & set(INSTANCE_METRICS) == {"lesion_f1"}


@pytest.mark.parametrize("name", ["object_f1@0", "object_f1@", "object_f1@1.5", "object_f1@x", "ap@0.5:0.9", "object_accuracy@nan"])
def test_impossible_iou(name):
    with pytest.raises(UsageError, match=r"impossible IoU; found '.*', expected a number above 0 and at most 1"):
        describe(name)


def test_metrics_of_something_else_are_refused():
    for name in ("pq@0.5", "lesion_f1@0.5", "object", "froc@1"):
        with pytest.raises(UsageError, match="unknown metric"):
            describe(name)
    with pytest.raises(UsageError, match="not a metric of what is scored here; found 'dice'"):
        score_instances(table(), NAMES, ["pq", "dice"])
    one = Labels(classes=(LabelClass(name="a", values=(1,)),))
    with pytest.raises(UsageError, match="a metric of objects; found 'pq'"):
        score_classes(np.zeros((2, 2), int), np.zeros((2, 2), int), one, (1.0, 1.0), ["pq"])
