from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.losses.centres import BORDER, NEAR, centre_offsets, offset_loss

SCALE = (1.0, 1.0, 1.0)


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
