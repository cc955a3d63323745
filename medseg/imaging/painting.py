"""Objects with soft masks painted into one label map, in which every voxel belongs to one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.cells import INSIDE, rasterised, voxel_ranges
from medseg.dataset import MOST_OBJECTS, NUMBER_BITS
from medseg.errors import ImageError
from medseg.imaging.rasters import within
from medseg.prediction import SURE, FoundObjects
from medseg.scratch import IN_MEMORY, Scratch, release, row_slabs

HIDDEN = 0.5  # of an object that more confident ones have taken, beyond which it is a view of one of them
RESIDENT = 2**27  # bytes of files that are touched before pages are let go


def check_count(count: int, where: str) -> None:
    """Raises ImageError: so many objects were found that codes (`Labels`) cannot number them; `where` is named in it."""
    if count > MOST_OBJECTS:
        raise ImageError.of(
            "more objects were found than can be numbered",
            where=where,
            found=str(count),
            expected=f"at most {MOST_OBJECTS}",
            fix="Cut the image into parts, and predict each by itself.",
        )


def paint_objects(
    found: FoundObjects,
    values: Sequence[int],
    where: str,
    threshold: float = 0.0,
    smallest: int = 1,
    scratch: Scratch = IN_MEMORY,
    takes: bool = True,
) -> tuple[NDArray[np.int32], dict[int, float]]:
    """Codes `(*shape)` of objects (`Labels`), numbered in the order of their boxes, and the confidence of each by its code.

    The most confident objects come first. One of which more than half is taken by then is left out, as in panoptic FPN (Kirillov et al. 2019,
    arXiv:1901.02446): it says again what a better one has said. There any other has what is free of it.

    Where it `takes`, which is not theirs, it also has the voxels in which its mask's probability is higher, so that where two objects touch a
    confident one with a coarse mask does not eat into its neighbour; of equal probabilities the more confident one wins. But it takes nothing
    from one that would be left with less than half of what it was, or less than `smallest`; and if it is then too small itself, it takes
    nothing at all. Work and memory follow the boxes; both maps come from `scratch`.

    Args:
        found: objects on the grid of the result.
        values: the value of each class, the first of class 1.
        where: named in errors.
        threshold: least confidence of an object.
        smallest: voxels of the smallest object; what has fewer when its turn comes is left out, and no other takes it below that.
        scratch: for large arrays.
        takes: whether a voxel that two claim goes to the more probable mask, or to the more confident object.

    Raises:
        ImageError: more objects than codes can number.
    """
    numbers, kept = _painted(found, threshold, smallest, scratch, takes)
    check_count(len(kept), where)
    kept = kept[np.lexsort(found.boxes[kept].T[::-1])]
    codes = (np.array([0, *values], np.int32)[found.classes[kept]] << NUMBER_BITS) | np.arange(1, len(kept) + 1, dtype=np.int32)
    table = np.zeros(len(found) + 1, np.int32)
    table[kept + 1] = codes
    for rows in row_slabs(numbers.shape):
        numbers[rows] = table[numbers[rows]]
        release(numbers)
    return numbers, dict(zip(codes.tolist(), found.scores[kept].astype(float).tolist(), strict=True))


def paint_chances(found: FoundObjects, maps: Sequence[NDArray[np.float16]]) -> None:
    """Into `maps` `(*shape)` of zeros, one for each class: the probability of the likeliest object, its confidence times that of its mask."""
    first, last = voxel_ranges(found.boxes)
    first, last = np.maximum(first, 0), np.minimum(last, np.array(found.shape))
    for k in range(len(found)):
        if (last[k] > first[k]).all():
            lower, upper = tuple(first[k].tolist()), tuple(last[k].tolist())
            place = within(lower, upper, (0,) * len(lower))
            chances = rasterised(found.masks[k], found.boxes[k], lower, upper, found.thick) * (found.scores[k] / SURE)
            part = maps[int(found.classes[k]) - 1][place]
            np.maximum(part, chances.astype(np.float16), out=part)


def _painted(
    found: FoundObjects, threshold: float, smallest: int, scratch: Scratch, takes: bool
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """For each voxel the place of its object in `found`, from 1 on; and the places, from 0 on, of objects that are left."""
    owner = scratch.zeros(found.shape, np.int32)
    best = scratch.zeros(found.shape, np.uint8)
    sizes, least = np.zeros(len(found), np.int64), np.zeros(len(found), np.int64)
    smallest = max(1, smallest)
    first, last = voxel_ranges(found.boxes)
    first, last = np.maximum(first, 0), np.minimum(last, np.array(found.shape))
    touched = 0
    for k in np.argsort(-found.scores, kind="stable").tolist():
        if found.scores[k] < threshold or (last[k] <= first[k]).any():
            continue
        lower, upper = tuple(first[k].tolist()), tuple(last[k].tolist())
        place = within(lower, upper, (0,) * len(lower))
        chances = np.rint(rasterised(found.masks[k], found.boxes[k], lower, upper, found.thick)).astype(np.uint8)
        inside = chances >= SURE * INSIDE
        whole = int(np.count_nonzero(inside))
        owned = owner[place]
        taken = inside & (owned != 0)
        if whole < smallest or np.count_nonzero(taken) > HIDDEN * whole:
            continue
        wins = inside & (chances > best[place]) if takes else inside & ~taken
        losers, losses = np.unique(owned[wins & taken] - 1, return_counts=True)
        spared = sizes[losers] - losses < least[losers]
        if spared.any():
            wins &= ~np.isin(owned, losers[spared] + 1)
        size = int(np.count_nonzero(wins))
        if size < smallest:
            continue
        sizes[losers[~spared]] -= losses[~spared]
        sizes[k], least[k] = size, max(smallest, math.ceil((1 - HIDDEN) * size))
        owned[wins] = k + 1
        best[place][wins] = chances[wins]
        touched += 5 * chances.size
        if touched > RESIDENT:
            touched = 0
            for array in (owner, best):
                release(array)
    return owner, np.flatnonzero(sizes)
