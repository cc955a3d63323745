"""Pixels of frames, as they are stored, whatever the transfer syntax."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from pydicom import Dataset
from pydicom.pixels.utils import iter_pixels

from medseg.geometry import Array


def frames_of(data: Dataset, indices: Sequence[int] | None) -> Iterator[Array]:
    """Frames `(rows, columns)` or `(rows, columns, 3)`, in the order of `indices`; None for a file of one image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for frame in iter_pixels(data, indices=None if indices is None else list(indices)):
            yield np.asarray(frame)
