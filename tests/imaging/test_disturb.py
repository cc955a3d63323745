from __future__ import annotations

import pytest
import torch

from medseg.imaging.disturb import change_shape, disturb, empty_box


def square(size=12, low=4, high=8, value=3):
    label = torch.zeros(2, size, size, dtype=torch.int16)
    label[:, low:high, low:high] = value
    return label


@pytest.mark.parametrize(("how", "side"), [("grow", 6), ("shrink", 2), ("open", 4), ("close", 4)])
def test_a_square_changes_by_the_radius(how, side):
    label = square()
    change_shape(label, 0, 3, how, 1, in_plane=False)
    assert int((label[0] == 3).sum()) == side**2
    assert torch.equal(label[1], square()[1])  # the other map of the batch is left alone


def test_growing_takes_from_others_and_shrinking_gives_to_background():
    label = square()
    label[0, 8:10, 4:8] = 5
    change_shape(label, 0, 3, "grow", 1, in_plane=False)
    assert (label[0, 8, 4:8] == 3).all()
    assert (label[0, 9, 4:8] == 5).all()
    change_shape(label, 0, 3, "shrink", 2, in_plane=False)
    assert int((label[0] == 3).sum()) == 4
    assert int((label[0] == 5).sum()) == 4


def test_opening_removes_a_speck_and_closing_fills_a_gap():
    label = square()
    label[0, 0, 0] = 3
    label[1, 5, 5] = 0
    change_shape(label, 0, 3, "open", 1, in_plane=False)
    change_shape(label, 1, 3, "close", 1, in_plane=False)
    assert torch.equal(label, square())


def test_in_plane_leaves_other_slices_alone():
    label = torch.zeros(1, 5, 9, 9, dtype=torch.int16)
    label[0, 2, 4, 4] = 1
    change_shape(label, 0, 1, "grow", 1, in_plane=True)
    assert int(label[0, 2].sum()) == 9
    assert int(label.sum()) == 9


def test_a_box_beyond_the_border_is_cut_off():
    label = torch.ones(1, 6, 6, dtype=torch.int16)
    empty_box(label, 0, (0, 5), (4, 4))
    expected = torch.ones(6, 6)
    expected[0:2, 3:] = 0
    assert torch.equal(label[0].float(), expected)


def test_nothing_happens_without_probability_and_to_the_argument():
    label = square()
    assert torch.equal(disturb(label, 0, 4, 0, 0.5, False, torch.Generator().manual_seed(0)), label)
    changed = disturb(label, 1, 4, 1, 0.5, False, torch.Generator().manual_seed(0))
    assert not torch.equal(changed, label)
    assert torch.equal(label, square())
    assert set(torch.unique(changed).tolist()) <= {0, 3}


def test_the_same_generator_gives_the_same_damage():
    first, second, other = (disturb(square(), 0.5, 3, 0.5, 0.5, False, torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_lost_boxes_hold_foreground():
    """With one voxel of foreground, whatever box is emptied, it is the voxel's."""
    label = torch.zeros(1, 9, 9, dtype=torch.int16)
    label[0, 4, 4] = 2
    for seed in range(20):
        assert int(disturb(label, 0, 1, 1, 0.3, False, torch.Generator().manual_seed(seed)).sum()) == 0


def test_an_empty_map_stays_empty():
    empty = torch.zeros(1, 5, 5, 5, dtype=torch.int16)
    assert torch.equal(disturb(empty, 1, 3, 1, 0.5, True, torch.Generator().manual_seed(0)), empty)
