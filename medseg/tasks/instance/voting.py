"""Objects out of votes: every voxel says where the centre of its object is, and voxels that agree are one object.

Each voxel points to the voxel that it votes for, which points on, so voxels whose ways end in one place form a group; a voxel near the centre
knows better where it is than one far away. Groups whose centres lie closer than their votes scatter are one object. So objects of any size,
shape and distance are told apart as well as the votes allow, and perfectly by perfect votes, without a radius to choose.

Voxels are looked at slab by slab, so that images may be larger than memory: groups of a slab are united with those of others where a voxel
points from one into another. What comes out does not depend on slabs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.imaging.linking import alike, successors
from medseg.scratch import IN_MEMORY, Scratch, release
from medseg.tasks.instance.settings import Touching

Indices = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
APART = 2.0**20  # no group has votes in two slices; a power of two, so that it rounds nothing
TOGETHER = 2**20  # voxels, or pairs of groups, that are looked at together
STEPS = (1.0, 0.75, 0.5, 0.25)  # of the way to a centre that lies outside of all objects; then the voxel stays alone


def group_voxels(
    things: NDArray[np.bool_],
    offsets: NDArray[Any],
    smallest: int,
    reach: float,
    scale: Sequence[float] = (),
    chances: Sequence[NDArray[Any]] = (),
    scratch: Scratch = IN_MEMORY,
    touching: Touching = "apart",
) -> NDArray[np.int32]:
    """The number of each voxel's object, from 1 on in index order, 0 where there is none.

    Memory beyond the result grows with the number of groups, not with voxels; all arrays may lie in files.

    Args:
        things: `(*shape)` voxels that belong to objects.
        offsets: `(d, *shape)` the way to the centre in units of `scale`, along the last d axes. Where the first axis has none, slices
            are grouped one by one, and groups in neighbouring slices are one object where `imaging.linking.successors` says so.
        smallest: voxels of the smallest object; smaller ones are dropped.
        reach: see `DenseSettings`.
        scale: `(d,)` voxels along each axis that are equally far; 1 where there is none.
        chances: probability `(*shape)` of each class of things. What is surely of different classes is not one object, as where one lies
            in the middle of another; what may be of either can be. Of one class none is needed.
        scratch: for the result.
        touching: whether objects may touch; else groups that do, at faces or at corners, too, are one object, also those of neighbouring slices.
    """
    numbers = scratch.zeros(things.shape, np.int32)
    field = _Field(things, offsets, tuple(scale) or (1.0,) * len(offsets), tuple(chances) if len(chances) > 1 else ())
    groups = _grouped(field, numbers)
    if not len(groups):
        return numbers
    groups = _united(field, numbers, groups, reach)
    if touching != "apart":
        groups = _joined(field, numbers, groups, 1 if touching == "faces" else things.ndim)
    elif len(offsets) < things.ndim:
        groups = _linked(field, numbers, groups)
    kept = _sizes(field, numbers, groups) >= smallest
    table = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)[groups]]).astype(np.int32)
    for rows in field.slabs():
        numbers[rows] = table[numbers[rows]]
        release(numbers)
    return numbers


@dataclass(frozen=True)
class _Field:
    """What networks say of voxels, taken slab by slab; see `group_voxels`."""

    things: NDArray[np.bool_]
    offsets: NDArray[Any]
    scale: tuple[float, ...]
    chances: Sequence[NDArray[Any]]

    def slabs(self) -> Iterator[slice]:
        """Rows of the first axis."""
        count, row = len(self.things), math.prod(self.things.shape[1:])
        step = max(1, TOGETHER // max(1, row))
        return (slice(start, min(start + step, count)) for start in range(0, count, step))

    def within(self, rows: slice) -> tuple[Indices, Floats, Floats]:
        """Of the voxels of objects in some rows: flat index `(n,)`, place and way to the centre `(ndim, n)`."""
        inside = np.nonzero(self.things[rows])
        places = np.stack([line.astype(np.float32) for line in inside])
        places[0] += np.float32(rows.start)
        ways = np.zeros_like(places)
        for way, values, scale in zip(ways[-len(self.offsets) :], self.offsets, self.scale, strict=True):
            way[...] = values[rows][inside]
            way *= np.float32(scale)
        flat = np.ravel_multi_index((inside[0] + rows.start, *inside[1:]), self.things.shape).astype(np.int64)
        for array in (self.things, self.offsets):
            release(array)
        return flat, places, ways

    def votes(self, rows: slice) -> Floats:
        """Where they think that the centre is, `(ndim, n)`, in lengths in which all axes are alike; slices lie far apart."""
        _, places, ways = self.within(rows)
        votes = places + ways
        votes[: -len(self.offsets)] *= APART
        for line, scale in zip(votes[-len(self.scale) :], self.scale, strict=True):
            line *= np.float32(math.prod(self.scale) ** (1 / len(self.scale)) / scale)
        return votes

    def kinds(self, flat: Indices) -> Floats:
        """`(K, n)` shares of the classes of things in the probability of voxels; of one class nothing need be known, so K is then 0."""
        if not self.chances:
            return np.zeros((0, flat.size), np.float32)
        kinds = np.stack([one.reshape(-1)[flat] for one in self.chances]).astype(np.float32)
        for one in self.chances:
            release(one)
        return np.asarray(kinds / kinds.sum(0))


def _components(one: Indices, other: Indices, count: int) -> Indices:
    """`(count,)` component of each node of a graph with edges from `one` to `other`, numbered in the order of their first nodes."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(one), np.int8), (one, other)), shape=(count, count))
    found: Indices = connected_components(graph, directed=False)[1].astype(np.int64)
    return found


def _grouped(field: _Field, numbers: NDArray[np.int32]) -> Indices:
    """Groups, those whose ways lead to one place: into `numbers` one more than the place in the returned list `(n,)`, which holds the group."""
    flat_numbers, count = numbers.reshape(-1), 0
    edges: list[Indices] = [np.zeros((2, 0), np.int64)]  # groups that are one
    open_ends = np.zeros((2, 0), np.int64)  # group, and the voxel of a later slab that it leads to
    row = math.prod(field.things.shape[1:])
    for rows in field.slabs():
        flat, places, ways = field.within(rows)
        goal = _goals(field, flat, places, ways)
        low, high = rows.start * row, rows.stop * row
        here = (goal >= low) & (goal < high)
        place = np.arange(flat.size)
        place[here] = np.searchsorted(flat, goal[here])
        own = _components(np.arange(flat.size), place, flat.size) + count
        flat_numbers[flat] = own + 1
        count = max(count, int(own.max(initial=-1)) + 1)
        leaving = np.unique(np.stack([own[~here], goal[~here]]), axis=1)
        open_ends = np.concatenate([open_ends, leaving], axis=1)
        reached = open_ends[1] < high
        edges.append(np.unique(np.stack([open_ends[0, reached], flat_numbers[open_ends[1, reached]].astype(np.int64) - 1]), axis=1))
        open_ends = open_ends[:, ~reached]
        release(numbers)
    one, other = np.concatenate(edges, axis=1)
    return _components(one, other, count)


def _goals(field: _Field, flat: Indices, places: Floats, ways: Floats) -> Indices:
    """The voxel, as its flat index, that each voxel points to."""
    things, shape = field.things.reshape(-1), field.things.shape
    most, kinds = np.array(shape)[:, None] - 1, field.kinds(flat)
    goal, lost = flat.copy(), np.arange(flat.size)
    for step in STEPS:
        there = np.clip(np.rint(places[:, lost] + np.float32(step) * ways[:, lost]).astype(np.int64), 0, most)
        aim = np.ravel_multi_index(tuple(there), shape)
        found = things[aim]
        found[found] = alike(kinds[:, lost[found]], field.kinds(aim[found]))
        goal[lost[found]] = aim[found]
        lost = lost[~found]
        if not lost.size:
            break
    return goal


def _members(field: _Field, numbers: NDArray[np.int32], groups: Indices) -> Iterator[tuple[slice, Indices]]:
    """Rows, and the group of each of their voxels of objects."""
    for rows in field.slabs():
        here = numbers[rows]
        yield rows, groups[here[here > 0] - 1]
        release(numbers)


def _sizes(field: _Field, numbers: NDArray[np.int32], groups: Indices) -> Indices:
    """Voxels of each group."""
    sizes = np.zeros(int(groups.max()) + 1, np.int64)
    for _, own in _members(field, numbers, groups):
        sizes += np.bincount(own, minlength=len(sizes))
    return sizes


def _means(field: _Field, numbers: NDArray[np.int32], groups: Indices, sizes: Indices) -> Floats:
    """`(K, count)` shares of classes of each group."""
    sums = np.zeros((len(field.chances), len(sizes)))
    for rows, own in _members(field, numbers, groups) if field.chances else ():
        for total, line in zip(sums, field.kinds(field.within(rows)[0]), strict=True):
            total += np.bincount(own, weights=line, minlength=len(sizes))
    return np.asarray(sums / sizes)


def _united(field: _Field, numbers: NDArray[np.int32], groups: Indices, reach: float) -> Indices:
    """Groups with those united that may be of one class and whose centres are nearer than `reach` times the sum of their spreads."""
    sizes = _sizes(field, numbers, groups)
    count = len(sizes)
    centres, spread = _centres(field, numbers, groups, count)
    # More is no spread of votes for one centre.
    spread = np.minimum(spread, 0.5 * np.sqrt(sizes) if len(field.offsets) == 2 else 0.5 * np.cbrt(sizes))
    if count < 2 or not reach or not spread.any():
        return groups
    means = _means(field, numbers, groups, sizes)
    united = np.arange(count)
    for one, other in _near(centres, spread, reach):
        able = alike(means[:, one], means[:, other])
        united = _components(united[one[able]], united[other[able]], count)[united]
    return united[groups]


def _near(centres: Floats, spread: Floats, reach: float) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of centres `(ndim, n)` that are nearer than `reach` times the sum of their spreads `(n,)`, in portions.

    Of two the one that spreads more looks for the other, so nobody looks further than twice as far as pairs are, and one group of votes that
    go astray does not make all others look far.
    """
    from scipy.spatial import cKDTree

    tree, radii = cKDTree(centres.T), 2 * reach * spread * (1 + 1e-9)
    many = tree.query_ball_point(centres.T, radii, return_length=True)
    parts = np.flatnonzero(np.diff(np.cumsum(many) // TOGETHER, prepend=0))
    for part in np.split(np.arange(many.size), parts):
        found = tree.query_ball_point(centres.T[part], radii[part])
        one = np.repeat(part, many[part])
        other = np.fromiter(itertools.chain.from_iterable(found), np.int64, one.size)
        kept = (spread[other] <= spread[one]) & (other != one)
        one, other = one[kept], other[kept]
        near = np.linalg.norm(centres[:, one] - centres[:, other], axis=0) <= reach * (spread[one] + spread[other])
        yield one[near], other[near]


def _linked(field: _Field, numbers: NDArray[np.int32], groups: Indices) -> Indices:
    """Groups of slices with those united that follow each other (`linking.successors`) and may be of one class."""
    sizes = _sizes(field, numbers, groups)
    found: list[Indices] = []
    for rows in field.slabs():
        both = numbers[rows.start : rows.stop + 1]
        above, below = both[:-1].reshape(-1), both[1:].reshape(-1)
        meet = (above > 0) & (below > 0)
        pairs, shared = np.unique(np.stack([groups[above[meet] - 1], groups[below[meet] - 1]]), axis=1, return_counts=True)
        found.append(np.concatenate([pairs, shared[None]]))
        release(numbers)
    above, below, shared = np.concatenate(found, axis=1)
    pairs, at = np.unique(np.stack([above, below]), axis=1, return_inverse=True)
    shared = np.bincount(at.reshape(-1), weights=shared, minlength=pairs.shape[1]).astype(np.int64)
    means = _means(field, numbers, groups, sizes)
    able = alike(means[:, pairs[0]], means[:, pairs[1]])
    kept = successors(pairs[0], pairs[1], shared, (sizes[pairs[0]], sizes[pairs[1]]), able)
    one, other = pairs[0][kept], pairs[1][kept]
    return _components(one, other, len(sizes))[groups]


def _joined(field: _Field, numbers: NDArray[np.int32], groups: Indices, along: int) -> Indices:
    """Groups with those united that may be of one class and have voxels one step `along` so many axes at most from each other."""
    steps = [
        step
        for step in itertools.product((-1, 0, 1), repeat=numbers.ndim)
        if step > (0,) * numbers.ndim and np.count_nonzero(step) <= along
    ]
    count = int(groups.max()) + 1
    found = [np.zeros(0, np.int64)]
    for rows in field.slabs():
        both = numbers[rows.start : rows.stop + 1]
        for step in steps:
            one = both[tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, both.shape, strict=True))]
            other = both[tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, both.shape, strict=True))]
            meet = (one > 0) & (other > 0) & (one != other)
            found.append(np.unique(groups[one[meet] - 1] * count + groups[other[meet] - 1]))
        release(numbers)
    pairs = np.unique(np.concatenate(found))
    first, second = pairs // count, pairs % count
    means = _means(field, numbers, groups, _sizes(field, numbers, groups))
    able = alike(means[:, first], means[:, second])
    return _components(first[able], second[able], count)[groups]


def _centres(field: _Field, numbers: NDArray[np.int32], groups: Indices, count: int) -> tuple[Floats, Floats]:
    """Centre `(ndim, count)` of each group's votes and their distance from it `(count,)` (root mean square), without votes that stray."""
    limits: tuple[Floats, Floats] | None = None  # centres, and squares of distances beyond which votes stray

    def weighed(rows: slice, own: Indices) -> tuple[Floats, Floats]:
        votes = field.votes(rows)
        if limits is None:
            return votes, np.ones(own.size)
        return votes, (np.square(votes - limits[0][:, own]).sum(0) <= limits[1][own]).astype(np.float64)

    for _ in range(2):
        total, sums, squares = np.zeros(count), np.zeros((field.things.ndim, count)), np.zeros(count)
        for rows, own in _members(field, numbers, groups):
            votes, weight = weighed(rows, own)
            total += np.bincount(own, weights=weight, minlength=count)
            for line, vote in zip(sums, votes, strict=True):
                line += np.bincount(own, weights=weight * vote, minlength=count)
        centres = sums / total
        for rows, own in _members(field, numbers, groups):
            votes, weight = weighed(rows, own)
            squares += np.bincount(own, weights=weight * np.square(votes - centres[:, own]).sum(0), minlength=count)
        spread = np.sqrt(squares / total)
        limits = centres, np.square(2 * spread) + 1e-9
    return centres, spread
