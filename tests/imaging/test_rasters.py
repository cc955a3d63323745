"""Boxes that meet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.imaging import rasters
from medseg.imaging.rasters import lie_within, meeting, shared_room, tight


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(0, 30), st.integers(1, 3), st.integers(1, 50))
def test_all_pairs_that_meet_are_found_once(seed, n, m, axes, portion) -> None:
    rng = np.random.default_rng(seed)

    def some(count):
        lower = rng.integers(0, 12, (count, axes))
        return np.concatenate([lower, lower + rng.integers(1, 9, (count, axes))], 1)

    boxes, others = some(n), some(m)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rasters, "PAIRS", portion)
        found = [(int(i), int(j)) for rows, columns in meeting(boxes, others) for i, j in zip(rows, columns, strict=True)]
    expected = {
        (i, j)
        for i in range(n)
        for j in range(m)
        if (boxes[i, :axes] < others[j, axes:]).all() and (boxes[i, axes:] > others[j, :axes]).all()
    }
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_the_smallest_box_of_what_is_true() -> None:
    mask = np.zeros((4, 5), bool)
    assert tight(mask) is None
    mask[1, 2] = mask[3, 1] = True
    assert tight(mask) == (slice(1, 4), slice(1, 3))


def test_room_that_boxes_share_and_boxes_within_others() -> None:
    boxes = np.array([[0, 0, 4, 4], [2, 2, 4, 4], [5, 5, 6, 6]])
    others = np.array([[2, 1, 6, 9], [0, 0, 4, 4], [0, 0, 5, 6]])
    assert shared_room(boxes, others).tolist() == [6, 4, 0]
    assert lie_within(boxes, others).tolist() == [False, True, False]
    assert lie_within(boxes, others[1:2]).tolist() == [True, True, False]
