"""Objects painted into one map of codes."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.dataset import NUMBER_BITS
from medseg.errors import ImageError
from medseg.imaging import painting
from medseg.imaging.painting import paint_objects
from medseg.prediction import FoundObjects
from medseg.scratch import Scratch


def objects(shape, *some) -> FoundObjects:
    """Out of `(score, class, box, mask value or values)`."""
    masks = []
    for _, _, box, values in some:
        size = [int(b - a) for a, b in zip(box[: len(shape)], box[len(shape) :], strict=True)]
        masks.append(np.broadcast_to(np.asarray(values, np.uint8), size).copy())
    return FoundObjects(
        shape,
        np.array([one[2] for one in some], np.float64).reshape(-1, 2 * len(shape)),
        np.array([one[0] for one in some], np.float32),
        np.array([one[1] for one in some], np.int32),
        tuple(masks),
    )


def test_codes_have_the_class_and_are_numbered_by_place() -> None:
    found = objects((4, 6), (0.5, 2, (2, 3, 4, 6), 255), (0.25, 1, (0, 0, 2, 2), 255))
    codes, scores = paint_objects(found, (3, 7), "x")
    first, second = (3 << NUMBER_BITS) | 1, (7 << NUMBER_BITS) | 2
    expected = np.zeros((4, 6), np.int32)
    expected[:2, :2], expected[2:, 3:] = first, second
    assert np.array_equal(codes, expected)
    assert scores == {first: 0.25, second: 0.5}


def test_a_voxel_goes_to_the_larger_probability_and_of_equal_ones_to_the_more_confident() -> None:
    confident = (0.9, 1, (0, 0, 1, 6), [[255, 255, 255, 200, 150, 128]])
    other = (0.6, 1, (0, 3, 1, 9), [[200, 201, 129, 255, 255, 255]])
    for some in ((confident, other), (other, confident)):
        codes, _ = paint_objects(objects((1, 9), *some), (1,), "x")
        assert (codes[0] & 0xFFFF).tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2]


def test_what_a_more_confident_object_hides_by_more_than_half_is_left_out() -> None:
    whole = (0.9, 1, (0, 0, 1, 6), 200)
    for first, kept in ((2, False), (3, True), (4, True)):
        codes, scores = paint_objects(objects((1, 12), whole, (0.5, 1, (0, first, 1, first + 6), 255)), (1,), "x")
        assert (len(scores) == 2) == kept
        assert (codes[0] & 0xFFFF).tolist() == ([1] * first + [2] * 6 + [0] * (6 - first) if kept else [1] * 6 + [0] * 6)


def test_what_is_not_sure_or_not_large_enough_is_left_out() -> None:
    found = objects((2, 10), (0.9, 1, (0, 0, 2, 2), 255), (0.4, 1, (0, 3, 2, 6), 255), (0.8, 1, (0, 7, 1, 10), 255))
    assert list(paint_objects(found, (1,), "x")[1].values()) == pytest.approx([0.9, 0.4, 0.8])
    assert list(paint_objects(found, (1,), "x", threshold=0.5)[1].values()) == pytest.approx([0.9, 0.8])
    codes, scores = paint_objects(found, (1,), "x", threshold=0.5, smallest=4)
    assert list(scores.values()) == pytest.approx([0.9])
    assert np.count_nonzero(codes) == 4


def test_a_faint_object_does_not_delete_a_sure_one() -> None:
    """The faint one would take half of the sure one, which is then too small: it takes nothing."""
    sure, faint = (0.95, 1, (0, 0, 10, 10), 140), (0.31, 1, (0, 5, 10, 16), 255)
    for some in ((sure, faint), (faint, sure)):
        codes, scores = paint_objects(objects((10, 20), *some), (1,), "x", smallest=60)
        assert list(scores.values()) == pytest.approx([0.95, 0.31])
        assert (codes[0] & 0xFFFF).tolist() == [1] * 10 + [2] * 6 + [0] * 4
    # One of four times its size hides it altogether, however small objects may be.
    codes, scores = paint_objects(objects((10, 50), sure, (0.31, 1, (0, 0, 10, 50), 255)), (1,), "x")
    assert list(scores.values()) == pytest.approx([0.95, 0.31])
    assert (codes[0] & 0xFFFF).tolist() == [1] * 10 + [2] * 40


def test_what_is_too_small_in_the_end_takes_nothing() -> None:
    """Eight voxels, of which it would have six: those that it would take from the other stay there."""
    found = objects((1, 16), (0.9, 1, (0, 0, 1, 12), [[200] * 10 + [130] * 2]), (0.5, 1, (0, 8, 1, 16), [[180] * 2 + [255] * 6]))
    for smallest, expected in ((6, [1] * 10 + [2] * 6), (7, [1] * 12 + [0] * 4)):
        codes, scores = paint_objects(found, (1,), "x", smallest=smallest)
        assert (codes[0] & 0xFFFF).tolist() == expected
        assert len(scores) == len({*expected} - {0})


def test_several_that_each_take_a_little_leave_half() -> None:
    """The second would leave four of ten."""
    found = objects((1, 16), (0.9, 1, (0, 4, 1, 14), 130), (0.5, 1, (0, 12, 1, 16), 255), (0.4, 1, (0, 0, 1, 8), 255))
    codes, scores = paint_objects(found, (1,), "x")
    assert (codes[0] & 0xFFFF).tolist() == [1] * 4 + [2] * 8 + [3] * 4
    assert list(scores.values()) == pytest.approx([0.4, 0.9, 0.5])


def test_half_a_probability_is_inside() -> None:
    codes, _ = paint_objects(objects((1, 3), (0.9, 1, (0, 0, 1, 3), [[127, 128, 255]])), (1,), "x")
    assert (codes[0] != 0).tolist() == [False, True, True]


def test_nothing_found_is_an_empty_map() -> None:
    codes, scores = paint_objects(objects((3, 4)), (1,), "x")
    assert codes.shape == (3, 4)
    assert not codes.any()
    assert scores == {}


def test_more_objects_than_codes_can_number(monkeypatch) -> None:
    monkeypatch.setattr(painting, "MOST_OBJECTS", 1)
    found = objects((1, 4), (0.9, 1, (0, 0, 1, 1), 255), (0.9, 1, (0, 2, 1, 3), 255))
    with pytest.raises(ImageError, match="case 'a'") as error:
        paint_objects(found, (1,), "case 'a'")
    assert "more objects were found than can be numbered" in str(error.value)
    assert "Cut the image into parts" in str(error.value)
    assert "at most 1" in str(error.value)


def test_maps_in_files_are_the_same(monkeypatch) -> None:
    monkeypatch.setattr(painting, "RESIDENT", 1)
    rng = np.random.default_rng(0)
    some = [(rng.random(), 1, (y, x, y + 5, x + 4), rng.integers(0, 256, (5, 4))) for y, x in rng.integers(0, 25, (30, 2))]
    found = objects((30, 30), *some)
    plain, filed = paint_objects(found, (1,), "x"), paint_objects(found, (1,), "x", scratch=Scratch(0))
    assert np.array_equal(plain[0], filed[0])
    assert plain[1] == filed[1]


def test_on_a_finer_grid_objects_grow() -> None:
    found = objects((2, 3), (0.9, 1, (0, 1, 2, 2), 255)).resized((4, 9))
    assert found.shape == (4, 9)
    codes, _ = paint_objects(found, (1,), "x")
    assert np.array_equal(codes != 0, np.broadcast_to((np.arange(9) >= 3) & (np.arange(9) < 6), (4, 9)))
    # Along a thick axis slices are repeated, not mixed.
    slices = objects((2, 1), (0.9, 1, (0, 0, 2, 1), [[255], [140]])).resized((6, 1), thick=0)
    assert paint_objects(slices, (1,), "x")[0][:, 0].astype(bool).all()
    steps = objects((2, 1), (0.9, 1, (0, 0, 2, 1), [[255], [0]]))
    assert paint_objects(steps.resized((8, 1), thick=0), (1,), "x")[0][:, 0].astype(bool).tolist() == [True] * 4 + [False] * 4
