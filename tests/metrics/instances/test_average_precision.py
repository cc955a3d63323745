"""Average precision against pycocotools on the same detections, and by hand."""

import math

import numpy as np
import pytest

from medseg.io.rle import Rle
from medseg.metrics.instances import Contingency, Detections, average_precision, box_iou, box_volumes, label_boxes, of_coco
from tests.metrics.instances.scenes import class_of, detection_scene, scene

SHAPE = (60, 70)
SIZES = {"all": (0.0, 1e10), "small": (0.0, 40.0), "large": (40.0, 1e10)}


def case(seed, kind):
    truth, found = detection_scene(SHAPE, 20, seed)
    masks, objects = [Rle.encode(m) for m, _, _ in found], [Rle.encode(m) for m, _, _ in truth]
    known = {
        "classes": np.array([c for _, c, _ in found]),
        "truth_classes": np.array([c for _, c, _ in truth]),
        "truth_sizes": np.array([float(m.sum()) for m, _, _ in truth]),  # as COCO's annotations, also for boxes
        "crowd": np.array([k for _, _, k in truth]),
    }
    scores = np.array([s for _, _, s in found])
    if kind == "segm":
        return Detections.of_masks(masks, scores, objects, **known)
    return Detections.of_boxes(np.stack([m.box for m in masks]), scores, np.stack([m.box for m in objects]), **known)


# pycocotools 2.0.11: COCOeval with these area ranges, on the same three images
@pytest.mark.parametrize(
    ("kind", "limit", "ap", "ap50", "ap75", "ap_first", "ap_small", "ap_large", "ar", "ar50_small"),
    [
        ("segm", 100, 0.148561, 0.472376, 0.027621, 0.129587, 0.047629, 0.235507, 0.276786, 0.355769),
        ("segm", 5, 0.090139, 0.278901, 0.011001, 0.062559, 0.021485, 0.138807, 0.126786, 0.139423),
        ("bbox", 100, 0.240204, 0.605296, 0.089363, 0.236125, 0.142088, 0.301641, 0.383929, 0.533654),
        ("bbox", 5, 0.144942, 0.377027, 0.057248, 0.125705, 0.072008, 0.185972, 0.180357, 0.293269),
    ],
)
def test_equal_to_pycocotools(kind, limit, ap, ap50, ap75, ap_first, ap_small, ap_large, ar, ar50_small):
    found = average_precision([case(seed, kind) for seed in (1, 2, 3)], sizes=SIZES, limit=limit)
    assert found.classes == (1, 2)
    assert [found.ap(), found.ap(0.5), found.ap(0.75), found.ap(cls=1)] == pytest.approx([ap, ap50, ap75, ap_first], abs=1e-6)
    assert [found.ap(size="small"), found.ap(size="large")] == pytest.approx([ap_small, ap_large], abs=1e-6)
    assert [found.ar(), found.ar(0.5, size="small")] == pytest.approx([ar, ar50_small], abs=1e-6)


def detections(iou, scores, crowd=None, sizes=None, truth_sizes=None):
    iou = np.array(iou, float)
    d, g = iou.shape
    ones = np.ones(max(d, g), int)
    return Detections(
        np.array(scores, float),
        ones[:d],
        np.full(d, 10.0) if sizes is None else np.array(sizes, float),
        ones[:g],
        np.full(g, 10.0) if truth_sizes is None else np.array(truth_sizes, float),
        np.zeros(g, bool) if crowd is None else np.array(crowd),
        iou,
    )


def test_by_hand():
    """Right, wrong, right: precision 1 up to a sensitivity of 1/2, then 2/3."""
    found = average_precision([detections([[0.8, 0], [0, 0], [0, 0.6]], [0.9, 0.8, 0.7])])
    assert found.ap(0.5) == pytest.approx((51 * 1.0 + 50 * 2 / 3) / 101)
    assert found.ap(0.75) == pytest.approx(51 / 101)
    assert found.ap(0.85) == 0.0
    assert found.ar(0.5) == 1.0
    assert found.ap() == pytest.approx((3 * found.ap(0.5) + 4 * found.ap(0.75)) / 10)


def test_surer_detections_choose_first():
    """The second detection would have been the better partner, and its own second choice is none."""
    found = average_precision([detections([[0.6, 0], [0.9, 0.3]], [0.9, 0.8])])
    assert found.ar(0.5) == 0.5
    assert found.ap(0.5) == pytest.approx(51 / 101)
    assert found.ar(0.7) == 0.5  # at 0.7 the first one has no claim


def test_crowds_are_neither_right_nor_wrong():
    found = average_precision([detections([[0.9, 0], [0, 0.7], [0, 0.8]], [0.3, 0.9, 0.8], crowd=[False, True])])
    assert found.ap(0.5) == pytest.approx(1.0)
    assert average_precision([detections([[0.7]], [0.9], crowd=[True])], classes=[1]).precision[0, 0, 0, 0] != 0  # undefined, not 0
    assert math.isnan(average_precision([detections([[0.7]], [0.9], crowd=[True])], classes=[1]).ap())


def test_an_object_goes_before_a_crowd_of_larger_overlap():
    found = average_precision([detections([[0.6, 0.9], [0.6, 0.1], [0.1, 0.9]], [0.6, 0.5, 0.4], crowd=[False, True])])
    assert found.ap(0.5) == pytest.approx(1.0)  # the surest has the object, which is not left to the next one
    assert (found.ar(0.5), found.ar(0.75)) == (1.0, 0.0)


def test_other_sizes_do_not_count():
    one = detections([[0.9, 0], [0, 0.9], [0, 0]], [0.5, 0.9, 0.95], sizes=[10, 90, 95], truth_sizes=[10, 90])
    found = average_precision([one], sizes={"all": (0, 1e9), "small": (0, 40)})
    assert found.ap(0.5, size="small") == pytest.approx(1.0)
    assert found.ap(0.5) < 1


def test_limit_takes_the_surest():
    one = detections(np.eye(4), [0.1, 0.9, 0.8, 0.2])
    assert [average_precision([one], limit=n).ar() for n in (1, 2, 4, None)] == [0.25, 0.5, 1.0, 1.0]


def test_nothing_found_and_nothing_there():
    missed, invented = detections(np.zeros((0, 2)), []), detections(np.zeros((2, 0)), [0.5, 0.4])
    assert average_precision([missed]).ap() == average_precision([missed, invented]).ap() == 0.0
    assert average_precision([missed]).ar() == 0.0
    assert math.isnan(average_precision([invented], classes=[1]).ap())
    assert average_precision([invented]).classes == average_precision([]).classes == ()
    assert math.isnan(average_precision([]).ap())
    with pytest.raises(ValueError, match=r"no IoU threshold 0\.33"):
        average_precision([missed]).ap(0.33)


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
    for name in ("iou", "sizes", "truth_sizes", "crowd"):
        np.testing.assert_array_equal(getattr(labels, name), getattr(masks, name))
    perfect = Contingency.between(truth, truth)
    assert average_precision([Detections.of_labels(perfect, np.ones(len(perfect.truth)))]).ap() == pytest.approx(1.0)


def test_what_is_ignored_is_a_crowd_of_every_class():
    truth = np.array([[9, 9, 9, 65537, 65537]])
    prediction = np.array([[65538, 65538, 131074, 65537, 65537]])
    one = Detections.of_labels(Contingency.between(prediction, truth, ignore=9, classes=class_of), np.array([0.1, 0.9, 0.8]))
    assert one.truth_classes.tolist() == [1, 1, 2]
    assert one.crowd.tolist() == [False, True, True]
    assert one.iou.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert average_precision([one]).ap() == pytest.approx(1.0)


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
    for name in ("iou", "sizes", "truth_sizes", "crowd", "truth_classes"):
        np.testing.assert_array_equal(getattr(labels, name), getattr(masks, name))


def test_boxes_of_any_dimension():
    a = np.array([[[0, 0, 0], [2, 2, 2]], [[0, 0, 0], [4, 2, 2]]], float)
    b = np.array([[[1, 0, 0], [3, 2, 2]], [[5, 5, 5], [6, 6, 6]], [[3, 0, 0], [1, 2, 2]]], float)
    assert box_volumes(b).tolist() == [8, 1, 0]
    np.testing.assert_allclose(box_iou(a, b), [[4 / 12, 0, 0], [8 / 16, 0, 0]])
    np.testing.assert_allclose(box_iou(a, b, np.array([True, False, False])), [[4 / 8, 0, 0], [8 / 16, 0, 0]])
    assert of_coco([[3, 5, 10, 20]]).tolist() == [[[5, 3], [25, 13]]]
    assert box_iou(np.zeros((0, 2, 3)), b).shape == (0, 3)


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
    with pytest.raises(ValueError, match="masks of different shapes"):
        Detections.of_masks([Rle.encode(np.ones((2, 3)))], np.ones(1), [Rle.encode(np.ones((3, 2)))])
    with pytest.raises(ValueError, match="not a finite number"):
        detections(np.zeros((1, 1)), [math.nan])
