"""Connected components."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def label_components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """The number of each voxel's connected component (full connectivity: corners touch), from 1 on in index order, 0 outside; and how many."""
    from scipy import ndimage

    labelled, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return labelled.astype(np.int32, copy=False), int(count)


def component_sizes(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Voxels of every connected component, sorted from small to large."""
    labelled, count = label_components(mask)
    if not count:
        return np.zeros(0, dtype=np.int64)
    return np.sort(np.bincount(labelled.ravel(), minlength=count + 1)[1:])
