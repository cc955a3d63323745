"""Pairs that overlap, against looking at all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg.io.rle import Rle
from medseg.metrics.instances import overlaps
from medseg.metrics.instances.overlaps import box_overlaps, mask_overlaps


def dense(found, shape):
    rows, columns, values = found
    full = np.zeros(shape)
    full[rows, columns] = values
    assert len(rows) == np.count_nonzero(full)  # every pair once, and none without an overlap
    return full


MASKS = hnp.array_shapes(min_dims=1, max_dims=3, max_side=6).flatmap(lambda s: st.tuples(*[st.lists(hnp.arrays(bool, s), max_size=4)] * 2))


@settings(max_examples=100)
@given(MASKS)
def test_masks(sides):
    """Also empty ones, and those that overlap others of their own side."""
    mine, theirs = sides
    found = mask_overlaps([Rle.encode(m) for m in mine], [Rle.encode(m) for m in theirs])
    assert dense(found, (len(mine), len(theirs))).tolist() == [[(a & b).sum() for b in theirs] for a in mine]
    assert sorted(zip(*(part.tolist() for part in found[:2]), strict=True)) == list(
        zip(*(part.tolist() for part in found[:2]), strict=True)
    )


CORNERS = st.integers(1, 3).flatmap(
    lambda d: st.tuples(*[hnp.arrays(np.float64, st.tuples(st.integers(0, 6), st.just(2), st.just(d)), elements=st.integers(-4, 4))] * 2)
)


@settings(max_examples=200)
@given(CORNERS)
def test_boxes(sides):
    """Also those without any volume, those that end before they begin, and equal ones."""
    mine, theirs = sides
    expected = [[np.clip(np.minimum(a[1], b[1]) - np.maximum(a[0], b[0]), 0, None).prod() for b in theirs] for a in mine]
    assert dense(box_overlaps(mine, theirs), (len(mine), len(theirs))).tolist() == expected


@pytest.mark.parametrize("at_once", [1, 7, 50])
def test_a_few_at_a_time(monkeypatch, at_once):
    rng = np.random.default_rng(0)
    boxes = rng.integers(0, 30, (2, 60, 1, 2)) + np.array([0, 6])[:, None] * rng.random((2, 60, 1, 1))
    masks = [[Rle.encode(rng.random((9, 8)) < 0.3) for _ in range(12)] for _ in range(2)]
    whole = [*mask_overlaps(*masks), *box_overlaps(*boxes)]
    monkeypatch.setattr(overlaps, "AT_ONCE", at_once)
    parts = [*mask_overlaps(*masks), *box_overlaps(*boxes)]
    assert len(whole[0]) > 100
    assert len(whole[3]) > 50
    assert all((a == b).all() for a, b in zip(whole, parts, strict=True))


def test_objects_that_lie_apart_are_not_compared(monkeypatch):
    """The work is that of neighbours: of 10000 boxes in a grid, each meets those of its row at most."""
    corners = np.stack(np.meshgrid(np.arange(100), np.arange(100)), -1).reshape(-1, 2) * 10.0
    boxes = np.stack([corners, corners + 8], 1)
    met = []
    meeting = overlaps._meeting

    def counted(*sides):
        for i, j in meeting(*sides):
            met.append(len(i))
            yield i, j

    monkeypatch.setattr(overlaps, "_meeting", counted)
    rows, columns, shared = box_overlaps(boxes, boxes)
    assert (rows == columns).all()
    assert set(shared.tolist()) == {64.0}
    assert sum(met) == 10000 * 100
