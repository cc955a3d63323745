"""Boxes of values."""

import numpy as np
import pytest

from medseg.imaging.crop import value_boxes


@pytest.mark.parametrize("size", [40, 400])  # in the smaller array a list with a place for each number would be larger than the array
def test_boxes_of_codes_are_those_of_each_value(size):
    codes = np.zeros((size, size), np.int32)
    codes[2:5, 3] = (1 << 16) | 1
    codes[7, 8:10] = (2 << 16) | 7
    codes[30:32, 30:33] = (1 << 16) | 2
    codes[0, 0] = -5
    codes[39, 39] = 9 << 16
    wanted = ((2 << 16) | 7, (1 << 16) | 1, (1 << 16) | 3)
    assert value_boxes(codes, wanted) == {wanted[0]: (slice(7, 8), slice(8, 10)), wanted[1]: (slice(2, 5), slice(3, 4))}
