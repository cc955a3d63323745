"""Found objects go back to native voxels as label maps do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.geometry import Crop, Reorient
from medseg.imaging.painting import paint_objects
from medseg.prediction import FoundObjects


def found(shape: tuple[int, ...], rng: np.random.Generator, count: int = 5) -> FoundObjects:
    """Objects that do not overlap: bands along the first axis, of whole cells."""
    boxes, masks = [], []
    for k in range(count):
        lower = np.array([3 * k, *(rng.integers(0, n - 2) for n in shape[1:])])
        upper = np.array([3 * k + 2, *(rng.integers(a + 1, n + 1) for a, n in zip(lower[1:], shape[1:], strict=True))])
        boxes.append([*lower, *upper])
        masks.append(rng.choice([40, 127, 128, 250], tuple(upper - lower)).astype(np.uint8))
        masks[-1].flat[0] = 255
    scores = rng.permutation(count).astype(np.float32) / count
    return FoundObjects(shape, np.array(boxes, float), scores, np.ones(count, np.int32), tuple(masks))


def drawn(one: FoundObjects) -> np.ndarray:
    """Each object's place, from 1 on."""
    canvas = np.zeros(one.shape, int)
    for k in range(len(one)):
        part = one.mask(k)
        assert part is not None
        lower, inside = part
        canvas[tuple(slice(a, a + n) for a, n in zip(lower, inside.shape, strict=True))][inside] = k + 1
    return canvas


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 3))
def test_they_go_the_way_of_arrays(seed: int, axes: int) -> None:
    rng = np.random.default_rng(seed)
    objects = found((15, 7, 9)[:axes], rng)
    turn = Reorient(axes=tuple(map(int, rng.permutation(axes))), flips=tuple(map(bool, rng.integers(0, 2, axes))))
    turned = objects.turned(turn)
    assert np.array_equal(drawn(turned), turn.undo(drawn(objects)))
    start = tuple(map(int, rng.integers(0, 4, axes)))
    crop = Crop(start=start, shape=turned.shape, source=tuple(a + n + 2 for a, n in zip(start, turned.shape, strict=True)))
    assert np.array_equal(drawn(turned.moved(crop)), crop.undo(drawn(turned)))


def test_the_thick_axis_turns_with_its_grid() -> None:
    cells = np.array([[[0, 255]], [[255, 0]]], np.uint8)
    one = FoundObjects((4, 1, 2), np.array([[0.0, 0, 0, 4, 1, 2]]), np.ones(1, np.float32), np.ones(1, np.int32), (cells,), thick=0)
    turn = Reorient(axes=(2, 0, 1), flips=(False, True, False))
    turned = one.turned(turn)
    assert (turned.shape, turned.thick) == ((1, 2, 4), 2)
    assert np.array_equal(drawn(turned), turn.undo(drawn(one)))


def test_what_lies_outside_is_no_object() -> None:
    boxes = np.array([[5.0, 5, 8, 8], [-3, -3, 1, 1], [0, 0, 2, 2]])
    masks = (np.full((3, 3), 255, np.uint8), np.full((4, 4), 255, np.uint8), np.full((2, 2), 100, np.uint8))
    one = FoundObjects((4, 4), boxes, np.ones(3, np.float32), np.ones(3, np.int32), masks)
    assert one.mask(0) is None
    assert one.mask(2) is None
    lower, inside = one.mask(1)  # type: ignore[misc]
    assert (lower, inside.tolist()) == ((0, 0), [[True]])


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_what_is_painted(seed: int) -> None:
    objects = found((15, 9), np.random.default_rng(seed))
    codes, _ = paint_objects(objects, (1,), "here")
    assert np.array_equal(codes > 0, drawn(objects) > 0)
