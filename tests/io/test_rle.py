"""COCO's run lengths: strings and boxes made by pycocotools 2.0.11, round trips, damage."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg.errors import ImageError
from medseg.io.rle import Rle, union

GRID = np.indices((9, 7))
BALL = (GRID[0] - 4) ** 2 + (GRID[1] - 3) ** 2 <= 9
WIDE = np.pad(np.ones((40, 50), bool), ((1000, 3), (2, 400)))

# pycocotools.mask.encode(...)["counts"] and toBbox (x, y, width, height)
GOLDEN = [
    (np.zeros((3, 4)), "<", (0, 0, 0, 0)),
    (np.ones((3, 4)), "0<", (0, 0, 4, 3)),
    (GRID.sum(0)[:3, :4] == 0, "01;", (0, 0, 1, 1)),
    (np.indices((6, 5))[0] % 2, "111" + "0" * 27, (0, 1, 5, 5)),
    (BALL, "4164N0O20N102LN", (0, 1, 7, 7)),
    (WIDE, "^P3X1[o0" + "0" * 97 + "X^f<", (2, 1000, 50, 40)),
]


@pytest.mark.parametrize(("mask", "text", "box"), GOLDEN)
def test_equal_to_pycocotools(mask, text, box):
    rle = Rle.encode(mask)
    assert rle.to_string() == text
    assert rle.area == np.count_nonzero(mask)
    x, y, width, height = box
    assert rle.box.tolist() == [[y, x], [y + height, x + width]]
    for given_text in (text, text.encode()):
        np.testing.assert_array_equal(Rle.of_string(given_text, mask.shape).decode(), mask != 0)


def test_an_annotation_of_coco():
    """A person of image 142238 in the sample of panopticapi, with the area and box that are published with it."""
    rle = Rle.of_string("b7\\1P<VOi001O1O1O4L2N3LokV8", (427, 640))
    assert rle.area == 153
    assert rle.box.tolist() == [[242, 0], [286, 9]]
    assert Rle.encode(rle.decode()).to_string() == "b7\\1P<VOi001O1O1O4L2N3LokV8"


# pycocotools.mask.merge(frPyObjects(...)): string and area
@pytest.mark.parametrize(
    ("shape", "parts", "text", "area"),
    [
        ((9, 12), [[1.5, 1, 10.2, 3.3, 4, 8]], "c0371N2NO1O2N100O`0", 27),
        ((9, 12), [[1, 1, 6, 1, 6, 6, 1, 6], [4, 3, 9.5, 3, 9.5, 8, 4, 8]], ":5400002N02N000000?", 49),
        ((6, 8), [[-3, -3, 20, 2, 5, 11]], "0332No0", 44),
        ((9, 12), [[1, 1, 10, 7, 10, 1, 1, 7]], ":64N2N1090G0O2N2`0", 28),  # crosses itself
        ((4, 5), [[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]], "d0", 0),
    ],
)
def test_polygons_equal_to_pycocotools(shape, parts, text, area):
    rle = union([Rle.of_polygon(part, shape) for part in parts])
    assert (rle.to_string(), rle.area) == (text, area)
    backwards = union([Rle.of_polygon(np.reshape(part, (-1, 2))[::-1], shape) for part in parts])
    assert backwards.to_string() == text


def drawn_point_by_point(points, shape):
    """As `pycocotools` draws: every point of the fine outline, in order."""
    corners = [(int(5 * x + 0.5), int(5 * y + 0.5)) for x, y in points]
    line = []
    for (xs, ys), (xe, ye) in zip(corners, corners[1:] + corners[:1], strict=True):
        dx, dy = abs(xe - xs), abs(ye - ys)
        flip = (dx >= dy and xs > xe) or (dx < dy and ys > ye)
        if flip:
            xs, ys, xe, ye = xe, ye, xs, ys
        slope = (ye - ys) / max(dx, 1) if dx >= dy else (xe - xs) / dy
        part = [(t + xs, int(ys + slope * t + 0.5)) if dx >= dy else (int(xs + slope * t + 0.5), t + ys) for t in range(max(dx, dy) + 1)]
        line += part[::-1] if flip else part
    height, width = shape
    inside = np.zeros(height * width + 1, bool)
    for (before, v), (u, w) in pairwise(line):
        column = ((u if u < before else u - 1) + 0.5) / 5 - 0.5
        if u != before and column == int(column) and 0 <= column <= width - 1:
            row = int(np.ceil(min(max((min(v, w) + 0.5) / 5 - 0.5, 0), height)))
            inside[int(column) * height + row :] ^= True
    return inside[:-1].reshape(shape, order="F")


COORDINATE = st.floats(-40, 60, width=32) | st.integers(-400, 600).map(lambda n: n / 10)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=7), st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_polygons_equal_to_those_drawn_point_by_point(points, shape):
    np.testing.assert_array_equal(Rle.of_polygon(points, shape).decode(), drawn_point_by_point(points, shape))


def test_polygons_far_beyond_their_image():
    """They cost what lies in the image, and no more."""
    far = 4e8
    tracemalloc.start()
    everything = Rle.of_polygon([[-far, -far], [far, -far], [far, far], [-far, far]], (10, 12))
    left = Rle.of_polygon([[-far, -far], [4, -far], [4, far], [-far, far]], (10, 12))
    below = Rle.of_polygon([[-far, 3], [far, 3], [far, far], [-far, far]], (10, 12))
    triangle = Rle.of_polygon([[-far, -far], [far, far], [-far, far]], (10, 12)).decode()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert everything.decode().all()
    assert left.decode().tolist() == [[x < 4 for x in range(12)]] * 10
    assert below.decode().tolist() == [[y >= 3] * 12 for y in range(10)]
    y, x = np.indices((10, 12))
    assert triangle[y > x].all()
    assert not triangle[y < x].any()
    assert peak < 2**20


def test_an_outline_of_many_long_lines_is_drawn_within_bounds():
    rows = np.tile([0.0, 3000.0], 1000)
    tracemalloc.start()
    found = Rle.of_polygon(np.stack([np.linspace(0, 20, 2000), rows], 1), (3000, 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < found.area < 60_000
    assert peak < 50 * 2**20


@pytest.mark.parametrize("far", [5e8, -5e8, 1e18, 1e300])
def test_polygons_too_far_away(far):
    with pytest.raises(ImageError, match="no polygon; found 3 points, not all nearer than 429496729 pixels"):
        Rle.of_polygon([1, 2, 3, 4, 5, far], (8, 8))


def test_counts_whose_sum_takes_too_many_bits():
    with pytest.raises(ImageError, match=f"do not fill their image; found {2**64 + 12} voxels, expected 12 for 3 x 4"):
        Rle((3, 4), np.array([2**62] * 4 + [12]))


@pytest.mark.parametrize("points", [[], [1, 2, 3, 4], [1, 2, 3, float("nan"), 5, 6], [1, 2, 3, 4, 5, float("inf")]])
def test_no_polygons(points):
    with pytest.raises(ImageError, match=r"no polygon; found \d points.*, expected at least 3"):
        Rle.of_polygon(points, (8, 8))


MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6))


@settings(max_examples=150)
@given(MASKS)
def test_round_trip(mask):
    rle = Rle.encode(mask)
    again = Rle.of_string(rle.to_string(), mask.shape)
    assert again.counts.tolist() == rle.counts.tolist()
    np.testing.assert_array_equal(again.decode(), mask)
    assert rle.area == mask.sum()
    if mask.any():
        low, high = rle.box.astype(int)
        inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        assert mask[inside].sum() == mask.sum()
        if mask.ndim == 1:
            assert (low[0], high[0]) == (np.flatnonzero(mask)[0], np.flatnonzero(mask)[-1] + 1)


@settings(max_examples=100)
@given(hnp.array_shapes(min_dims=1, max_dims=3, max_side=6).flatmap(lambda s: st.tuples(*[hnp.arrays(bool, s)] * 2)))
def test_union(pair):
    a, b = pair
    assert union([Rle.encode(a), Rle.encode(b), Rle.encode(a)]).counts.tolist() == Rle.encode(a | b).counts.tolist()


@settings(max_examples=100)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=12))
def test_numbers_of_any_length(counts):
    rle = Rle((sum(counts),), np.array(counts))
    assert Rle.of_string(rle.to_string(), rle.shape).counts.tolist() == counts


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("0<", (3, 5), "run lengths do not fill their image; found 12 voxels, expected 15 for 3 x 5"),
        ("4Y", (3, 3), "not a string of run lengths"),  # ends within a number
        ("0 <", (3, 4), "not a string of run lengths"),
        ("0é", (3, 4), "run lengths do not fill"),
        ("o" * 13 + "0", (3, 4), "more than 60 bits"),
        ("O=", (3, 4), "with negative counts"),
        ("", (3, 4), "found 0 voxels, expected 12"),
    ],
)
def test_damaged_strings(text, shape, message):
    with pytest.raises(ImageError, match=message):
        Rle.of_string(text, shape)
