"""The table of two label maps against sets of voxels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg import scratch
from medseg.metrics.instances import Contingency
from tests.metrics.instances.scenes import class_of, scene


def pairs(elements):
    shapes = st.one_of(hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), hnp.array_shapes(min_dims=3, max_dims=3, max_side=4))
    return shapes.flatmap(lambda s: st.tuples(*[hnp.arrays(np.int64, s, elements=elements)] * 2))


def voxels(labels):
    return {int(v): set(np.flatnonzero(labels == v).tolist()) for v in np.unique(labels) if v}


@settings(max_examples=150)
@given(pairs(st.sampled_from([0, 1, 2, 7, 255, 70000, 2**40])), st.sampled_from([None, 0, 2, 9]), st.booleans())
def test_counts_like_sets(pair, ignore, turned):
    prediction, truth = pair
    unknown = set(np.flatnonzero(truth == ignore).tolist())
    predicted, real = voxels(prediction), {v: s for v, s in voxels(truth).items() if v != ignore}
    if turned:  # the order of memory plays no part
        prediction, truth = np.asfortranarray(prediction), np.asfortranarray(truth)
    table = Contingency.between(prediction, truth, ignore=ignore)
    assert dict(zip(table.truth.ids.tolist(), table.truth.sizes.tolist(), strict=True)) == {v: len(s) for v, s in real.items()}
    assert dict(zip(table.prediction.ids.tolist(), table.prediction.sizes.tolist(), strict=True)) == {
        v: len(s) for v, s in predicted.items()
    }
    assert table.prediction.ignored.tolist() == [len(s & unknown) for _, s in sorted(predicted.items())]
    assert not table.truth.ignored.any()
    expected = {(t, p): (len(a & b), len(a & b) / len(a | (b - unknown))) for t, a in real.items() for p, b in predicted.items() if a & b}
    named = zip(table.truth.ids[table.rows].tolist(), table.prediction.ids[table.columns].tolist(), strict=True)
    assert dict(zip(named, zip(table.shared.tolist(), table.iou.tolist(), strict=True), strict=True)) == expected
    assert len(table.shared) == len(expected)
    assert set(table.truth.classes.tolist()) | set(table.prediction.classes.tolist()) <= {1}


@pytest.mark.parametrize("ignore", [None, 0, 3])
def test_slabs_add_up(monkeypatch, ignore):
    truth, prediction = scene((20, 24, 22), 18, 2)
    whole = Contingency.between(prediction, truth, ignore=ignore)
    monkeypatch.setattr(scratch, "CHUNK", 24 * 22 * 3)
    slabs = Contingency.between(prediction, truth, ignore=ignore)
    for name in ("rows", "columns", "shared"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(slabs, name))
    np.testing.assert_array_equal(whole.prediction.ignored, slabs.prediction.ignored)


def test_classes_and_crowds():
    truth = np.array([[65537, 65537, 65538, 131073, 131073, 0]])
    prediction = np.array([[65537, 65537, 65537, 131074, 65539, 65539]])
    table = Contingency.between(prediction, truth, classes=class_of, crowd=[131073])
    assert table.truth.classes.tolist() == [1, 1, 2]
    assert table.truth.crowd.tolist() == [False, False, True]
    assert table.prediction.classes.tolist() == [1, 1, 2]
    assert sorted(zip(table.rows.tolist(), table.columns.tolist(), table.akin.tolist(), strict=True)) == [
        (0, 0, True),
        (1, 0, True),
        (2, 1, False),
        (2, 2, True),
    ]
    assert table.excused.tolist() == [False, False, True]  # the second has another class than the crowd
    one, two = table.of_class(1), table.of_class(2)
    assert one.truth.ids.tolist() == [65537, 65538]
    assert one.prediction.ids.tolist() == [65537, 65539]
    assert list(zip(one.rows.tolist(), one.columns.tolist(), one.shared.tolist(), strict=True)) == [(0, 0, 2), (1, 0, 1)]
    assert (two.rows.tolist(), two.columns.tolist(), two.shared.tolist()) == ([0], [0], [1])
    assert len(table.of_class(5).truth) == len(table.of_class(5).shared) == 0


def test_more_than_half_is_excused():
    truth = np.array([[9, 9, 0, 0], [9, 9, 9, 0]])
    prediction = np.array([[1, 1, 1, 1], [2, 2, 2, 2]])
    assert Contingency.between(prediction, truth, ignore=9).excused.tolist() == [False, True]
    assert Contingency.between(prediction, truth, crowd=[9]).excused.tolist() == [False, True]


@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (2, 3, 4)])
def test_nothing_at_all(shape):
    table = Contingency.between(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))
    assert len(table.truth) == len(table.prediction) == len(table.shared) == len(table.iou) == len(table.excused) == 0


def test_refuses_what_are_no_label_maps():
    with pytest.raises(ValueError, match="do not belong together"):
        Contingency.between(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="the truth holds float32"):
        Contingency.between(np.zeros((2, 3), int), np.zeros((2, 3), np.float32))
