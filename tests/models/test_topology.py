from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.models.topology import SMALLEST_MAP, rounded, topology, total_stride

sizes = st.integers(1, 200)
spacings = st.floats(0.2, 8)


def test_small_isotropic_volume() -> None:
    found = topology((36, 50, 35), (1, 1, 1), 6)
    assert found.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert found.kernels == ((3, 3, 3),) * 4
    assert found.window == (40, 56, 40)


def test_anisotropic_volume_waits_with_the_coarse_axis() -> None:
    """nnU-Net's published plan for MSD prostate: 20 x 320 x 256 at 3.6 x 0.62 x 0.62 mm."""
    found = topology((20, 320, 256), (3.6, 0.62, 0.62), 7)
    assert found.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert found.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    assert found.window == (20, 320, 256)


def test_two_dimensions_and_limit_of_stages() -> None:
    assert len(topology((512, 512), (1, 1), 8).strides) == 8
    assert len(topology((512, 512), (1, 1), 3).strides) == 3


def test_an_axis_of_one_voxel_has_kernel_one() -> None:
    found = topology((1, 64, 64), (1, 1, 1), 5)
    assert all(k[0] == 1 and s[0] == 1 for k, s in zip(found.kernels, found.strides, strict=True))


@pytest.mark.parametrize("axes", [1, 2, 3])
@given(data=st.data())
def test_properties(axes: int, data: st.DataObject) -> None:
    window = data.draw(st.tuples(*[sizes] * axes))
    spacing = data.draw(st.tuples(*[spacings] * axes))
    most = data.draw(st.integers(1, 8))
    found = topology(window, spacing, most)
    total = total_stride(found.strides)
    assert 1 <= len(found.strides) == len(found.kernels) <= most
    assert all(s == 1 for s in found.strides[0])
    assert all(k in (1, 3) for kernel in found.kernels for k in kernel)
    for asked, given_, stride in zip(window, found.window, total, strict=True):
        assert given_ % stride == 0
        assert asked <= given_ < asked + stride
        assert stride == 1 or given_ // stride >= SMALLEST_MAP
    assert rounded(found.window, found.strides) == found.window
    assert topology(found.window, spacing, most).strides[: len(found.strides)] == found.strides
