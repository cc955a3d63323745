"""Boxes of objects in voxels: which of them meet, what they share, what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import Shape

PAIRS = 2**22  # candidates that are looked at together
Index = tuple[int, ...]
Integers = NDArray[np.int64]


def meeting(boxes: NDArray[Any], others: NDArray[Any]) -> Iterator[tuple[Integers, Integers]]:
    """All pairs of boxes `(n, 2 d)` and others `(m, 2 d)` that share some room, as indices of both, portion by portion.

    The others are sorted along the axis on which they are spread most, and each box looks only at those that can reach it there.
    """
    if not len(boxes) or not len(others):
        return
    count = boxes.shape[1] // 2
    axis = int(np.argmax(others[:, count:].max(0) - others[:, :count].min(0)))
    order = np.argsort(others[:, axis], kind="stable")
    starts = others[order, axis]
    longest = (others[:, axis + count] - others[:, axis]).max()
    begin = np.searchsorted(starts, boxes[:, axis] - longest, "left")
    end = np.maximum(np.searchsorted(starts, boxes[:, axis + count], "left"), begin)
    ends = np.cumsum(end - begin)
    done = 0
    while done < len(boxes):
        before = int(ends[done - 1]) if done else 0
        stop = max(done + 1, int(np.searchsorted(ends, before + PAIRS, "right")))
        sizes = (end - begin)[done:stop]
        rows = np.repeat(np.arange(done, stop), sizes)
        columns = order[np.arange(len(rows)) + np.repeat(begin[done:stop] - (ends[done:stop] - sizes - before), sizes)]
        both = ((boxes[rows, :count] < others[columns, count:]) & (boxes[rows, count:] > others[columns, :count])).all(1)
        yield rows[both], columns[both]
        done = stop


def lie_within(boxes: Integers, others: Integers) -> NDArray[np.bool_]:
    """`(n,)` whether boxes `(n, 2 d)` lie within others, one with one (or all within one)."""
    (low, high), (lower, upper) = np.split(boxes, 2, axis=1), np.split(others, 2, axis=1)
    return np.asarray(((low >= lower) & (high <= upper)).all(1))


def shared_room(boxes: Integers, others: Integers) -> Integers:
    """`(n,)` voxels that boxes `(n, 2 d)` share with others, one with one."""
    (low, high), (lower, upper) = np.split(boxes, 2, axis=1), np.split(others, 2, axis=1)
    return np.asarray(np.clip(np.minimum(high, upper) - np.maximum(low, lower), 0, None).prod(1))


def within(lower: Sequence[int], upper: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    """A range of voxels as slices of an array that begins at `origin`."""
    return tuple(slice(a - o, b - o) for a, b, o in zip(lower, upper, origin, strict=True))


def tight(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The smallest box that holds all that is true; None where nothing is."""
    found = []
    for axis in range(mask.ndim):
        places = np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(places):
            return None
        found.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(found)


def shape_of(lower: Sequence[int], upper: Sequence[int]) -> Shape:
    """Voxels along each axis of a range."""
    return tuple(b - a for a, b in zip(lower, upper, strict=True))
