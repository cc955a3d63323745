"""Polygons to voxels and back: exact, by the rule of the standard."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from medseg.io.dicom.contours import Mask, fill, outlines

masks = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12))


def area(polygon: np.ndarray) -> float:
    y, x = polygon.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2


def drawn(*rows: str) -> Mask:
    return np.array([[c == "#" for c in row] for row in rows])


def by_hand(polygon: list[tuple[float, float]], shape: tuple[int, int]) -> Mask:
    """Crossing numbers, one voxel after the other."""
    found = np.zeros(shape, bool)
    for y, x in np.ndindex(shape):
        for (a, b), (c, d) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            if (a > y) != (c > y) and x < b + (y - a) * (d - b) / (c - a):
                found[y, x] ^= True
    return found


@given(masks)
@settings(max_examples=120)
def test_outlines_give_the_mask_back(mask: Mask) -> None:
    assert np.array_equal(fill(outlines(mask), mask.shape), mask)


@given(masks)
@settings(max_examples=80)
def test_one_polygon_for_each_region_and_holes_in_it(mask: Mask) -> None:
    polygons = outlines(mask)
    assert len(polygons) == ndimage.label(mask)[1]
    union = np.zeros_like(mask)
    for polygon in polygons:  # a reader that knows no holes but fills polygon after polygon
        union |= fill([polygon], mask.shape)
        assert area(polygon) > 0
    assert np.array_equal(union, mask)


@given(masks, st.floats(-0.2, 0.2), st.floats(-0.2, 0.2))
@settings(max_examples=80)
def test_no_line_comes_near_a_centre(mask: Mask, dy: float, dx: float) -> None:
    """So any reader's rounding, up to a fifth of a voxel, gives the mask back."""
    moved = [polygon + np.array((dy, dx)) for polygon in outlines(mask)]
    assert np.array_equal(fill(moved, mask.shape), mask)


@given(st.lists(st.tuples(st.floats(-3, 12, width=16), st.floats(-3, 12, width=16)), min_size=3, max_size=9))
@settings(max_examples=120)
def test_any_polygon_is_filled_by_crossing_numbers(polygon: list[tuple[float, float]]) -> None:
    polygon = [(y + 0.0123, x + 0.0456) for y, x in polygon]  # no line through a centre
    expected, found = by_hand(polygon, (9, 10)), fill([np.array(polygon)], (9, 10))
    differ = np.argwhere(expected != found)
    for y, x in differ:  # only what lies on a line may differ
        assert any(
            abs((c - a) * (x - b) - (d - b) * (y - a)) < 1e-4 for (a, b), (c, d) in zip(polygon, polygon[1:] + polygon[:1], strict=True)
        )


def test_what_lies_on_the_line_belongs_to_the_region() -> None:
    square = np.array([(1.0, 1), (1, 4), (3, 4), (3, 1)])
    assert np.array_equal(fill([square], (5, 6)), drawn("......", ".####.", ".####.", ".####.", "......"))
    diamond = np.array([(0.0, 2), (2, 4), (4, 2), (2, 0)])
    assert np.array_equal(fill([diamond], (5, 5)), drawn("..#..", ".###.", "#####", ".###.", "..#.."))


def test_almost_on_the_line_is_not_on_it() -> None:
    square = np.array([(1.0001, 1.0001), (1.0001, 3.9999), (2.9999, 3.9999), (2.9999, 1.0001)])
    assert np.array_equal(fill([square], (5, 6)), drawn("......", "......", "..##..", "......", "......"))


def test_holes_by_inner_contours_and_by_keyholes() -> None:
    outer = np.array([(0.5, 0.5), (0.5, 6.5), (6.5, 6.5), (6.5, 0.5)])
    inner = np.array([(2.5, 2.5), (2.5, 4.5), (4.5, 4.5), (4.5, 2.5)])
    island = np.array([(3.0, 3.0)])  # a contour of one point on a centre
    ring = fill([outer, inner], (8, 8))
    assert ring.sum() == 36 - 4
    assert fill([outer, inner, island], (8, 8)).sum() == 36 - 4 + 1
    keyhole = np.array([*outer, (6.5, 0.5), (3.5, 0.5), (3.5, 2.5), (4.5, 2.5), (4.5, 4.5), (2.5, 4.5), (2.5, 2.5), (3.5, 2.5), (3.5, 0.5)])
    for order in (keyhole, keyhole[::-1]):
        assert np.array_equal(fill([order], (8, 8)), ring)


def test_a_ring_is_one_polygon() -> None:
    mask = drawn("#####", "#...#", "#.#.#", "#...#", "#####")
    polygons = outlines(mask)
    ring, island = sorted(polygons, key=len, reverse=True)
    assert area(ring) == pytest.approx((25 - 0.5) - (9 - 0.5))  # less the corners
    assert area(island) == pytest.approx(0.5)
    assert np.abs(ring[:, None] - np.argwhere(np.ones_like(mask))).max(axis=-1).min() >= 0.25


def test_single_voxels_borders_and_corners() -> None:
    assert outlines(np.zeros((3, 3), bool)) == []
    (single,) = outlines(drawn("#"))
    assert sorted(map(tuple, single.tolist())) == [(-0.5, 0.0), (0.0, -0.5), (0.0, 0.5), (0.5, 0.0)]
    assert len(outlines(drawn("#.", ".#"))) == 2
    assert len(outlines(drawn(".#", "#."))) == 2
    full = np.ones((3, 4), bool)
    assert np.array_equal(fill(outlines(full), full.shape), full)


@pytest.mark.parametrize("shift", [-20.0, 20.0])
def test_what_lies_beyond_the_image_is_cut_off(shift: float) -> None:
    square = np.array([(0.5, 0.5), (0.5, 2.5), (2.5, 2.5), (2.5, 0.5)])
    for axis in (0, 1):
        moved = square.copy()
        moved[:, axis] += shift
        assert not fill([moved], (5, 5)).any()
    wide = np.array([(-50.0, -50), (-50, 50), (50, 50), (50, -50)])
    assert fill([wide], (5, 6)).all()
    assert not fill([wide, wide * 0.9], (5, 6)).any()
    assert not fill([], (5, 6)).any()
    assert not fill([np.zeros((0, 2))], (5, 6)).any()
