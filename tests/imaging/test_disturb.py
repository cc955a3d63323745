from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.imaging.disturb import CHANGES, MOST, boxes, disturb, empty_box
from medseg.imaging.disturb import change_shape as change_in_box


def change_shape(label, index, value, how, radius, in_plane):
    (box,) = boxes(label[index], (value,))
    assert box is not None
    change_in_box(label[index], value, box, how, radius, in_plane)


def changed_by_definition(label, value, how, radius, in_plane):
    """Whole maps through cubic pools; beyond the map there is neither the value nor anything else."""
    size = [0 if in_plane and axis < label.ndim - 2 else radius for axis in range(label.ndim)]
    pool = {2: torch.nn.functional.max_pool2d, 3: torch.nn.functional.max_pool3d}[label.ndim]

    def grown(mask):
        return pool(mask, [2 * s + 1 for s in size], 1, size)

    mask = (label == value)[None].float()
    for step in {"grow": "+", "shrink": "-", "open": "-+", "close": "+-"}[how]:
        mask = grown(mask) if step == "+" else 1 - grown(1 - mask)
    return torch.where(mask[0] > 0, value, torch.where(label == value, 0, label))


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


@given(
    seed=st.integers(0, 10**6),
    dims=st.sampled_from([2, 3]),
    how=st.sampled_from(CHANGES),
    radius=st.integers(1, 4),
    in_plane=st.booleans(),
    density=st.sampled_from([0.002, 0.05, 0.5]),
)
def test_equals_cubic_pools_of_the_whole_map(seed, dims, how, radius, in_plane, density):
    generator = torch.Generator().manual_seed(seed)
    shape = (13, 11, 12)[:dims]
    label = torch.randint(-1, 3, shape, generator=generator, dtype=torch.int16)
    label[torch.rand(shape, generator=generator) > density] = 0
    (box,) = boxes(label, (2,))
    if box is not None:
        expected = changed_by_definition(label, 2, how, radius, in_plane)
        change_in_box(label, 2, box, how, radius, in_plane)
        assert torch.equal(label, expected)


def test_boxes_are_tight_and_missing_values_have_none():
    label = square()[0]
    label[0, 11] = -7
    assert boxes(label, (3, 5, -7)) == [(slice(4, 8), slice(4, 8)), None, (slice(0, 1), slice(11, 12))]
    assert boxes(label, ()) == []


def test_of_many_values_a_few_change():
    """Each value is a dot of its own, which grows to a square of 9: the first 8 of the drawn ones that are there."""
    held, absent = range(1, 41), range(41, 101)
    label = torch.zeros(1, 30, 30, dtype=torch.int16)
    for value in held:
        label[0, 2 + 4 * ((value - 1) // 7), 2 + 4 * ((value - 1) % 7)] = value
    touched = set()
    for seed in range(60):
        found = disturb(label, (0, *held, *absent), 1, 1, 0, 0.5, False, torch.Generator().manual_seed(seed))
        counts = torch.bincount(found.flatten().long(), minlength=101)[1:41]
        assert set(counts.tolist()) <= {0, 1, 9}
        assert 1 <= int((counts != 1).sum()) <= MOST
        touched |= set((torch.nonzero(counts != 1)[:, 0] + 1).tolist())
    assert touched == set(held)  # all have a chance


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
    empty_box(label[0], (0, 5), (4, 4))
    expected = torch.ones(6, 6)
    expected[0:2, 3:] = 0
    assert torch.equal(label[0].float(), expected)


def test_nothing_happens_without_probability_and_to_the_argument():
    label = square()
    assert torch.equal(disturb(label, (0, 3), 0, 4, 0, 0.5, False, torch.Generator().manual_seed(0)), label)
    changed = disturb(label, (0, 3), 1, 4, 1, 0.5, False, torch.Generator().manual_seed(0))
    assert not torch.equal(changed, label)
    assert torch.equal(label, square())
    assert set(torch.unique(changed).tolist()) <= {0, 3}


def test_the_same_generator_gives_the_same_damage():
    first, second, other = (disturb(square(), (0, 3), 0.5, 3, 0.5, 0.5, False, torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_lost_boxes_hold_foreground():
    """With one voxel of foreground, whatever box is emptied, it is the voxel's."""
    label = torch.zeros(1, 9, 9, dtype=torch.int16)
    label[0, 4, 4] = 2
    for seed in range(20):
        assert int(disturb(label, (0, 2), 0, 1, 1, 0.3, False, torch.Generator().manual_seed(seed)).sum()) == 0


def test_an_empty_map_stays_empty():
    empty = torch.zeros(1, 5, 5, 5, dtype=torch.int16)
    assert torch.equal(disturb(empty, (0, 1), 1, 3, 1, 0.5, True, torch.Generator().manual_seed(0)), empty)
