"""Connected components."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def component_sizes(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Voxels of every connected component (full connectivity: corners touch), sorted from small to large."""
    labelled, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    if not count:
        return np.zeros(0, dtype=np.int64)
    return np.sort(np.bincount(labelled.ravel(), minlength=count + 1)[1:])
