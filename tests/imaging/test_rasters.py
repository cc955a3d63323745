"""Masks over boxes in voxels, and boxes that meet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.imaging import rasters
from medseg.imaging.rasters import lie_within, meeting, rasterised, shared_room, tight, voxel_ranges


def test_a_voxel_belongs_to_a_box_that_holds_its_centre() -> None:
    boxes = np.array([[3.0, 4.0], [3.4, 5.6], [3.6, 5.4], [3.5, 4.5], [-2.2, 1.0]])
    first, last = voxel_ranges(boxes)
    assert list(zip(first[:, 0].tolist(), last[:, 0].tolist(), strict=True)) == [(3, 4), (3, 6), (4, 5), (3, 4), (-2, 1)]


def test_a_box_between_two_centres_is_one_voxel() -> None:
    first, last = voxel_ranges(np.array([[3.6, 4.4], [3.1, 3.2], [3.9, 4.3]]))
    assert list(zip(first[:, 0].tolist(), last[:, 0].tolist(), strict=True)) == [(4, 5), (3, 4), (4, 5)]


def test_cells_that_are_voxels_stay_as_they_are() -> None:
    cells = np.random.default_rng(0).random((4, 3)).astype(np.float32)
    assert np.array_equal(rasterised(cells, np.array([2.0, 5, 6, 8]), (2, 5), (6, 8)), cells)
    assert np.array_equal(rasterised(cells, np.array([2.0, 5, 6, 8]), (3, 5), (5, 7)), cells[1:3, :2])


def test_values_are_linear_between_cells_and_go_on_beyond_them() -> None:
    cells = np.array([0.0, 1.0])
    found = rasterised(cells, np.array([0.0, 8]), (0,), (8,))
    assert found == pytest.approx([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])
    nearest = rasterised(cells, np.array([0.0, 8]), (0,), (8,), thick=0)
    assert nearest.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("factor", [2, 3])
def test_masks_of_whole_multiples_are_exact(factor) -> None:
    mask = np.random.default_rng(1).random((5, 7)) < 0.5
    cells = mask.repeat(factor, 0).repeat(factor, 1)
    found = rasterised(cells, np.array([10.0, 20, 15, 27]), (10, 20), (15, 27))
    assert np.array_equal(found >= 0.5, mask)


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
