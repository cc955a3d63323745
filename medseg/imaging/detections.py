"""What one view of a window says of objects, in voxels of the case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.cells import INSIDE as INSIDE
from medseg.cells import Floats, rasterised, voxel_ranges
from medseg.imaging.rasters import Index


class Detection(NamedTuple):
    """What one view of a window says of an object: probabilities of the voxels from `lower` to before `upper`; `inside`: `voxels` of them."""

    lower: Index
    upper: Index
    chances: NDArray[np.float32]
    inside: NDArray[np.bool_]
    voxels: int
    score: float
    kind: int


def detections(
    boxes: Floats,
    masks: Sequence[NDArray[Any]] | NDArray[Any],
    scores: NDArray[Any],
    kinds: NDArray[Any],
    first: Sequence[int],
    last: Sequence[int],
    scale: float = 1.0,
) -> list[Detection]:
    """Boxes `(n, 2 d)` with masks of cells, in voxels from `first` to before `last`: what lies outside is cut off, what is empty is dropped.

    Args:
        scale: the value in masks that stands for certainty.
    """
    found = []
    sound = np.asarray(np.isfinite(boxes).all(1) & (boxes[:, : len(first)] <= boxes[:, len(first) :]).all(1))
    lowers, uppers = voxel_ranges(np.clip(np.where(sound[:, None], boxes, 0), np.tile(first, 2) - 1.0, np.tile(last, 2) + 1.0))
    lowers, uppers = np.maximum(lowers, np.array(first)), np.minimum(uppers, np.array(last))
    for k in np.flatnonzero(sound & (uppers > lowers).all(1)).tolist():
        lower, upper = tuple(lowers[k].tolist()), tuple(uppers[k].tolist())
        chances = rasterised(masks[k], boxes[k], lower, upper)
        if scale != 1:
            chances = chances / np.float32(scale)
        inside = chances >= INSIDE
        count = int(np.count_nonzero(inside))
        if count:
            found.append(Detection(lower, upper, chances, inside, count, float(scores[k]), int(kinds[k])))
    return found
