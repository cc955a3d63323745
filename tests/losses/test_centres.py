from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from medseg.losses.centres import BORDER, NEAR, centre_offsets, offset_loss

SCALE = (1.0, 1.0, 1.0)


def by_hand(window: NDArray[np.int32], scale: tuple[float, ...]) -> NDArray[np.float32]:
    """What `centre_offsets` says of one window, object by object."""
    out = np.zeros((window.ndim + 2, *window.shape), np.float32)
    apart = [max(1, round(NEAR * side / max(scale))) for side in scale]
    for value in np.unique(window[window != 0]):
        own = window == value
        places = np.argwhere(own).astype(np.float64)
        relative = np.array(scale) / min(scale)
        distance = np.square((places - places.sum(0) / len(places)) / relative).sum(1).round(6)
        out[(slice(0, -2), *places.astype(int).T)] = (places[distance.argmin()] - places).T
        out[-2][own] = len(places)
        others = (window != 0) & ~own
        out[-1][own] = ndimage.maximum_filter(others, [2 * n + 1 for n in apart], mode="constant")[own]
    return out


def test_ways_sizes_and_neighbours_of_two_objects() -> None:
    objects = torch.zeros(1, 5, 14, dtype=torch.int32)
    objects[0, 1:4, 1:4] = 70000
    objects[0, 1:4, 4 + NEAR : 9] = 9  # the columns between them are background
    found = centre_offsets(objects, SCALE[: objects.ndim - 1])
    assert found.shape == (1, 4, 5, 14)
    ways, sizes, near = found[0, :2], found[0, 2], found[0, 3]
    assert ways[:, 1, 1].tolist() == [1, 1]
    assert ways[:, 3, 3].tolist() == [-1, -1]
    assert ways[:, 2, 2].tolist() == [0, 0]
    assert sizes.unique().tolist() == [0, 9]
    assert not near.any()  # one voxel too far
    objects[0, 2, 3 + NEAR] = 9
    near = centre_offsets(objects, SCALE[: objects.ndim - 1])[0, 3]
    rows, columns = np.nonzero(near.numpy())
    assert sorted(set(columns.tolist())) == [3, 3 + NEAR]
    assert rows.tolist().count(2) == 2
    assert near[objects[0] == 0].sum() == 0


@pytest.mark.parametrize("shape", [(6, 7), (3, 6, 7)])
def test_windows_do_not_see_each_other(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    objects = torch.from_numpy(rng.integers(0, 4, (3, *shape)).astype(np.int32))
    together = centre_offsets(objects, SCALE[: objects.ndim - 1])
    for n in range(3):
        assert torch.equal(together[n : n + 1], centre_offsets(objects[n : n + 1], SCALE[: objects.ndim - 1]))
    assert not centre_offsets(torch.zeros_like(objects), SCALE[: objects.ndim - 1]).any()


def test_errors_count_more_where_objects_meet() -> None:
    truth, sizes, near = torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), 16.0), torch.zeros(1, 4, 4)
    wrong = torch.zeros(1, 2, 4, 4)
    wrong[..., 0] = 1.0
    before = float(offset_loss(wrong, truth, sizes, near))
    near[..., 0] = 1
    after = float(offset_loss(wrong, truth, sizes, near))
    assert before == pytest.approx(0.25 * (np.pi / 16) ** 0.5)
    assert after == pytest.approx(before * 4 * (1 + BORDER) / (4 + BORDER))
    assert float(offset_loss(wrong, truth, torch.zeros_like(sizes), near)) == 0


def test_the_centre_is_the_nearest_voxel_by_the_scale() -> None:
    """Of a frame, whose centroid lies outside of it: nearest along the axis of the thin voxels, or of those that are near the other way."""
    objects = torch.ones(1, 7, 9, dtype=torch.int32)
    objects[0, 1:-1, 1:-1] = 0
    for scale, centre in (((1.0, 1.0), [0, 4]), ((1.0, 4.0), [3, 0])):
        ways = centre_offsets(objects, scale)[0, :2]
        assert ways[:, 0, 0].tolist() == centre


SCALES = {1: [(1.0,), (3.0,)], 2: [(1.0, 1.0), (7.5, 4.0), (1.0, 6.0)], 3: [(1.0, 1.0, 1.0), (1.2, 5.0, 4.8), (9.0, 2.0, 2.0)]}


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(0, 2), st.integers(1, 20), st.floats(0, 1))
def test_the_same_as_object_by_object(seed: int, axes: int, which: int, count: int, background: float) -> None:
    """Regions of any shape, entangled ones and single voxels among them, in several windows at once."""
    rng = np.random.default_rng(seed)
    scale = SCALES[axes][which % len(SCALES[axes])]
    shape = tuple(int(n) for n in rng.integers(1, (40, 14, 8)[axes - 1], axes))
    values = rng.integers(1, 200 << 16, count)
    coarse = rng.integers(0, count, tuple(-(-n // 3) for n in shape))
    regions = np.kron(coarse, np.ones((3,) * axes, int))[tuple(slice(0, n) for n in shape)]
    windows = np.where(rng.random((2, *shape)) < background, 0, values[regions]).astype(np.int32)
    found = centre_offsets(torch.from_numpy(windows), scale)
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), np.stack([by_hand(window, scale) for window in windows]))


def test_of_equal_voxels_the_first_is_the_centre() -> None:
    """Of a square of two by two, and of a ring of eight; far from the origin, where sums of coordinates are large."""
    objects = torch.zeros(1, 600, 600, dtype=torch.int32)
    objects[0, 100:102, 400:402] = 3
    objects[0, 580:583, 590:593] = 4
    objects[0, 581, 591] = 0
    ways = centre_offsets(objects, (1.0, 1.0))[0, :2]
    assert ways[:, 101, 401].tolist() == [-1, -1]
    assert ways[:, 582, 592].tolist() == [-2, -1]


def test_in_thick_slices_fewer_are_near() -> None:
    objects = torch.zeros(1, 6, 4, 8, dtype=torch.int32)
    objects[0, 0], objects[0, 2], objects[0, 3] = 1, 2, 3
    assert centre_offsets(objects, (4.0, 4.0, 4.0))[0, -1, :, 0, 0].tolist() == [1, 0, 1, 1, 0, 0]
    assert centre_offsets(objects, (1.0, 4.0, 4.0))[0, -1, :, 0, 0].tolist() == [0, 0, 1, 1, 0, 0]
