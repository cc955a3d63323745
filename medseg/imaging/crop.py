"""Boxes around what matters in an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.scratch import IN_MEMORY, Scratch, release, row_slabs

Box = tuple[tuple[int, int], ...]


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """The smallest box of the true elements as (start, stop) per axis; empty when nothing is true."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if not hits.size:
            return ()
        box.append((int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)


def nonzero(image: NDArray[Any], scratch: Scratch = IN_MEMORY) -> NDArray[np.bool_]:
    """Voxels of `image` `(C, *shape)` that are not zero in at least one channel; slab by slab, the mask in `scratch`."""
    mask = scratch.zeros(image.shape[1:], np.bool_)
    for channel in image:
        for rows in row_slabs(mask.shape):
            mask[rows] |= channel[rows] != 0
            release(image)
    return mask


def value_boxes(array: NDArray[Any], values: tuple[int, ...]) -> dict[int, tuple[slice, ...]]:
    """The bounding box of each of `values` (not 0) that occurs in an integer array, in one pass over it."""
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    top = max(values)
    if min(values) >= 0 and 65535 < top < array.size:
        places = np.zeros(top + 2, np.int32)
        places[list(values)] = np.arange(1, len(values) + 1)
        placed = np.empty_like(array, np.int32)
        for rows in row_slabs(array.shape):
            placed[rows] = np.take(places, array[rows], mode="clip")
        array, values_at = placed, dict(enumerate(values, 1))
    elif min(values) < 0 or top > 65535:  # a list with an entry for every number up to the largest would not be small
        order = tuple(sorted(values))
        array = np.searchsorted(order, array) * np.isin(array, order) + np.isin(array, order)
        values_at = {i + 1: value for i, value in enumerate(order)}
    else:
        values_at = {value: value for value in values}
    from scipy import ndimage

    found = ndimage.find_objects(array, max_label=max(values_at))
    return {value: found[at - 1] for at, value in values_at.items() if found[at - 1] is not None}


def union(boxes: Sequence[tuple[slice, ...]], ndim: int) -> tuple[slice, ...]:
    """The smallest box that holds all of `boxes`; an empty one where there is none."""
    if not boxes:
        return (slice(0, 0),) * ndim
    return tuple(slice(min(b[a].start for b in boxes), max(b[a].stop for b in boxes)) for a in range(ndim))
