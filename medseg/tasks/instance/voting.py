"""Objects out of votes: every voxel says where the centre of its object is, and voxels that agree are one object.

Each voxel points to the voxel that it votes for, which points on, so voxels whose ways end in one place form a group; a voxel near the centre
knows better where it is than one far away. Groups whose centres lie closer than their votes scatter are one object. So objects of any size,
shape and distance are told apart as well as the votes allow, and perfectly by perfect votes, without a radius to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
APART = 2.0**20  # no group has votes in two slices; a power of two, so that it rounds nothing
TOGETHER = 2**22  # voxels whose ways are followed at once
SHARED = 0.2  # of the probability of classes, from which on two voxels or groups may be of one
COVERED = 0.5  # of the smaller of two groups in neighbouring slices, from which on they are one object
STEPS = (1.0, 0.75, 0.5, 0.25)  # of the way to a centre that lies outside of all objects; then the voxel stays alone


def group_voxels(
    things: NDArray[np.bool_],
    offsets: NDArray[Any],
    smallest: int,
    reach: float,
    scale: float = 1.0,
    chances: Sequence[NDArray[Any]] = (),
) -> NDArray[np.int32]:
    """The number of each voxel's object, from 1 on in index order, 0 where there is none.

    Memory beyond the result grows with the voxels of objects, about 100 bytes for each, not with the image; `offsets` may lie in a file.

    Args:
        things: `(*shape)` voxels that belong to objects.
        offsets: `(d, *shape)` the way to the centre in units of `scale` voxels, along the last d axes. Where the first axis has none, slices
            are grouped one by one, and groups in neighbouring slices that cover half of one of them are one object.
        smallest: voxels of the smallest object; smaller ones are dropped.
        reach: see `DenseSettings`.
        chances: probability `(*shape)` of each class of things. What is surely of different classes is not one object, as where one lies
            in the middle of another; what may be of either can be. Of one class none is needed.
    """
    numbers = np.zeros(things.shape, np.int32)
    inside = np.flatnonzero(things)
    if not inside.size:
        return numbers
    places = np.stack([line.astype(np.float32) for line in np.unravel_index(inside, things.shape)])
    ways = np.zeros_like(places)
    for way, values in zip(ways[-len(offsets) :], offsets, strict=True):
        way[...] = values.reshape(-1)[inside]
    ways *= np.float32(scale)
    kinds = _kinds(chances, inside)
    groups = _groups(places, ways, inside, things.shape, kinds)
    votes = places + ways
    votes[: -len(offsets)] *= APART
    groups = _united(groups, votes, reach, len(offsets), kinds)
    if len(offsets) < things.ndim:
        groups = _linked(groups, inside, things.shape, kinds)
    sizes = np.bincount(groups)
    kept = sizes[groups] >= smallest
    _, first, order = np.unique(groups[kept], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(1, len(first) + 1)
    numbers.reshape(-1)[inside[kept]] = rank[order.reshape(-1)] if len(first) else 0
    return numbers


def _kinds(chances: Sequence[NDArray[Any]], inside: Indices) -> Floats:
    """`(K, n)` shares of the classes of things in the probability of each voxel; of one class nothing need be known, so K is then 0."""
    if len(chances) < 2:
        return np.zeros((0, inside.size), np.float32)
    kinds = np.stack([one.reshape(-1)[inside] for one in chances]).astype(np.float32)
    return np.asarray(kinds / kinds.sum(0))


def _alike(one: Floats, other: Floats) -> NDArray[np.bool_]:
    """Whether pairs `(K, m)` may be of one class."""
    return np.asarray(np.minimum(one, other).sum(0) >= SHARED) if len(one) else np.ones(one.shape[1], np.bool_)


def _means(kinds: Floats, groups: Indices, count: int) -> Floats:
    """`(K, count)` of each group."""
    sizes = np.bincount(groups, minlength=count)
    return np.asarray([np.bincount(groups, weights=line, minlength=count) / sizes for line in kinds]).reshape(len(kinds), count)


def _groups(places: Floats, ways: Floats, inside: Indices, shape: tuple[int, ...], kinds: Floats) -> Indices:
    """`(n,)` group of each voxel: those whose ways lead to one place."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    most = np.array(shape)[:, None] - 1
    goal = np.arange(inside.size)
    for start in range(0, inside.size, TOGETHER):
        lost = np.arange(start, min(start + TOGETHER, inside.size))
        for step in STEPS:
            there = np.clip(np.rint(places[:, lost] + np.float32(step) * ways[:, lost]).astype(np.int64), 0, most)
            flat = np.ravel_multi_index(tuple(there), shape)
            nearest = np.minimum(np.searchsorted(inside, flat), inside.size - 1)
            found = (inside[nearest] == flat) & _alike(kinds[:, lost], kinds[:, nearest])
            goal[lost[found]] = nearest[found]
            lost = lost[~found]
            if not lost.size:
                break
    graph = coo_matrix((np.ones(inside.size, np.int8), (np.arange(inside.size), goal)), shape=(inside.size, inside.size))
    groups: Indices = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def _united(groups: Indices, votes: Floats, reach: float, axes: int, kinds: Floats) -> Indices:
    """Groups with those united that may be of one class and whose centres are nearer than `reach` times the sum of their spreads."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    count = int(groups.max()) + 1
    centres, spread = _centres(groups, votes, count)
    sizes = np.bincount(groups, minlength=count)
    spread = np.minimum(spread, 0.5 * np.sqrt(sizes) if axes == 2 else 0.5 * np.cbrt(sizes))  # more is no spread of votes for one centre
    limit = 2 * reach * float(spread.max())
    if count < 2 or limit == 0:
        return groups
    one, other = cKDTree(centres.T).query_pairs(limit, output_type="ndarray").T
    near = np.linalg.norm(centres[:, one] - centres[:, other], axis=0) <= reach * (spread[one] + spread[other])
    means = _means(kinds, groups, count)
    near &= _alike(means[:, one], means[:, other])
    graph = coo_matrix((np.ones(int(near.sum()), np.int8), (one[near], other[near])), shape=(count, count))
    united: Indices = connected_components(graph, directed=False)[1].astype(np.int64)
    return united[groups]


def _linked(groups: Indices, inside: Indices, shape: tuple[int, ...], kinds: Floats) -> Indices:
    """Groups of slices with those united that lie over each other and may be of one class."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    index = np.full(shape, -1, np.int64)
    index.reshape(-1)[inside] = groups
    above, below = index[:-1].reshape(-1), index[1:].reshape(-1)
    both = (above >= 0) & (below >= 0)
    pairs, shared = np.unique(np.stack([above[both], below[both]]), axis=1, return_counts=True)
    sizes = np.bincount(groups)
    means = _means(kinds, groups, len(sizes))
    over = shared >= COVERED * np.minimum(sizes[pairs[0]], sizes[pairs[1]])
    one, other = pairs[:, over & _alike(means[:, pairs[0]], means[:, pairs[1]])]
    graph = coo_matrix((np.ones(len(one), np.int8), (one, other)), shape=(len(sizes), len(sizes)))
    linked: Indices = connected_components(graph, directed=False)[1].astype(np.int64)
    return linked[groups]


def _centres(groups: Indices, votes: Floats, count: int) -> tuple[Floats, Floats]:
    """Centre `(ndim, count)` of each group's votes and their distance from it `(count,)` (root mean square), without votes that stray."""
    weight = np.ones(groups.size)
    for _ in range(2):
        total = np.bincount(groups, weights=weight, minlength=count)
        centres = np.stack([np.bincount(groups, weights=weight * line, minlength=count) / total for line in votes])
        squares = np.square(votes - centres[:, groups]).sum(0)
        spread = np.sqrt(np.bincount(groups, weights=weight * squares, minlength=count) / total)
        weight = (squares <= np.square(2 * spread[groups]) + 1e-9).astype(np.float64)
    return centres, spread
