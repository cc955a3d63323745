"""Which objects of neighbouring slices are one object of the volume."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
COVERED = 0.5  # of the smaller of two objects of neighbouring slices, from which on they may be one
SHARED = 0.2  # of the probability of classes, from which on two things may be of one


def alike(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """`(m,)` whether pairs with shares of classes `(K, m)` may be of one class; where no classes are known (K is 0) all may."""
    return np.asarray(np.minimum(one, other).sum(0) >= SHARED) if len(one) else np.ones(one.shape[1], np.bool_)


def successors(
    above: Indices, below: Indices, shared: Indices, sizes: tuple[Indices, Indices], able: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """`(m,)` which pairs of objects that lie over each other are one object.

    Those that share at least `COVERED` of the smaller one (an object's last slices are small) may be. Each object has one successor at most, and
    one predecessor: pairs with the largest IoU come first, of equal ones the first. So a slice that shows two neighbours as one does not unite them.

    Args:
        above: `(m,)` the object in the one slice, by its number; no number is in two slices.
        below: `(m,)` that in the next one.
        shared: `(m,)` voxels of both.
        sizes: `(m,)` voxels of the one, and of the other.
        able: `(m,)` pairs for which nothing else speaks against it, as `alike` does.
    """
    one, other = sizes
    places = np.flatnonzero(able & (shared > 0) & (shared >= COVERED * np.minimum(one, other)))
    overlap = (shared / np.maximum(one + other - shared, 1))[places]
    kept = np.zeros(len(above), np.bool_)
    continued, followed = set(), set()
    for place in places[np.lexsort((below[places], above[places], -overlap))].tolist():
        first, second = int(above[place]), int(below[place])
        if first not in continued and second not in followed:
            kept[place] = True
            continued.add(first)
            followed.add(second)
    return kept
