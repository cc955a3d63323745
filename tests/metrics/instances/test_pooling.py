"""Scores of a dataset: against other programs, against the scores of which they are made, and by the rule for what is not there."""

import math

import numpy as np
import pytest

from medseg.metrics.instances import (
    Contingency,
    Detections,
    Ranking,
    count_case,
    label_boxes,
    match,
    panoptic,
    pool,
    poolable,
    ranked_of,
)
from medseg.metrics.instances.froc import Findings
from medseg.metrics.instances.matching import add_up
from medseg.metrics.instances.pooling import LEVELS, _computation, curve_of
from tests.metrics.instances.scenes import Dice, class_of, panoptic_scene, scene
from tests.metrics.instances.test_average_precision import ap
from tests.metrics.instances.test_froc import froc

METRICS = (
    "pq", "sq", "rq", "object_accuracy", "object_accuracy@0.5:0.95", "object_f1@0.75", "object_precision", "object_sensitivity", "lesion_f1",
    "ap", "ap@0.5", "ap@0.75", "box_ap", "box_ap@0.5", "froc",
)  # fmt: skip
ALONE = {"all": (1,)}


def ranked(truth, prediction, seed, **how):
    """The objects of a case, and those that are predicted with made-up scores."""
    table = Contingency.between(prediction, truth, **how)
    dice = Dice(100 + seed)
    scores = np.array([dice.throw(100) / 100 for _ in table.prediction.ids])
    boxes = label_boxes(prediction, table.prediction.ids), label_boxes(truth, table.truth.ids)
    return table, Ranking(Detections.of_labels(table, scores), Detections.of_labels(table, scores, boxes))


def cases(seeds=(1, 2, 3, 4), count=20):
    found = [ranked(*scene((60, 70), count, seed), seed) for seed in seeds]
    return [count_case(table, (1,), (1,), ranking) for table, ranking in found], found


def values(found, cls=1):
    return {name: score.mean for name, score in found.classes[cls].items()}


def test_equal_to_pycocotools():
    """pycocotools 2.0.11: COCOeval with maxDets 10000 on the same masks, boxes and scores."""
    found = values(pool(cases()[0], (1,), METRICS, ALONE))
    assert [found["ap"], found["ap@0.5"], found["ap@0.75"]] == pytest.approx([0.042565, 0.167514, 0.006898], abs=1e-6)
    assert [found["box_ap"], found["box_ap@0.5"]] == pytest.approx([0.074777, 0.259890], abs=1e-6)


def test_equal_to_stardist():
    """stardist.matching.matching_dataset of StarDist 0.9.2, at IoU 0.5, as in `test_matching`."""
    counted = [count_case(Contingency.between(*scene((60, 70), 25, seed)[::-1]), (1,), (1,)) for seed in (1, 2, 3)]
    found = values(pool(counted, (1,), ("object_accuracy", "object_f1"), ALONE))
    assert [found["object_accuracy"], found["object_f1"]] == pytest.approx([0.29464285714285715, 0.45517241379310347])


def test_equal_to_the_scores_of_which_they_are_made():
    counted, found = cases()
    got = values(pool(counted, (1,), METRICS, ALONE))
    exact = add_up(panoptic(table) for table, _ in found)[1]
    assert (got["pq"], got["sq"], got["rq"]) == pytest.approx((exact.pq, exact.sq, exact.f1))
    at = {t: add_up(match(table, t).tallies() for table, _ in found)[1] for t in LEVELS}
    assert got["object_accuracy"] == pytest.approx(at[0.5].accuracy)
    assert got["object_f1@0.75"] == pytest.approx(at[0.75].f1)
    assert (got["object_precision"], got["object_sensitivity"]) == pytest.approx((at[0.5].precision, at[0.5].sensitivity))
    assert got["object_accuracy@0.5:0.95"] == pytest.approx(np.mean([tally.accuracy for tally in at.values()]))
    masks = [ranking.masks for _, ranking in found]
    assert got["ap@0.75"] == pytest.approx(ap(masks, 0.75))
    assert got["froc"] == froc(masks).mean
    assert curve_of(counted, 1).sensitivity.tolist() == froc(masks).sensitivity.tolist()
    one = values(pool(counted[:1], (1,), ("lesion_f1", "pq"), ALONE))
    assert one["lesion_f1"] == pytest.approx(counted[0][1].lesions.f1)
    assert one["pq"] == pytest.approx(panoptic(found[0][0])[1].pq)


def test_a_case_drawn_twice_is_there_twice():
    """What the bootstrap asks for with weights is what the cases give that it draws."""
    counted, _ = cases()
    drawn = [counted[i] for i in (0, 0, 0, 2, 3, 3)]
    weights = np.array([3.0, 0.0, 1.0, 2.0])
    assert ranked_of(counted, 1).precision(weights) == pytest.approx(ranked_of(drawn, 1).precision(), nan_ok=True)
    assert curve_of(counted, 1).mean != curve_of(drawn, 1).mean
    assert Findings.of([c[1].findings for c in counted]).curve(weights).mean == pytest.approx(curve_of(drawn, 1).mean)
    for metric in METRICS:
        if metric.partition("@")[0] in ("ap", "box_ap"):
            continue
        once = _computation(metric, counted, (1,))(weights[None])
        assert once == pytest.approx(_computation(metric, drawn, (1,))(np.ones((1, 6)))), metric


def test_intervals():
    counted, _ = cases(range(1, 9))
    found = pool(counted, (1,), METRICS, ALONE)
    for metric, score in found.classes[1].items():
        assert 0 <= score.low <= score.mean <= score.high <= 1, metric
        assert score.high - score.low > 0.005, metric
        assert found.means["all"][metric] == score
    assert pool(counted, (1,), METRICS, ALONE) == found  # drawn alike
    alone = pool(counted, (1,), METRICS, ALONE, intervals=False).classes[1]
    assert all(math.isnan(score.low) and score.mean == found.classes[1][m].mean for m, score in alone.items())
    single = pool(counted[:1], (1,), METRICS, ALONE).classes[1]
    assert all(math.isnan(score.low) and not math.isnan(score.mean) for score in single.values())
    same = pool([counted[0]] * 5, (1,), ("pq",), ALONE).classes[1]["pq"]
    assert (same.low, same.high) == pytest.approx((same.mean, same.mean))


def test_classes_things_and_stuff():
    """Scores of objects are those of things; a class that is nowhere counts in no mean."""
    counted = []
    for seed in (1, 2, 3):
        truth, prediction, crowd = panoptic_scene((60, 70), 25, seed)
        table, ranking = ranked(truth, prediction, seed, ignore=0, classes=class_of, crowd=crowd)
        counted.append((count_case(table, (1, 2, 3, 4, 5), (1, 2, 3, 5), ranking), table))
    groups = {"all": (1, 2, 3, 4, 5), "things": (1, 2, 3, 5), "stuff": (4,)}
    found = pool([c for c, _ in counted], (1, 2, 3, 5), METRICS, groups)
    exact = add_up(panoptic(table) for _, table in counted)
    assert [found.classes[c]["pq"].mean for c in (1, 2, 3, 4)] == pytest.approx([exact[c].pq for c in (1, 2, 3, 4)])
    assert all(math.isnan(score.mean) for score in found.classes[5].values())
    assert {m for m, score in found.classes[4].items() if not math.isnan(score.mean)} == {"pq", "sq", "rq"}
    for metric in METRICS:
        of_things = [found.classes[c][metric].mean for c in (1, 2, 3)]
        assert found.means["things"][metric].mean == pytest.approx(np.mean(of_things)), metric
    assert found.means["all"]["pq"].mean == pytest.approx(np.mean([exact[c].pq for c in (1, 2, 3, 4)]))
    assert found.means["stuff"]["pq"].mean == pytest.approx(exact[4].pq)
    assert math.isnan(found.means["stuff"]["ap"].mean)


@pytest.mark.parametrize(("predicted", "real"), [(False, False), (False, True), (True, False), (True, True)])
def test_rule_for_objects_that_are_not_there(predicted, real):
    truth, prediction = np.zeros((9, 9), int), np.zeros((9, 9), int)
    truth[2:5, 2:5], prediction[2:5, 2:5] = 7 * real, 3 * predicted
    table, ranking = ranked(truth, prediction, 0)
    got = values(pool([count_case(table, (1,), (1,), ranking)] * 3, (1,), METRICS, ALONE))
    perfect = {"pq", "sq", "rq", "object_accuracy", "object_accuracy@0.5:0.95", "object_f1@0.75", "lesion_f1"}
    of_truth = {"object_sensitivity", "ap", "ap@0.5", "ap@0.75", "box_ap", "box_ap@0.5", "froc"}
    for name, value in got.items():
        if (not predicted and not real) or (name in of_truth and not real) or (name == "object_precision" and not predicted):
            assert math.isnan(value), name
        else:
            assert value == pytest.approx(float(predicted and real)), name
    assert perfect | of_truth | {"object_precision"} == set(METRICS)


def test_a_case_without_objects_changes_rates_only():
    """Its false alarms count, also among the cases that false positives are counted per."""
    counted, _ = cases((1, 2))
    nothing = np.zeros((60, 70), int)
    table, ranking = ranked(nothing, nothing, 0)
    empty = count_case(table, (1,), (1,), ranking)
    before, after = (values(pool(some, (1,), METRICS, ALONE, intervals=False)) for some in (counted, [*counted, empty]))
    assert {m: v for m, v in after.items() if m != "froc"} == {m: v for m, v in before.items() if m != "froc"}
    assert after["froc"] >= before["froc"]


def test_one_voxel_objects_and_many_of_them():
    truth = np.zeros((90, 90), int)
    truth[::4, ::4] = np.arange(1, 530).reshape(23, 23)
    prediction = np.where(truth % 2, truth, 0)
    table, ranking = ranked(truth, prediction, 0)
    counted = count_case(table, (1,), (1,), ranking)
    got = values(pool([counted], (1,), METRICS, ALONE))
    assert (got["pq"], got["sq"], got["object_sensitivity"]) == pytest.approx((265 / (265 + 132), 1.0, 265 / 529))
    assert got["ap"] == pytest.approx(51 / 101)  # no limit of a hundred detections
    assert counted[1].found.sum() == 265
    assert set(counted[1].sizes.tolist()) == {1}


def test_which_metrics_can_be_pooled():
    assert all(poolable(m) for m in METRICS)
    assert [poolable(m) for m in ("object_f1@0.3", "object_f1@0.55", "ap@0.95", "ap@0.97")] == [False, True, True, False]
