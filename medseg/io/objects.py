"""Codes of things in memory (`Labels`), and the forms in which files tell objects apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import MOST_OBJECTS, NUMBER_BITS, Labels, ObjectForm
from medseg.errors import ImageError
from medseg.scratch import IN_MEMORY, Scratch, release, row_slabs

Codes = NDArray[np.int32]


def encode(array: NDArray[Any], labels: Labels, form: ObjectForm, where: Path) -> NDArray[Any]:
    """A label map `(*shape)` as a file holds it, in memory: codes where there are things, else the map itself.

    Raises:
        ImageError: more objects than codes can number, or values that are none.
    """
    if not labels.things:
        return array
    if form == "components":
        return _components(array, labels, where)
    if form == "numbers":
        return _numbers(array, labels, where)
    highest = int(array.max(initial=0))
    if int(array.min(initial=0)) < 0 or highest > np.iinfo(np.int32).max:
        raise ImageError.of(
            "holds values that are no codes of objects", where=str(where), found=str(highest), expected="class value * 65536 + number"
        )
    return array.astype(np.int32)


def decode(codes: NDArray[Any], labels: Labels, scratch: Scratch = IN_MEMORY) -> NDArray[Any]:
    """A predicted label map in memory as it is written (`Labels.given`): the inverse of `encode`, slab by slab."""
    if not labels.things or labels.given != "numbers":
        return codes
    numbers = scratch.zeros(codes.shape, np.uint16)
    for rows in row_slabs(codes.shape):
        numbers[rows] = labels.numbers(codes[rows])
        release(codes)
        release(numbers)
    return numbers


def _components(array: NDArray[Any], labels: Labels, where: Path) -> Codes:
    """Objects are numbered class by class, in index order; corners touch."""
    from scipy import ndimage

    result: Codes = array.astype(np.int32) << NUMBER_BITS
    count = 0
    for one in labels.classes:
        if one.name in labels.things:
            mask = np.isin(array, one.values)
            found, here = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
            _check(count + here, where)
            result[mask] |= found[mask] + count
            count += here
    return result


def _numbers(array: NDArray[Any], labels: Labels, where: Path) -> Codes:
    """Numbers as in the file, where codes have room for them; else in the order of their size."""
    (value,) = labels.values
    if int(array.min(initial=0)) < 0:
        raise ImageError.of("numbers of objects are not negative", where=str(where), found=str(int(array.min())), expected="0 or more")
    unknown = None if labels.ignore is None else array == labels.ignore
    inside = array != 0 if unknown is None else (array != 0) & ~unknown
    numbers = array[inside]
    if numbers.size and int(numbers.max()) > MOST_OBJECTS:
        ids, places = np.unique(numbers, return_inverse=True)
        _check(len(ids), where)
        numbers = places.reshape(-1) + 1
    result = np.zeros(array.shape, np.int32)
    result[inside] = numbers.astype(np.int32) | (value << NUMBER_BITS)
    if unknown is not None:
        assert labels.ignore is not None
        result[unknown] = labels.ignore << NUMBER_BITS
    return result


def _check(count: int, where: Path) -> None:
    if count > MOST_OBJECTS:
        raise ImageError.of("holds too many objects", where=str(where), found=str(count), expected=f"at most {MOST_OBJECTS}")
