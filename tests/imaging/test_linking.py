"""Objects of slices become objects of volumes: the same rule for detectors and for votes."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.imaging.gathering import Gatherer, SliceLinker
from medseg.imaging.linking import alike, successors
from medseg.imaging.merging import Merged
from medseg.prediction import FoundObjects
from medseg.tasks.instance.voting import group_voxels


def linked(*slices: list[tuple[slice, dict[int, float]]], width=20) -> FoundObjects:
    """Objects of slices of one row: the columns of each, and its votes."""
    gatherer = Gatherer()
    linker = SliceLinker(gatherer)
    for z, some in enumerate(slices):
        for columns, votes in some:
            count = columns.stop - columns.start
            mask = np.full((1, 1, count), 255, np.uint8)
            linker.add(Merged((z, 0, columns.start), (z + 1, 1, columns.stop), mask, count, 0.9, dict(votes)))
    linker.finish()
    return gatherer.found((len(slices), 1, width))


def ranges(found: FoundObjects) -> list[tuple[int, int, int]]:
    """Slices and class of each object, in order."""
    return sorted((int(box[0]), int(box[3]), int(kind)) for box, kind in zip(found.boxes, found.classes, strict=True))


def test_slices_of_another_class_are_another_object() -> None:
    place = slice(2, 12)
    kinds = [1] * 4 + [2] * 4 + [1] * 4
    found = linked(*([(place, {kind: 0.9})] for kind in kinds))
    assert ranges(found) == [(0, 4, 1), (4, 8, 2), (8, 12, 1)]


def test_where_classes_are_unsure_slices_are_one_object() -> None:
    place = slice(2, 12)
    found = linked(*([(place, votes)] for votes in ({1: 0.9}, {1: 0.7, 2: 0.3}, {1: 0.3, 2: 0.7}, {1: 0.9})))
    assert ranges(found) == [(0, 4, 1)]
    # A tenth of the votes is too little.
    assert ranges(linked([(place, {1: 0.9})], [(place, {1: 0.09, 2: 0.81})])) == [(0, 1, 1), (1, 2, 2)]


def columns_and_bridge() -> list[list[slice]]:
    """Two columns that touch, in nine slices; the fifth shows both as one."""
    apart, both = [slice(2, 8), slice(8, 12)], [slice(2, 12)]
    return [both if z == 4 else apart for z in range(9)]


def test_one_slice_that_shows_two_as_one_does_not_unite_them() -> None:
    """The larger goes on, the other ends and begins again; detectors and votes agree."""
    slices = columns_and_bridge()
    found = linked(*([(place, {1: 0.9}) for place in some] for some in slices))
    things = np.zeros((9, 1, 20), np.bool_)
    offsets = np.zeros((2, 9, 1, 20))
    for z, some in enumerate(slices):
        for place in some:
            things[z, 0, place] = True
            columns = np.arange(place.start, place.stop)
            offsets[1, z, 0, place] = (place.start + place.stop) // 2 - columns
    numbers = group_voxels(things, offsets, 1, 1.25)
    assert ranges(found) == [(0, 4, 1), (0, 9, 1), (5, 9, 1)]
    assert numbers.max() == 3
    for z, some in enumerate(slices):
        assert len(np.unique(numbers[z, 0, some[0]])) == 1
    assert len(np.unique(numbers[:, 0, 4])) == 1
    assert len(np.unique(numbers[:4, 0, 9])) == len(np.unique(numbers[5:, 0, 9])) == 1
    assert len({int(numbers[z, 0, 9]) for z in (0, 4, 8)}) == 3


def test_pairs_with_the_largest_overlap_come_first() -> None:
    above, below = np.array([0, 0, 1, 1]), np.array([5, 6, 5, 6])
    sizes = np.full(4, 10), np.full(4, 10)
    every = np.ones(4, np.bool_)
    assert successors(above, below, np.array([6, 7, 9, 8]), sizes, every).tolist() == [False, True, True, False]
    # Of equal ones the first; what may not be is not in the way of what may.
    assert successors(above, below, np.array([8, 8, 8, 8]), sizes, every).tolist() == [True, False, False, True]
    assert successors(above, below, np.array([6, 7, 9, 8]), sizes, np.array([True, True, False, True])).tolist() == [
        True,
        False,
        False,
        True,
    ]
    # Half of the smaller is enough, less is not.
    small = np.full(4, 100), np.full(4, 10)
    assert successors(above, below, np.array([5, 4, 4, 4]), small, every).tolist() == [True, False, False, False]


@pytest.mark.parametrize(("share", "may"), [(1.0, True), (0.25, True), (0.1, False)])
def test_what_shares_a_fifth_of_its_classes_may_be_one(share, may) -> None:
    assert alike(np.array([[1.0], [0.0]]), np.array([[share], [1 - share]])).tolist() == [may]
    assert alike(np.zeros((0, 3)), np.zeros((0, 3))).all()
