"""Merged objects as one record: their masks are kept together, in memory or in files."""

import gc
import mmap
import weakref

import numpy as np

from medseg.imaging import gathering
from medseg.imaging.gathering import Gatherer
from medseg.imaging.merging import Merged


def merged(number: int, *shape: int) -> Merged:
    mask = np.full(shape, number, np.uint8)
    lower = (number,) * len(shape)
    return Merged(lower, tuple(number + n for n in shape), mask, mask.size, number / 10, {1: 0.5, 2: number / 4})


def owner(array: np.ndarray) -> object:
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def test_masks_lie_one_behind_the_other_in_portions(monkeypatch) -> None:
    """20 bytes together: 6 + 12, 6 + 6, 40 (more than a portion), 6. The first two portions are within 45 bytes; the others are files."""
    monkeypatch.setattr(gathering, "PORTION", 20)
    gatherer = Gatherer(45)
    given = [merged(1, 2, 3), merged(2, 3, 4), merged(3, 6, 1), merged(4, 2, 3), merged(5, 5, 8), merged(6, 1, 6)]
    held = [weakref.ref(one.mask) for one in given]
    for one in given:
        gatherer.add(one)
    shapes = [one.mask.shape for one in given]
    del one, given
    gc.collect()
    assert [ref() for ref in held] == [None] * 6  # nothing of what was given is kept
    found = gatherer.found((50, 50))
    assert [mask.shape for mask in found.masks] == shapes
    assert all((mask == number).all() for number, mask in enumerate(found.masks, 1))
    owners = [owner(mask) for mask in found.masks]
    assert [isinstance(one, mmap.mmap) for one in owners] == [False, False, False, False, True, True]
    assert len({id(one) for one in owners}) == 4
    assert found.boxes[1].tolist() == [2, 2, 5, 6]
    assert found.scores.tolist() == [np.float32(n / 10) for n in range(1, 7)]
    assert found.classes.tolist() == [1, 1, 2, 2, 2, 2]
