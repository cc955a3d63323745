import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseg.imaging import resample
from medseg.imaging.resample import axis_matrix, coarse_axis, resample_image, resample_label, resample_slabs

sizes = st.integers(1, 40)


@given(source=sizes, target=sizes, order=st.sampled_from([0, 1, 3]))
@settings(max_examples=80)
def test_rows_sum_to_one(source, target, order):
    matrix = axis_matrix(source, target, order)
    assert matrix.shape == (target, source)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("shape", [(31, 20, 17), (7, 45, 40), (40, 62, 9), (20, 31, 17)])
def test_equals_scipy_zoom(order, shape):
    image = np.random.default_rng(0).normal(size=(1, 20, 31, 17)).astype(np.float32)
    zoom = [n / m for n, m in zip(shape, image.shape[1:], strict=True)]
    expected = ndimage.zoom(image[0].astype(np.float64), zoom, order=order, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(resample_image(image, shape, order=order)[0], expected, atol=3e-5)


def test_coarse_axis_is_nearest_neighbour():
    image = np.random.default_rng(0).normal(size=(1, 4, 10, 10)).astype(np.float32)
    finer = resample_image(image, (8, 10, 10), apart=0)
    np.testing.assert_array_equal(finer[:, ::2], image)
    np.testing.assert_array_equal(finer[:, 1::2], image)


@pytest.mark.parametrize(
    ("spacing", "axis"), [((5, 1, 1), 0), ((1, 5, 1), 1), ((3, 1, 1), None), ((1, 1, 1), None), ((9, 1), None), ((6, 2.5, 1), None)]
)
def test_coarse_axis_is_more_than_three_times_coarser(spacing, axis):
    assert coarse_axis(spacing) == axis


@given(shape=st.tuples(sizes, sizes), target=st.tuples(sizes, sizes), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_label_is_one_hot_linear_argmax(shape, target, seed):
    label = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)
    maps = resample_image(np.stack([label == v for v in range(4)]).astype(np.float32), target, order=1)
    result = resample_label(label, target)
    assert result.dtype == np.uint8
    top = np.take_along_axis(maps, result[None].astype(int), 0)[0]
    np.testing.assert_allclose(top, maps.max(0), atol=1e-5)


@given(
    source=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    target=st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(1, 14)),
    seed=st.integers(0, 99),
)
@example(source=(1, 7, 9), target=(4, 14, 5), seed=2)
@settings(max_examples=60)
def test_label_equals_scipy_to_the_voxel(source, target, seed):
    """Also where votes are equal but for rounding, which sizes of the same factors make likely."""
    label = np.random.default_rng(seed).integers(-1, 3, source).astype(np.int16)
    zoom = [n / m for n, m in zip(target, source, strict=True)]
    votes = np.stack([ndimage.zoom((label == v).astype(float), zoom, order=1, mode="nearest", grid_mode=True) for v in (-1, 0, 1, 2)])
    near = ndimage.zoom(label, zoom, order=0, mode="nearest", grid_mode=True)
    best = votes == votes.max(0)
    expected = np.where(np.take_along_axis(best, near[None] + 1, 0)[0], near, best.argmax(0) - 1)
    np.testing.assert_array_equal(resample_label(label, target), expected)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ([2, 1], 1),  # the nearest of two halves is the upper one
        ([1, 2], 2),
        ([[[3, 1], [1, 1]], [[2, 2], [2, 3]]], 1),  # three votes each for 1 and 2; the nearest, 3, has lost: the smallest
    ],
)
def test_equal_votes_go_to_the_nearest(label, expected):
    label = np.array(label, np.uint8)
    assert resample_label(label, (1,) * label.ndim).item() == expected


def test_background_outside_of_the_body_counts_by_itself():
    label = np.array([[1, 1], [0, 0]], np.uint8)
    body = np.array([[True, True], [True, False]])
    assert resample_label(label, (1, 1)).item() == 0
    inside = resample_label(label, (1, 1), body=body)
    assert (inside.item(), inside.dtype) == (1, np.uint8)
    assert set(np.unique(resample_label(label, (5, 7), body=body))) == {0, 1}  # and is background again


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("classes", [2, 20])
def test_every_kind_of_integer_gives_the_same(kind, classes):
    label = np.random.default_rng(0).integers(0, classes + 1, (9, 8, 7))
    body = ndimage.binary_dilation(label == 1)
    for inside, apart in itertools.product((None, body), (None, 1)):
        found = resample_label(label.astype(kind), (12, 7, 11), apart, inside)
        assert found.dtype == kind
        np.testing.assert_array_equal(found, resample_label(label, (12, 7, 11), apart, inside))


@pytest.mark.parametrize("voters", [1, 7, 10**6])
def test_votes_are_the_same_whatever_is_counted_at_a_time(monkeypatch, voters):
    label = np.random.default_rng(0).integers(0, 12, (9, 8, 7)).astype(np.uint8)
    expected = resample_label(label, (12, 7, 11))
    monkeypatch.setattr(resample, "VOTERS", voters)
    np.testing.assert_array_equal(resample_label(label, (12, 7, 11)), expected)


def test_label_values_are_not_mixed():
    label = np.zeros((8, 8, 8), np.int16)
    label[2:5], label[5:] = 7, -1
    assert set(np.unique(resample_label(label, (13, 5, 9)))) == {-1, 0, 7}


def test_label_in_slabs_equals_label_at_once(monkeypatch):
    label = np.random.default_rng(0).integers(0, 3, (30, 12, 11)).astype(np.uint8)
    body = label[::-1] > 0
    cases = [(shape, apart, inside) for shape in ((47, 10, 15), (9, 20, 11)) for apart in (None, 0, 2) for inside in (None, body)]
    whole = [resample_label(label, *case) for case in cases]
    monkeypatch.setattr(resample, "SLAB", 300)
    for expected, case in zip(whole, cases, strict=True):
        np.testing.assert_array_equal(resample_label(label, *case), expected)


def test_image_in_slabs_equals_image_at_once(monkeypatch):
    image = np.random.default_rng(0).normal(size=(2, 60, 9, 11)).astype(np.float32)
    whole = [resample_image(image, s) for s in ((97, 10, 15), (29, 9, 5))]
    monkeypatch.setattr(resample, "SLAB", 300)
    for expected, shape in zip(whole, ((97, 10, 15), (29, 9, 5)), strict=True):
        np.testing.assert_allclose(resample_image(image, shape), expected, atol=1e-5)


@given(
    source=st.tuples(sizes, st.integers(1, 9)),
    target=st.tuples(sizes, st.integers(1, 9)),
    rows=st.integers(1, 12),
    slab=st.integers(1, 400),
)
@settings(max_examples=60)
def test_streaming_equals_resampling_at_once(source, target, rows, slab):
    values = np.random.default_rng(0).normal(size=(2, *source)).astype(np.float32)
    parts = ((slice(i, min(i + rows, source[0])), values[:, i : i + rows]) for i in range(0, source[0], rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample, "SLAB", slab)
        got = list(resample_slabs(parts, source, target))
    assert [r.start for r, _ in got] == [0, *(r.stop for r, _ in got[:-1])]
    assert got[-1][0].stop == target[0]
    np.testing.assert_allclose(np.concatenate([v for _, v in got], 1), resample_image(values, target, order=1), atol=1e-5)
