"""Average precision against pycocotools on the same detections, and by hand."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from medseg.io.rle import Rle
from medseg.metrics.instances import THRESHOLDS, Contingency, Detections, Ranked, label_boxes
from medseg.metrics.instances.average_precision import outcome
from medseg.metrics.instances.boxes import box_volumes
from tests.metrics.instances.scenes import class_of, detection_scene, scene

SHAPE = (60, 70)


def case(seed, kind):
    truth, found = detection_scene(SHAPE, 20, seed)
    masks, objects = [Rle.encode(m) for m, _, _ in found], [Rle.encode(m) for m, _, _ in truth]
    known = {
        "classes": np.array([c for _, c, _ in found]),
        "truth_classes": np.array([c for _, c, _ in truth]),
        "crowd": np.array([k for _, _, k in truth]),
    }
    scores = np.array([s for _, _, s in found])
    if kind == "segm":
        return Detections.of_masks(masks, scores, objects, **known)
    return Detections.of_boxes(np.stack([m.box for m in masks]), scores, np.stack([m.box for m in objects]), **known)


def rank(cases, cls=1):
    return Ranked.of([outcome(case, cls, np.array(THRESHOLDS)) for case in cases])


def ap(cases, threshold=None, cls=1):
    precision = rank(cases, cls).precision().mean(1)
    return precision.mean() if threshold is None else precision[np.isclose(THRESHOLDS, threshold)].item()


def ar(cases, threshold=None, cls=1):
    """The share of objects that are found."""
    ranked = rank(cases, cls)
    share = ranked.right.sum(1) / ranked.objects.sum()
    return share.mean() if threshold is None else share[np.isclose(THRESHOLDS, threshold)].item()


def matrix(found):
    """IoU `(d, g)` of all pairs."""
    full = np.zeros((len(found.scores), len(found.truth_classes)))
    full[found.rows, found.columns] = found.iou
    assert np.count_nonzero(full) == len(found.iou)  # every pair that overlaps once
    return full


# pycocotools 2.0.11: COCOeval on the same three images
@pytest.mark.parametrize(
    ("kind", "mean", "ap50", "ap75", "ap_first", "mean_ar"),
    [("segm", 0.148561, 0.472376, 0.027621, 0.129587, 0.276786), ("bbox", 0.240204, 0.605296, 0.089363, 0.236125, 0.383929)],
)
def test_equal_to_pycocotools(kind, mean, ap50, ap75, ap_first, mean_ar):
    cases = [case(seed, kind) for seed in (1, 2, 3)]
    found = [np.mean([score(cases, t, cls) for cls in (1, 2)]) for score, t in ((ap, None), (ap, 0.5), (ap, 0.75), (ar, None))]
    assert [*found, ap(cases)] == pytest.approx([mean, ap50, ap75, mean_ar, ap_first], abs=1e-6)


def detections(iou, scores, crowd=None):
    iou = np.array(iou, float)
    d, g = iou.shape
    ones = np.ones(max(d, g), int)
    rows, columns = iou.nonzero()
    return Detections(
        np.array(scores, float),
        ones[:d],
        ones[:g],
        np.zeros(g, bool) if crowd is None else np.array(crowd),
        rows,
        columns,
        iou[rows, columns],
    )


def test_by_hand():
    """Right, wrong, right: precision 1 up to a sensitivity of 1/2, then 2/3."""
    found = [detections([[0.8, 0], [0, 0], [0, 0.6]], [0.9, 0.8, 0.7])]
    assert ap(found, 0.5) == pytest.approx((51 * 1.0 + 50 * 2 / 3) / 101)
    assert ap(found, 0.75) == pytest.approx(51 / 101)
    assert ap(found, 0.85) == 0.0
    assert ar(found, 0.5) == 1.0
    assert ap(found) == pytest.approx((3 * ap(found, 0.5) + 4 * ap(found, 0.75)) / 10)


def test_surer_detections_choose_first():
    """The second detection would have been the better partner, and its own second choice is none."""
    found = [detections([[0.6, 0], [0.9, 0.3]], [0.9, 0.8])]
    assert ar(found, 0.5) == 0.5
    assert ap(found, 0.5) == pytest.approx(51 / 101)
    assert ar(found, 0.7) == 0.5  # at 0.7 the first one has no claim


def test_crowds_are_neither_right_nor_wrong():
    assert ap([detections([[0.9, 0], [0, 0.7], [0, 0.8]], [0.3, 0.9, 0.8], crowd=[False, True])], 0.5) == pytest.approx(1.0)
    assert math.isnan(ap([detections([[0.7]], [0.9], crowd=[True])]))  # undefined, not 0


def test_an_object_goes_before_a_crowd_of_larger_overlap():
    found = [detections([[0.6, 0.9], [0.6, 0.1], [0.1, 0.9]], [0.6, 0.5, 0.4], crowd=[False, True])]
    assert ap(found, 0.5) == pytest.approx(1.0)  # the surest has the object, which is not left to the next one
    assert (ar(found, 0.5), ar(found, 0.75)) == (1.0, 0.0)


def test_the_order_of_pairs_does_not_matter():
    """Of equal overlaps the last object is taken, wherever the pair stands."""
    one = detections([[0.6, 0.6, 0], [0, 0.7, 0.7], [0.7, 0, 0.2]], [0.9, 0.8, 0.7])
    assert ar([one], 0.5) == 1.0
    for order in itertools.permutations(range(len(one.iou))):
        same = dataclasses.replace(one, **{name: getattr(one, name)[list(order)] for name in ("rows", "columns", "iou")})
        assert outcome(same, 1, np.array(THRESHOLDS)).found.tolist() == outcome(one, 1, np.array(THRESHOLDS)).found.tolist()


def test_nothing_found_and_nothing_there():
    missed, invented = detections(np.zeros((0, 2)), []), detections(np.zeros((2, 0)), [0.5, 0.4])
    assert ap([missed]) == ap([missed, invented]) == ar([missed]) == 0.0
    assert math.isnan(ap([invented]))


@pytest.mark.parametrize("args", [((60, 70), 25, 1), ((20, 24, 22), 18, 2)])
def test_label_maps_and_their_masks_are_one(args):
    truth, prediction = scene(*args)
    table = Contingency.between(prediction, truth, crowd=[6, 21])
    scores = np.linspace(0.1, 0.9, len(table.prediction))
    masks = Detections.of_masks(
        [Rle.encode(prediction == v) for v in table.prediction.ids],
        scores,
        [Rle.encode(truth == v) for v in table.truth.ids],
        crowd=table.truth.crowd,
    )
    labels = Detections.of_labels(table, scores)
    assert (matrix(labels) == matrix(masks)).all()
    assert (labels.crowd == masks.crowd).all()
    perfect = Contingency.between(truth, truth)
    assert ap([Detections.of_labels(perfect, np.ones(len(perfect.truth)))]) == pytest.approx(1.0)


def test_what_is_ignored_is_a_crowd_of_every_class():
    truth = np.array([[9, 9, 9, 65537, 65537]])
    prediction = np.array([[65538, 65538, 131074, 65537, 65537]])
    one = Detections.of_labels(Contingency.between(prediction, truth, ignore=9, classes=class_of), np.array([0.1, 0.9, 0.8]))
    assert one.truth_classes.tolist() == [1, 1, 2]
    assert one.crowd.tolist() == [False, True, True]
    assert matrix(one).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert ap([one]) == pytest.approx(1.0)
    assert math.isnan(ap([one], cls=2))


def test_masks_whose_voxels_are_unknown_in_part():
    truth, prediction = scene((60, 70), 25, 1)
    truth[:, 40:50] = 99
    table = Contingency.between(prediction, truth, ignore=99)
    scores = np.linspace(0.1, 0.9, len(table.prediction))
    hidden = np.array([((prediction == v) & (truth == 99)).sum() for v in table.prediction.ids], float)
    parts = [[Rle.encode(array == v) for v in some.ids] for array, some in ((prediction, table.prediction), (truth, table.truth))]
    masks = Detections.of_masks(parts[0], scores, parts[1], hidden=hidden)
    labels = Detections.of_labels(table, scores)
    assert hidden.any()
    assert (matrix(labels) == matrix(masks)).all()
    for name in ("crowd", "truth_classes"):
        np.testing.assert_array_equal(getattr(labels, name), getattr(masks, name))


def test_boxes_of_any_dimension():
    a = np.array([[[0, 0, 0], [2, 2, 2]], [[0, 0, 0], [4, 2, 2]]], float)
    b = np.array([[[1, 0, 0], [3, 2, 2]], [[5, 5, 5], [6, 6, 6]], [[3, 0, 0], [1, 2, 2]]], float)
    assert box_volumes(b).tolist() == [8, 1, 0]
    scores = np.ones(2)
    np.testing.assert_allclose(matrix(Detections.of_boxes(a, scores, b)), [[4 / 12, 0, 0], [8 / 16, 0, 0]])
    crowd = np.array([True, False, False])
    np.testing.assert_allclose(matrix(Detections.of_boxes(a, scores, b, crowd=crowd)), [[4 / 8, 0, 0], [8 / 16, 0, 0]])
    kinds = {"classes": np.array([1, 2]), "truth_classes": np.array([2, 2, 2])}
    np.testing.assert_allclose(matrix(Detections.of_boxes(a, scores, b, **kinds)), [[0, 0, 0], [8 / 16, 0, 0]])
    assert matrix(Detections.of_boxes(np.zeros((0, 2, 3)), scores[:0], b)).shape == (0, 3)


@pytest.mark.parametrize("args", [((60, 70), 25, 1), ((20, 24, 22), 18, 2)])
def test_boxes_of_label_maps(args):
    truth, _ = scene(*args)
    ids = np.unique(truth)[1:][::-1]
    for factor in (1, 70000):  # also values too large for a table
        boxes = label_boxes(truth.astype(np.int64) * factor, ids * factor)
        for value, (low, high) in zip(ids, boxes, strict=True):
            places = np.argwhere(truth == value)
            assert (low.tolist(), high.tolist()) == (places.min(0).tolist(), (places.max(0) + 1).tolist())
    assert label_boxes(truth, ids[:0]).shape == (0, 2, truth.ndim)
    with pytest.raises(KeyError):
        label_boxes(truth, np.array([5]))


def test_detections_that_do_not_belong_together():
    with pytest.raises(ValueError, match="do not belong"):
        detections(np.zeros((2, 1)), [0.5])
    with pytest.raises(ValueError, match="of another class are no pair"):
        dataclasses.replace(detections([[0.5]], [0.5]), truth_classes=np.array([2]))
    with pytest.raises(ValueError, match="masks of different shapes"):
        Detections.of_masks([Rle.encode(np.ones((2, 3)))], np.ones(1), [Rle.encode(np.ones((3, 2)))])
    with pytest.raises(ValueError, match="not a finite number"):
        detections(np.zeros((1, 1)), [math.nan])
