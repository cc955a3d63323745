"""Masks over boxes in voxels."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.cells import rasterised, voxel_ranges


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
