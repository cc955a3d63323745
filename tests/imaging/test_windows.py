import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medseg.imaging.windows import coverage, cut, gaussian_weights, overlap_slices, window_starts


@given(size=st.integers(1, 300), window=st.integers(1, 100), overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_windows_cover_every_sample_and_overlap_enough(size, window, overlap):
    starts = window_starts(size, window, overlap)
    assert (coverage(size, window, starts) > 0).all()
    if size <= window:
        assert len(starts) == 1
        assert starts[0] <= 0 <= starts[0] + window - size
    else:
        assert starts[0] == 0
        assert starts[-1] == size - window
        gaps = [b - a for a, b in itertools.pairwise(starts)]
        assert max(gaps) <= max(1, window * (1 - overlap)) + 1  # starts are rounded to samples
        assert min(gaps) >= 1


def test_starts_of_a_known_axis():
    assert window_starts(100, 40, 0.5) == (0, 20, 40, 60)
    assert window_starts(36, 40, 0.5) == (-2,)


def test_gaussian_is_symmetric_and_never_zero():
    for n in (1, 2, 7, 64, 1024):
        weights = gaussian_weights(n)
        np.testing.assert_allclose(weights, weights[::-1])
        assert weights.min() > 1e-4
        assert weights.max() <= 1


@given(start=st.integers(-60, 60), window=st.integers(1, 30), size=st.integers(1, 40))
def test_overlap_slices_describe_the_same_samples(start, window, size):
    inside, part = overlap_slices(start, window, size)
    assert inside.stop - inside.start == part.stop - part.start >= 0
    expected = [i for i in range(start, start + window) if 0 <= i < size]
    assert list(range(inside.start, inside.stop)) == expected
    if expected:
        assert part.start == expected[0] - start


@given(start=st.tuples(st.integers(-8, 12), st.integers(-8, 12)), window=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_cut_is_the_window_of_the_zero_padded_array(start, window):
    array = np.arange(1, 85, dtype=np.int32).reshape(2, 6, 7)
    padded = np.pad(array, ((0, 0), (30, 30), (30, 30)))
    expected = padded[:, 30 + start[0] : 30 + start[0] + window[0], 30 + start[1] : 30 + start[1] + window[1]]
    result = cut(array, start, window, np.float32)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)


def test_cut_is_a_copy():
    array = np.zeros((1, 4, 4), np.float32)
    cut(array, (0, 0), (4, 4), np.float32)[...] = 1
    assert not array.any()
