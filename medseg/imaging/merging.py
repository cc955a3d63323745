"""One object out of all that windows, mirrored views and networks have seen of it.

Windows come in scan order. What one view sees in a window is compared with the objects that are known so far, each of them the mean of what
has joined it: a detection joins the object with which its mask agrees best, IoU of at least `SAME` among the voxels of the window that
windows of the object have covered, too, be it under another name. So an object that borders of windows cut is put together of its parts.

- One view of one window has one word on an object: of two of its detections that agree with each other the better one counts, and of two
  that agree with one object the one that agrees more joins it; the other is another object.
- A detection is compared with the object as a whole, not with single members. So a chain does not unite neighbours: who joins must agree
  with the mean of all who have.
- Where a detection agrees with several objects, as with two ends of one that windows had only touched, they are united unless they contradict
  each other: where windows of both have been they must agree, or neither be there. Of two that one window has told apart none is.
  That is the limit of it: of an object whose parts look like two in some window, as the legs of a U do where its bend lies outside, parts may stay
  apart, in one order of windows or another (the same object mirrored may come out otherwise), and one such part may lie over another. What no
  window sees as two comes out as one, mirrored or not.
- The merged mask is the mean of the probabilities of all members whose windows cover a voxel (0 outside of a member's box), weighted by
  score and by a Gaussian of the voxel's place in the window, because windows are worst at their rims (as maps are blended).
- The confidence is the mean score over all views of all windows that could see the whole object, 0 for those that did not find it. Where
  none could, the mean over all windows in proportion to the part that they could see.

Related: weighted boxes fusion (Solovyev et al. 2021, arXiv:1910.13302), which knows no windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import Shape
from medseg.imaging.detections import INSIDE, Detection
from medseg.imaging.rasters import Index, Integers, lie_within, meeting, shape_of, shared_room, tight, within
from medseg.imaging.windows import gaussian_weights
from medseg.scratch import IN_MEMORY, Scratch, row_slabs

SAME = 0.5  # IoU from which on two masks are of one object; at most one of disjoint masks can have more
FLOOR = 0.05  # less confidence is nothing worth keeping
ROOM = 256  # open objects at first
FAR = 2**40  # where nothing lies


class Merged(NamedTuple):
    """An object that no later window can change: `mask` (255 is 1) covers the voxels from `lower` to before `upper`, of which `voxels` belong
    to it; `votes` are the scores of its classes."""

    lower: Index
    upper: Index
    mask: NDArray[np.uint8]
    voxels: int
    score: float
    votes: dict[int, float]


@dataclass(eq=False)
class _Open:
    """An object that later windows may add to: over a box, sums of weighted probabilities and of weights, and what is inside; scores by window
    and by class."""

    lower: Index
    upper: Index
    total: NDArray[np.float32]
    weight: NDArray[np.float32]
    inside: NDArray[np.bool_]
    voxels: int
    windows: dict[Index, float]
    votes: dict[int, float]


class Merger:
    """Takes detections window by window and gives merged objects to `keep` as soon as no later window can see them."""

    def __init__(
        self,
        shape: Shape,
        window: Shape,
        starts: tuple[tuple[int, ...], ...],
        keep: Callable[[Merged], None],
        scratch: Scratch = IN_MEMORY,
    ) -> None:
        """Nothing seen yet.

        Args:
            shape: of the case.
            window: with all axes of the case.
            starts: of windows along each axis, in order; windows come in the order of their product, the first axis slowest.
            keep: takes merged objects.
            scratch: for the sums of each object.
        """
        self.shape, self.window, self.starts, self.keep, self.scratch = shape, window, starts, keep, scratch
        self.views = 0
        self._weights = [gaussian_weights(n).astype(np.float32) for n in window]
        self._open: dict[int, _Open] = {}
        self._free = list(range(ROOM))[::-1]
        self._boxes = self._nowhere(ROOM)
        self._seen = self._boxes.copy()  # the last window that has shown something of an object

    def add(self, start: Index, views: Sequence[Sequence[Detection]]) -> None:
        """What all views say of the window at `start`, which lies after all earlier ones; as many views for every window."""
        self.views = len(views)
        self._close_before(start)
        lower, upper = np.split(self._boxes, 2, axis=1)
        near = np.flatnonzero(((lower < np.add(start, self.window)) & (upper > np.array(start))).all(1)).tolist()
        for view in views:
            self._match(start, _distinct(view), near)

    def finish(self) -> None:
        """No window will follow."""
        for place in list(self._open):
            self._close(place)

    def _match(self, start: Index, view: Sequence[Detection], near: list[int]) -> None:
        pairs = []
        boxes, others, seen = _boxes(view, len(start)), self._boxes[near], self._seen[near]
        sizes, known_sizes = (np.array([one.voxels for one in some], np.int64) for some in (view, map(self._open.__getitem__, near)))
        here = np.array([(*start, *self._end(start))], np.int64)
        for rows, columns in meeting(boxes, others):
            # Where a window shows all of one, its size bounds the union; then what can share no half of it need not be counted.
            most = shared_room(boxes[rows], others[columns])
            able = (most >= SAME * known_sizes[columns]) | ~lie_within(others[columns], here)
            able &= (most >= SAME * sizes[rows]) | ~lie_within(boxes[rows], seen[columns])
            for d, k in zip(rows[able].tolist(), columns[able].tolist(), strict=True):
                one, known = view[d], self._open[near[k]]
                shared, union = self._compared(one, (start,), known, known.windows)
                if shared and shared >= SAME * union:
                    pairs.append((-shared / union, d, near[k]))
        joins: dict[int, int] = {}
        joined: set[int] = set()
        more = []
        for _, d, place in sorted(pairs):
            if d not in joins and place not in joined:
                joins[d] = place
                joined.add(place)
            else:
                more.append((d, place))
        for d, place in more:
            if d in joins and place in self._open and place not in joined:
                one, other = self._open[joins[d]], self._open[place]
                shared, union = self._compared(one, one.windows, other, other.windows)
                if shared >= SAME * union:
                    self._unite(joins[d], place)
                    near.remove(place)
        for d, one in enumerate(view):
            if d in joins:
                self._join(joins[d], one, start)
            else:
                near.append(self._begin(one, start))

    def _compared(
        self, one: Detection | _Open, windows: Collection[Index], other: Detection | _Open, others: Collection[Index]
    ) -> tuple[int, int]:
        """Voxels of both, and of one of them, where windows of both have been."""
        own = self._visible(one, others)
        its = self._visible(other, windows)
        low, high = _common(one.lower, one.upper, other.lower, other.upper)
        shared = 0
        if own and its and all(a < b for a, b in zip(low, high, strict=True)):
            shared = int(np.count_nonzero(one.inside[within(low, high, one.lower)] & other.inside[within(low, high, other.lower)]))
        return shared, own + its - shared

    def _visible(self, one: Detection | _Open, windows: Collection[Index]) -> int:
        """Its voxels that some of the windows cover."""
        if any(_holds(start, self.window, one.lower, one.upper) for start in windows):
            return one.voxels
        parts = [_common(start, self._end(start), one.lower, one.upper) for start in windows]
        parts = [part for part in parts if all(a < b for a, b in zip(*part, strict=True))]
        if len(parts) < 2:
            return sum(int(np.count_nonzero(one.inside[within(*part, one.lower)])) for part in parts)
        covered = np.zeros(one.inside.shape, np.bool_)
        for part in parts:
            covered[within(*part, one.lower)] = True
        return int(np.count_nonzero(one.inside & covered))

    def _end(self, start: Index) -> Index:
        return tuple(s + w for s, w in zip(start, self.window, strict=True))

    def _begin(self, one: Detection, start: Index) -> int:
        if not self._free:
            self._free = list(range(len(self._boxes), 2 * len(self._boxes)))[::-1]
            more = self._nowhere(len(self._boxes))
            self._boxes, self._seen = np.concatenate([self._boxes, more]), np.concatenate([self._seen, more])
        place = self._free.pop()
        total, weight = (self.scratch.zeros(one.inside.shape, np.float32) for _ in range(2))
        np.multiply(self._gaussian(start, one.lower, one.upper), np.float32(one.score), out=weight)
        np.multiply(one.chances, weight, out=total)
        self._open[place] = _Open(one.lower, one.upper, total, weight, one.inside, one.voxels, {start: one.score}, {one.kind: one.score})
        self._boxes[place], self._seen[place] = (*one.lower, *one.upper), (*start, *self._end(start))
        return place

    def _join(self, place: int, one: Detection, start: Index) -> None:
        known = self._open[place]
        self._seen[place] = (*start, *self._end(start))
        self._grow(place, one.lower, one.upper)
        known.windows[start] = known.windows.get(start, 0.0) + one.score
        known.votes[one.kind] = known.votes.get(one.kind, 0.0) + one.score
        # Where the window covers the object the mean changes, also where the detection is not.
        low, high = _common(known.lower, known.upper, start, self._end(start))
        weights = self._gaussian(start, low, high)
        weights *= np.float32(one.score)
        known.weight[within(low, high, known.lower)] += weights
        known.total[within(one.lower, one.upper, known.lower)] += one.chances * weights[within(one.lower, one.upper, low)]
        self._decide(known, low, high)

    def _unite(self, place: int, other: int) -> None:
        """Two open objects that turn out to be one."""
        self._grow(place, self._open[other].lower, self._open[other].upper)
        known, gone = self._open[place], self._free_place(other)
        known.total[within(gone.lower, gone.upper, known.lower)] += gone.total
        for start, score in gone.windows.items():
            known.windows[start] = known.windows.get(start, 0.0) + score
        for kind, vote in gone.votes.items():
            known.votes[kind] = known.votes.get(kind, 0.0) + vote
        known.weight[...] = self._weighed(known, known.lower, known.upper)
        self._decide(known, known.lower, known.upper)

    def _grow(self, place: int, lower: Index, upper: Index) -> None:
        """Make room for these voxels, too."""
        known = self._open[place]
        lower, upper = tuple(map(min, known.lower, lower)), tuple(map(max, known.upper, upper))
        if (lower, upper) != (known.lower, known.upper):
            shape, old = shape_of(lower, upper), within(known.lower, known.upper, lower)
            total, weight = (self.scratch.zeros(shape, np.float32) for _ in range(2))
            inside = self.scratch.zeros(shape, np.bool_)
            total[old], weight[old], inside[old] = known.total, known.weight, known.inside
            for axis in range(len(lower)):  # what is new are slabs on both sides of each axis
                for a, b in ((lower[axis], known.lower[axis]), (known.upper[axis], upper[axis])):
                    if a < b:
                        first, last = (*known.lower[:axis], a, *lower[axis + 1 :]), (*known.upper[:axis], b, *upper[axis + 1 :])
                        weight[within(first, last, lower)] = self._weighed(known, first, last)
            known.lower, known.upper, known.total, known.weight, known.inside = lower, upper, total, weight, inside
            self._boxes[place] = (*lower, *upper)

    def _decide(self, known: _Open, lower: Index, upper: Index) -> None:
        """Find anew which voxels of a part are inside."""
        part = within(lower, upper, known.lower)
        inside = known.total[part] >= np.float32(INSIDE) * known.weight[part]
        inside &= known.total[part] > 0
        known.voxels += int(np.count_nonzero(inside)) - int(np.count_nonzero(known.inside[part]))
        known.inside[part] = inside

    def _free_place(self, place: int) -> _Open:
        self._boxes[place] = self._nowhere(1)
        self._free.append(place)
        return self._open.pop(place)

    def _gaussian(self, start: Index, lower: Index, upper: Index) -> NDArray[np.float32]:
        """Weights of a window for some of its voxels."""
        first, *rest = (w[a - s : b - s] for w, s, a, b in zip(self._weights, start, lower, upper, strict=True))
        for weights in rest:
            first = first[..., None] * weights
        return first

    def _weighed(self, known: _Open, lower: Index, upper: Index) -> NDArray[np.float32]:
        """Sum of the weights of all members, for some voxels."""
        result = np.zeros(shape_of(lower, upper), np.float32)
        for start, score in known.windows.items():
            low, high = _common(lower, upper, start, self._end(start))
            if all(a < b for a, b in zip(low, high, strict=True)):
                result[within(low, high, lower)] += self._gaussian(start, low, high) * np.float32(score)
        return result

    def _close_before(self, start: Index) -> None:
        """Close what neither the window at `start` nor any after it can see.

        These windows are, for each axis: those with the starts of this one along the axes before, and a later start along the axis.
        """
        places = np.array(list(self._open), np.int64)
        if not len(places):
            return
        lower, upper = np.split(self._boxes[places], 2, axis=1)
        meets = np.zeros(len(places), bool)
        before = np.ones(len(places), bool)
        for axis, (first, width) in enumerate(zip(start, self.window, strict=True)):
            later = next((s for s in self.starts[axis] if s > first), None)
            if later is not None:
                meets |= before & (upper[:, axis] > later)
            before &= (upper[:, axis] > first) & (lower[:, axis] < first + width)
        for place in places[~(meets | before)].tolist():
            self._close(place)

    def _close(self, place: int) -> None:
        known = self._free_place(place)
        found = tight(known.inside)
        if found is None:
            return
        lower = tuple(o + part.start for o, part in zip(known.lower, found, strict=True))
        upper = tuple(o + part.stop for o, part in zip(known.lower, found, strict=True))
        score = self._confidence(known, lower, upper)
        if score < FLOOR:
            return
        mask = self.scratch.zeros(shape_of(lower, upper), np.uint8)
        for rows in row_slabs(mask.shape):
            part = within((lower[0] + rows.start, *lower[1:]), (lower[0] + rows.stop, *upper[1:]), known.lower)
            chances = known.total[part] / np.maximum(known.weight[part], np.float32(1e-30))
            mask[rows] = np.rint(255 * np.minimum(chances, 1))
        self.keep(Merged(lower, upper, mask, int(np.count_nonzero(mask >= 255 * INSIDE)), score, known.votes))

    def _confidence(self, known: _Open, lower: Index, upper: Index) -> float:
        whole = math.prod(
            sum(s <= a and b <= s + w for s in starts) for starts, w, a, b in zip(self.starts, self.window, lower, upper, strict=True)
        )
        if whole:
            seen = sum(score for start, score in known.windows.items() if _holds(start, self.window, lower, upper))
            return min(1.0, seen / (whole * self.views))
        everywhere = math.prod(
            sum(_share(s, w, a, b) for s in starts) for starts, w, a, b in zip(self.starts, self.window, lower, upper, strict=True)
        )
        seen = sum(score * math.prod(map(_share, start, self.window, lower, upper)) for start, score in known.windows.items())
        return min(1.0, seen / (everywhere * self.views))

    def _nowhere(self, count: int) -> Integers:
        """Boxes `(count, 2 d)` that meet nothing."""
        return np.repeat(np.array([[FAR, -FAR]], np.int64), len(self.shape), 1).repeat(count, 0)


def _distinct(view: Sequence[Detection]) -> list[Detection]:
    """What one view says, best first, without what says the same as a better one."""
    ordered = sorted(view, key=lambda one: -one.score)
    if len(ordered) < 2:
        return ordered
    boxes, sizes = _boxes(ordered, len(ordered[0].lower)), np.array([one.voxels for one in ordered])
    dropped: set[int] = set()
    pairs: list[tuple[int, int]] = []
    for rows, columns in meeting(boxes, boxes):
        able = (rows < columns) & (shared_room(boxes[rows], boxes[columns]) >= SAME * np.maximum(sizes[rows], sizes[columns]))
        pairs += zip(rows[able].tolist(), columns[able].tolist(), strict=True)
    for i, j in sorted(pairs):
        if i in dropped or j in dropped:
            continue
        one, other = ordered[i], ordered[j]
        low, high = _common(one.lower, one.upper, other.lower, other.upper)
        shared = int(np.count_nonzero(one.inside[within(low, high, one.lower)] & other.inside[within(low, high, other.lower)]))
        if shared >= SAME * (one.voxels + other.voxels - shared):
            dropped.add(j)
    return [one for k, one in enumerate(ordered) if k not in dropped]


def _boxes(view: Sequence[Detection], axes: int) -> Integers:
    return np.array([(*one.lower, *one.upper) for one in view], np.int64).reshape(-1, 2 * axes)


def _common(lower: Index, upper: Index, low: Index, high: Index) -> tuple[Index, Index]:
    return tuple(map(max, lower, low)), tuple(map(min, upper, high))


def _holds(start: Index, window: Shape, lower: Index, upper: Index) -> bool:
    return all(s <= a and b <= s + w for s, w, a, b in zip(start, window, lower, upper, strict=True))


def _share(start: int, window: int, lower: int, upper: int) -> float:
    """The part of a range that a window covers."""
    return max(0, min(start + window, upper) - max(start, lower)) / (upper - lower)
