"""Boxes around what matters in an array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.scratch import IN_MEMORY, Scratch, release, row_slabs

Box = tuple[tuple[int, int], ...]


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """The smallest box of the true elements as (start, stop) per axis; empty when nothing is true."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if not hits.size:
            return ()
        box.append((int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)


def nonzero(image: NDArray[Any], scratch: Scratch = IN_MEMORY) -> NDArray[np.bool_]:
    """Voxels of `image` `(C, *shape)` that are not zero in at least one channel; slab by slab, the mask in `scratch`."""
    mask = scratch.zeros(image.shape[1:], np.bool_)
    for channel in image:
        for rows in row_slabs(mask.shape):
            mask[rows] |= channel[rows] != 0
            release(image)
    return mask
