"""How good masks of few cells can be at best: true outlines on their cells, drawn on voxels again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medseg.imaging.painting import paint_objects
from medseg.losses.objects import object_table
from medseg.models.detection import Truth, truth
from medseg.models.detection.packed import perfect_slots
from medseg.models.slots import Slots
from medseg.prediction import FoundObjects

CODE = 1 << 16 | 1


def ring(shape: tuple[int, ...], thick: float) -> NDArray[np.bool_]:
    """What lies near the surface of the ellipsoid that fills the shape."""
    lines = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(sum(line**2 for line in lines))
    return (radius <= 1) & (radius >= 1 - thick)


def cross(shape: tuple[int, ...], wide: int) -> NDArray[np.bool_]:
    """Bars along all axes."""
    bars = np.zeros(shape, bool)
    for axis in range(len(shape)):
        bars[tuple(slice(None) if k == axis else slice(n // 2 - wide // 2, n // 2 + wide - wide // 2) for k, n in enumerate(shape))] = True
    return bars


def vertebra(shape: tuple[int, int, int] = (20, 61, 37)) -> NDArray[np.bool_]:
    """A body, an arch behind it with a canal, processes to both sides and to the back."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    body = (np.abs(z - 9.5) < 9) & (((y - 12) / 12) ** 2 + ((x - 18) / 13) ** 2 <= 1)
    from_canal = np.hypot(y - 30, x - 18)
    arch = (np.abs(z - 11) < 4) & (from_canal <= 9.5) & (from_canal >= 6)
    sides = (np.abs(z - 12) < 2.5) & (np.abs(y - 29) < 2.5) & (np.abs(x - 18) > 8)
    back = (np.abs(z - 9 + (y - 38) * 0.1) < 4) & (np.abs(x - 18) < 1.6) & (y >= 38)
    found: NDArray[np.bool_] = body | arch | sides | back
    return found


def overlap(shape: NDArray[np.bool_], cells: int) -> float:
    """Intersection over union of an object with what is painted of its perfect mask."""
    codes = np.pad(np.where(shape, CODE, 0).astype(np.int32), 3)
    window = torch.from_numpy(codes)[None]
    table = object_table(window, 1)
    objects = Truth(table[..., 1:].float(), (table[..., 0] > 0).long(), table[..., 0].int(), window)
    slots = Slots.unpack(perfect_slots(objects, 1, cells), codes.ndim, cells)
    found = FoundObjects(
        codes.shape,
        slots.boxes[0].double().numpy(),
        slots.scores[0].numpy(),
        slots.classes[0].int().numpy(),
        tuple((255 * mask).round().byte().numpy() for mask in slots.masks[0]),
    )
    drawn, truly = paint_objects(found, [1], "case 'x'")[0] != 0, codes != 0
    return float((drawn & truly).sum() / (drawn | truly).sum())


@pytest.mark.parametrize(
    ("shape", "cells", "least"),
    [
        (ring((42, 42), 1.1), 28, 0.985),
        (ring((42, 42), 0.25), 28, 0.96),
        (ring((40, 60, 48), 0.3), 28, 0.965),
        (cross((45, 45), 4), 28, 0.98),
        (cross((45, 45, 45), 5), 28, 0.97),
        (vertebra(), 28, 0.96),
        (vertebra(), 14, 0.89),
    ],
    ids=["disc", "ring", "shell", "cross", "jack", "vertebra", "coarse vertebra"],
)
def test_perfect_masks_of_few_cells_are_nearly_the_object(shape, cells, least, monkeypatch) -> None:
    found = overlap(shape, cells)
    assert found >= least
    monkeypatch.setattr(truth, "SAMPLES", 1)
    assert overlap(shape, cells) < found  # by one point of each cell


def test_a_cell_for_each_voxel_loses_nothing() -> None:
    assert overlap(cross((37, 37, 37), 5), 37) == 1.0
