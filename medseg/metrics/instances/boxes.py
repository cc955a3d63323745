"""Boxes in any number of dimensions: `(n, 2, ndim)`, lower and upper corners in the order of array axes, upper ones exclusive."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.imaging.crop import value_boxes
from medseg.metrics.contingency import Floats, Integers


def box_volumes(boxes: Floats) -> Floats:
    """`(n,)` area or volume; 0 for boxes that end before they begin."""
    volumes: Floats = np.clip(boxes[:, 1] - boxes[:, 0], 0, None).prod(axis=1)
    return volumes


def label_boxes(labels: NDArray[Any], ids: Integers) -> Floats:
    """`(n, 2, ndim)` the smallest boxes of objects of a label map, by their values. Raises KeyError where one does not occur."""
    if not len(ids):
        return np.zeros((0, 2, labels.ndim))
    found = value_boxes(labels, tuple(ids.tolist()))
    return np.array([[[s.start for s in found[i]], [s.stop for s in found[i]]] for i in ids.tolist()], dtype=np.float64)
