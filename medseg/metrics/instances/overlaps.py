"""Which of some masks or boxes overlap which others: only pairs that meet are looked at, so many objects take no table of all by all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medseg.io.rle import Rle
from medseg.metrics.contingency import Floats, Integers

AT_ONCE = 2**20  # pairs of intervals that are compared at once

Points = NDArray[Any]
Intervals = tuple[Points, Points]
"""Where each begins, and where it has ended."""


def mask_overlaps(masks: Sequence[Rle], others: Sequence[Rle]) -> tuple[Integers, Integers, Integers]:
    """Index of one of the `masks`, of one of the `others`, and the voxels of both, `(k,)` each: of all pairs that share any, in ascending order.

    All are of one shape; those of either side may overlap each other. The work is that of pairs of runs that overlap.
    """
    (mine, of_mine), (theirs, of_theirs) = _runs(masks), _runs(others)
    keys, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for i, j in _meeting(mine, theirs):
        both = np.minimum(mine[1][i], theirs[1][j]) - np.maximum(mine[0][i], theirs[0][j])
        key, voxels = _summed(of_mine[i] * len(others) + of_theirs[j], both)
        keys.append(key)
        counts.append(voxels)
    key, voxels = _summed(np.concatenate(keys), np.concatenate(counts))
    return key // max(1, len(others)), key % max(1, len(others)), voxels


def box_overlaps(boxes: Floats, others: Floats) -> tuple[Integers, Integers, Floats]:
    """Index of one of the `boxes` `(n, 2, ndim)`, of one of the `others` `(m, 2, ndim)`, and what they share, `(k,)` each: of all pairs that overlap.

    Boxes are swept along the axis on which the fewest pairs meet.
    """
    sides = [((boxes[:, 0, axis], boxes[:, 1, axis]), (others[:, 0, axis], others[:, 1, axis])) for axis in range(boxes.shape[-1])]
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for i, j in _meeting(*min(sides, key=lambda side: _meetings(*side))):
        inner = np.ones(len(i))
        for (low, high), (others_low, others_high) in sides:
            inner *= np.clip(np.minimum(high[i], others_high[j]) - np.maximum(low[i], others_low[j]), 0, None)
        some = inner > 0
        found.append((i[some], j[some], inner[some]))
    first, second, inner = (np.concatenate(part) for part in zip(*found, strict=True))
    return first, second, inner


def _runs(masks: Sequence[Rle]) -> tuple[Intervals, Integers]:
    """The runs of all masks, and the index of the mask of each."""
    runs = [mask.runs for mask in masks]
    none = np.zeros(0, np.int64)
    starts, stops = (np.concatenate([none, *(run[end] for run in runs)]) for end in (0, 1))
    return (starts, stops), np.repeat(np.arange(len(masks)), [len(run[0]) for run in runs])


def _summed(keys: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """Every key once, ascending, and the sum of its counts; exact below 2**53."""
    unique, at = np.unique(keys, return_inverse=True)
    return unique, np.bincount(at, weights=counts, minlength=len(unique)).astype(np.int64)


def _meeting(mine: Intervals, theirs: Intervals) -> Iterator[tuple[Integers, Integers]]:
    """Indices of one of `mine` and of one of `theirs`, `(k,)` each, of all pairs of intervals that overlap, about `AT_ONCE` at once.

    Where two overlap, the later one begins within the other; so all pairs are found by where intervals begin, each once.
    """
    for i, j in _beginning(mine, theirs[0], "left"):
        yield i, j
    for j, i in _beginning(theirs, mine[0], "right"):
        yield i, j


def _meetings(mine: Intervals, theirs: Intervals) -> int:
    """How many pairs `_meeting` finds."""
    first = _places(mine, np.sort(theirs[0]), "left")
    second = _places(theirs, np.sort(mine[0]), "right")
    return int(first[1].sum() + second[1].sum())


def _beginning(intervals: Intervals, points: Points, side: Literal["left", "right"]) -> Iterator[tuple[Integers, Integers]]:
    """Indices of an interval and of one of the `points` within it; a point where the interval begins is so with `left`, and is not with `right`."""
    order = np.argsort(points, kind="stable")
    first, counts = _places(intervals, points[order], side)
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start] - counts[start])
        stop = max(start + 1, int(np.searchsorted(ends, before + AT_ONCE, side="right")))
        some = counts[start:stop]
        within = np.arange(ends[stop - 1] - before) - np.repeat(ends[start:stop] - some - before - first[start:stop], some)
        yield np.repeat(np.arange(start, stop), some), order[within]
        start = stop


def _places(intervals: Intervals, points: Points, side: Literal["left", "right"]) -> tuple[Integers, Integers]:
    """Of the sorted `points`, the first within each interval, and how many there are."""
    first = np.searchsorted(points, intervals[0], side=side)
    return first, np.maximum(np.searchsorted(points, intervals[1], side="left") - first, 0)
