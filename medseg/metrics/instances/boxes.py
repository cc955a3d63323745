"""Boxes in any number of dimensions: `(n, 2, ndim)`, lower and upper corners in the order of array axes, upper ones exclusive."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.imaging.crop import value_boxes
from medseg.metrics.contingency import Flags, Floats, Integers


def box_volumes(boxes: Floats) -> Floats:
    """`(n,)` area or volume; 0 for boxes that end before they begin."""
    volumes: Floats = np.clip(boxes[:, 1] - boxes[:, 0], 0, None).prod(axis=1)
    return volumes


def box_iou(boxes: Floats, others: Floats, crowd: Flags | None = None) -> Floats:
    """`(n, m)` intersection over union of boxes `(n, 2, ndim)` and `(m, 2, ndim)`.

    Where one of the `others` is a crowd, the intersection is related to the box alone, as in `pycocotools`: a part of a crowd is no error.
    """
    inner = np.ones((len(boxes), len(others)))
    for axis in range(boxes.shape[-1]):  # one axis at a time: no array of boxes by boxes by axes
        low = np.maximum(boxes[:, None, 0, axis], others[None, :, 0, axis])
        inner *= np.clip(np.minimum(boxes[:, None, 1, axis], others[None, :, 1, axis]) - low, 0, None)
    own = box_volumes(boxes)[:, None]
    union = own + box_volumes(others) - inner
    if crowd is not None:
        union = np.where(crowd, own, union)
    iou: Floats = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
    return iou


def label_boxes(labels: NDArray[Any], ids: Integers) -> Floats:
    """`(n, 2, ndim)` the smallest boxes of objects of a label map, by their values. Raises KeyError where one does not occur."""
    if not len(ids):
        return np.zeros((0, 2, labels.ndim))
    found = value_boxes(labels, tuple(ids.tolist()))
    return np.array([[[s.start for s in found[i]], [s.stop for s in found[i]]] for i in ids.tolist()], dtype=np.float64)


def of_coco(boxes: NDArray[Any]) -> Floats:
    """Boxes `(n, 4)` of COCO (x, y, width, height) as corners `(n, 2, 2)` in the order (y, x)."""
    xywh = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    low, size = xywh[:, 1::-1], xywh[:, :1:-1]
    return np.stack([low, low + size], axis=1)
