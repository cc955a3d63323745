"""What a fingerprint knows of the objects of a case."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import Labels
from medseg.fingerprint import MOST_BOXES, OBJECT_QUANTILES, ObjectStats


def measure_objects(codes: NDArray[Any], labels: Labels, spacing: tuple[float, ...]) -> tuple[ObjectStats, ...]:
    """The objects of each thing in a coded label map (`Labels`), with `spacing` in mm per axis; none without things."""
    if not labels.things:
        return ()
    from scipy import ndimage

    inside = labels.numbers(codes) != 0
    ids, places, sizes = np.unique(codes[inside], return_inverse=True, return_counts=True)
    numbered = np.zeros(codes.shape, np.int32)
    numbered[inside] = places.reshape(-1) + 1
    boxes = np.array([[part.stop - part.start for part in box] for box in ndimage.find_objects(numbered)], np.float64)
    sides = boxes.reshape(-1, codes.ndim) * spacing
    near = _touching(numbered, labels.semantic(ids))
    found = []
    for one in labels.classes:
        if one.name in labels.things:
            own = np.isin(labels.semantic(ids), one.values)
            longest, shortest = sides[own].max(1, initial=0), sides[own].min(1, initial=np.inf)
            found.append(
                ObjectStats(
                    name=one.name,
                    count=int(own.sum()),
                    sizes=tuple(int(v) for v in _quantiles(sizes[own])),
                    extents=tuple(float(f"{v:.6g}") for v in _quantiles(longest)),
                    aspects=tuple(float(f"{v:.6g}") for v in _quantiles(longest / shortest)),
                    boxes=tuple(tuple(float(f"{v:.6g}") for v in box) for box in _some(sides[own])),
                    touching=round(float(near[own].mean()), 6) if own.any() else 0.0,
                )
            )
    return tuple(found)


def _quantiles(values: NDArray[Any]) -> NDArray[Any]:
    """Values that occur, so that they do not depend on the machine."""
    return np.quantile(values, OBJECT_QUANTILES, method="nearest") if len(values) else values


def _some(sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of `(n, d)` boxes a few, evenly by volume."""
    order = np.lexsort((*sides.T, sides.prod(1)))
    return sides[order[np.unique(np.linspace(0, len(sides) - 1, min(len(sides), MOST_BOXES)).astype(np.int64))]] if len(sides) else sides


def _touching(numbered: NDArray[np.int32], values: NDArray[np.integer]) -> NDArray[np.bool_]:
    """`(n,)` whether objects, numbered from 1, have a neighbour of the same class, which is their value `(n,)`."""
    near, kinds = np.zeros(len(values) + 1, np.bool_), np.concatenate([[-1], values])
    for axis in range(numbered.ndim):
        one, other = (np.moveaxis(numbered, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
        meet = (one != other) & (one != 0) & (kinds[one] == kinds[other])
        near[one[meet]] = near[other[meet]] = True
    return near[1:]
