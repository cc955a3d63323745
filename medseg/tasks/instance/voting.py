"""Objects out of votes: every voxel says where the centre of its object is, and voxels that agree are one object.

Each voxel points to the voxel that it votes for, which points on, so voxels whose ways end in one place form a group; a voxel near the centre
knows better where it is than one far away. Groups whose centres lie closer than their votes scatter are one object. So objects of any size,
shape and distance are told apart as well as the votes allow, and perfectly by perfect votes, without a radius to choose.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
APART = 1e6  # no group has votes in two slices
COVERED = 0.5  # of the smaller of two groups in neighbouring slices, from which on they are one object
STEPS = (1.0, 0.75, 0.5, 0.25)  # of the way to a centre that lies outside of all objects; then the voxel stays alone


def group_voxels(things: NDArray[np.bool_], offsets: NDArray[Any], smallest: int, reach: float) -> NDArray[np.int32]:
    """The number of each voxel's object, from 1 on in index order, 0 where there is none.

    Args:
        things: `(*shape)` voxels that belong to objects.
        offsets: `(d, *shape)` the way to the centre in voxels, along the last d axes. Where the first axis has none, slices are grouped one by
            one, and groups in neighbouring slices that cover half of one of them are one object.
        smallest: voxels of the smallest object; smaller ones are dropped.
        reach: see `InstanceSettings`.
    """
    numbers = np.zeros(things.shape, np.int32)
    inside = np.flatnonzero(things)
    if not inside.size:
        return numbers
    places = np.stack(np.unravel_index(inside, things.shape)).astype(np.float64)
    ways = np.zeros_like(places)
    ways[-len(offsets) :] = offsets.reshape(len(offsets), -1)[:, inside]
    groups = _groups(places, ways, inside, things.shape)
    votes = places + ways
    votes[: -len(offsets)] *= APART
    groups = _united(groups, votes, reach, len(offsets))
    if len(offsets) < things.ndim:
        groups = _linked(groups, inside, things.shape)
    sizes = np.bincount(groups)
    kept = sizes[groups] >= smallest
    _, first, order = np.unique(groups[kept], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(1, len(first) + 1)
    numbers.reshape(-1)[inside[kept]] = rank[order.reshape(-1)] if len(first) else 0
    return numbers


def _groups(places: Floats, ways: Floats, inside: Indices, shape: tuple[int, ...]) -> Indices:
    """`(n,)` group of each voxel: those whose ways lead to one place."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    index = np.full(math.prod(shape), -1, np.int64)
    index[inside] = np.arange(inside.size)
    most = np.array(shape)[:, None] - 1
    goal = np.arange(inside.size)
    lost = np.arange(inside.size)
    for step in STEPS:
        target = np.clip(np.rint(places[:, lost] + step * ways[:, lost]).astype(np.int64), 0, most)
        there = index[np.ravel_multi_index(tuple(target), shape)]
        goal[lost[there >= 0]] = there[there >= 0]
        lost = lost[there < 0]
        if not lost.size:
            break
    graph = coo_matrix((np.ones(inside.size, np.int8), (np.arange(inside.size), goal)), shape=(inside.size, inside.size))
    groups: Indices = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def _united(groups: Indices, votes: Floats, reach: float, axes: int) -> Indices:
    """Groups with those united whose centres are nearer than `reach` times the sum of their spreads."""
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
    graph = coo_matrix((np.ones(int(near.sum()), np.int8), (one[near], other[near])), shape=(count, count))
    united: Indices = connected_components(graph, directed=False)[1].astype(np.int64)
    return united[groups]


def _linked(groups: Indices, inside: Indices, shape: tuple[int, ...]) -> Indices:
    """Groups of slices with those united that lie over each other."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    index = np.full(shape, -1, np.int64)
    index.reshape(-1)[inside] = groups
    above, below = index[:-1].reshape(-1), index[1:].reshape(-1)
    both = (above >= 0) & (below >= 0)
    pairs, shared = np.unique(np.stack([above[both], below[both]]), axis=1, return_counts=True)
    sizes = np.bincount(groups)
    one, other = pairs[:, shared >= COVERED * np.minimum(sizes[pairs[0]], sizes[pairs[1]])]
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
