"""Slots: packing, unpacking, mirroring."""

from __future__ import annotations

import pytest
import torch

from medseg.models.base import Head, ObjectHead
from medseg.models.slots import Slots, slot_channels


def some(axes: int, mask: int, windows: int = 2, slots: int = 3) -> Slots:
    generator = torch.Generator().manual_seed(axes)
    lower = 10 * torch.rand(windows, slots, axes, generator=generator)
    upper = lower + 1 + torch.rand(windows, slots, axes, generator=generator)
    return Slots(
        torch.rand(windows, slots, generator=generator),
        torch.randint(0, 70, (windows, slots), generator=generator),
        torch.cat([lower, upper], -1),
        torch.rand(windows, slots, *(mask,) * axes, generator=generator),
    )


def same(one: Slots, other: Slots) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("scores", "classes", "boxes", "masks"))


@pytest.mark.parametrize(("axes", "mask"), [(2, 1), (2, 7), (3, 4)])
def test_unpacking_undoes_packing(axes: int, mask: int) -> None:
    slots = some(axes, mask)
    packed = slots.pack()
    assert packed.shape == (2, 3, slot_channels(axes, mask))
    assert packed.dtype == torch.float32
    assert slots.axes == axes
    again = Slots.unpack(packed, axes, mask)
    assert same(again, slots)
    assert again.classes.dtype == torch.int64


def test_the_order_of_numbers_in_a_slot() -> None:
    slots = Slots(
        torch.tensor([[0.5]]), torch.tensor([[3]]), torch.tensor([[[1.0, 2.0, 4.0, 7.0]]]), torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]])
    )
    assert slots.pack().tolist() == [[[0.5, 3, 1, 2, 4, 7, 0, 0.25, 0.5, 1]]]


def test_slots_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"slots of 2 axes and 7 cells have 55 numbers, got \(2, 3, 54\)"):
        Slots.unpack(torch.zeros(2, 3, 54), 2, 7)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1), (2,), (0, 2), (0, 1, 2)])
def test_mirroring_twice_changes_nothing(axes: tuple[int, ...]) -> None:
    slots = some(3, 4)
    twice = slots.mirrored(axes, (20, 30, 40)).mirrored(axes, (20, 30, 40))
    assert torch.equal(twice.masks, slots.masks)
    assert torch.allclose(twice.boxes, slots.boxes, atol=1e-5)
    assert torch.equal(twice.scores, slots.scores)
    assert torch.equal(twice.classes, slots.classes)


def test_mirroring_moves_box_and_mask() -> None:
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 0.25]]]])
    slots = Slots(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int64), torch.tensor([[[1.0, 2.0, 4.0, 7.0]]]), mask)
    turned = slots.mirrored((1,), (8, 10))
    assert turned.boxes.tolist() == [[[1, 3, 4, 8]]]
    assert turned.masks.tolist() == [[[[0.0, 1.0], [0.25, 0.5]]]]
    assert slots.boxes.tolist() == [[[1, 2, 4, 7]]]


def test_an_object_head_knows_the_numbers_in_a_slot() -> None:
    head = ObjectHead("objects", slots=100, mask=7, axes=3)
    assert isinstance(head, Head)
    assert (head.name, head.channels, head.slots) == ("objects", 2 + 6 + 343, 100)
    assert head == ObjectHead("objects", slots=100, mask=7, axes=3) != ObjectHead("objects", slots=50, mask=7, axes=3)
