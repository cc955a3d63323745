"""Cropping, normalisation and components."""

import numpy as np
from scipy import ndimage

from medseg.imaging.components import component_sizes
from medseg.imaging.crop import bounding_box, nonzero
from medseg.imaging.normalize import body_mask, standardise, to_spread, zscore


def test_bounding_box():
    mask = np.zeros((5, 6, 7), bool)
    assert bounding_box(mask) == ()
    mask[1, 2, 3] = mask[3, 2, 6] = True
    assert bounding_box(mask) == ((1, 4), (2, 3), (3, 7))


def test_nonzero_in_any_channel():
    image = np.zeros((2, 3, 3))
    image[0, 0, 0], image[1, 2, 2] = 1, -1
    np.testing.assert_array_equal(np.argwhere(nonzero(image)), [[0, 0], [2, 2]])


def test_standardise_clips_first():
    np.testing.assert_allclose(standardise(np.array([-2000, 0, 50, 3000], np.int16), 50, 100, -100, 250), [-1.5, -0.5, 0, 2])


def test_zscore():
    result = zscore(np.random.default_rng(0).normal(300, 40, (20, 20)).astype(np.uint16))
    assert result.dtype == np.float32
    assert abs(result.mean()) < 1e-5
    assert abs(result.std() - 1) < 1e-5


def test_zscore_of_a_constant_is_zero_and_not_nan():
    assert not zscore(np.full((4, 4), 7.0)).any()
    assert not zscore(np.full((4, 4), 7.0), np.ones((4, 4), bool)).any()


def test_spread_puts_the_background_at_zero():
    values = np.arange(1001, dtype=np.float64).reshape(77, 13)
    for scale, offset in ((1.0, 0.0), (-3.0, 200.0)):  # bright on dark, dark on bright, of any contrast
        channel = scale * values + offset
        low, high = np.percentile(channel, (1, 99.8))
        result = to_spread(channel)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, (channel - np.median(channel)) / (high - low) * 4, rtol=1e-5, atol=1e-6)
    measured = values < 500
    assert abs(np.median(to_spread(values, measured=measured)[measured])) < 1e-6
    specks = np.zeros((100, 100))
    specks[:2, :3] = 5  # too few for the percentiles: the deviation is taken
    np.testing.assert_allclose(to_spread(specks), zscore(specks))
    assert not to_spread(np.full((4, 4), 7.0)).any()


def test_masked_zscore_ignores_the_outside():
    channel = np.zeros((20, 20))
    channel[5:15, 5:15] = np.random.default_rng(0).normal(300, 40, (10, 10))
    mask = channel != 0
    result = zscore(channel, mask)
    assert not result[~mask].any()
    assert abs(result[mask].std() - 1) < 1e-5
    assert zscore(channel, np.zeros_like(mask)).any() == np.False_


def test_body_mask_fills_holes():
    mask = np.ones((9, 9), bool)
    mask[0], mask[4, 4] = False, False
    assert body_mask(mask)[4, 4]
    assert not body_mask(mask)[0].any()


def test_images_have_no_holes_where_they_are_slices_of_volumes():
    """nnU-Net fills holes of `(1, y, x)` volumes."""
    mask = np.random.default_rng(0).random((20, 20)) < 0.7
    mask[8:11, 8:11], mask[9, 9] = True, False
    assert body_mask(mask)[9, 9]
    np.testing.assert_array_equal(body_mask(mask, flat_is_slice=True), ndimage.binary_fill_holes(mask[None])[0])
    ball = np.ones((5, 5, 5), bool)
    ball[2, 2, 2] = False
    assert body_mask(ball, flat_is_slice=True).all()
    assert not body_mask(ball[2:3], flat_is_slice=True).all()


def test_component_sizes_use_full_connectivity():
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = True
    assert component_sizes(mask).tolist() == [1, 2]
    assert component_sizes(np.zeros((3, 3), bool)).tolist() == []
