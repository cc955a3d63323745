"""Room for the large arrays of one case: in memory while they are small, in temporary files beyond that."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ResourceError

CHUNK = 2**22  # elements that are worked on at once where an array may be larger than memory


@dataclass(frozen=True)
class Scratch:
    """Gives arrays; one that takes more than `limit` bytes lives in a temporary file that vanishes with it.

    A file's pages that were read or written stay in memory until the system needs the room, or until `release`.
    """

    limit: float = math.inf

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """A C-ordered array of zeros.

        Raises:
            ResourceError: the disk is full.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size <= self.limit:
            return np.zeros(shape, dtype=dtype)
        try:
            with tempfile.TemporaryFile() as file:
                file.truncate(size)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a crash while pages are written
                mapped: np.memmap[Any, Any] = np.memmap(file, dtype=dtype, mode="r+", shape=shape)
                return mapped
        except OSError as error:
            raise ResourceError.of(
                "no room for a temporary file",
                where=tempfile.gettempdir(),
                found=error.strerror or str(error),
                expected=f"{size / 2**30:.1f} GiB",
                fix="Free disk space, or allow more memory (--memory).",
            ) from error

    def keep(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array, moved into a file where it is too large for memory."""
        if array.nbytes <= self.limit:
            return array
        kept = self.zeros(array.shape, array.dtype)
        copy(array, kept)
        return kept


IN_MEMORY = Scratch()


def release(array: Any) -> None:
    """Let go of the pages that a file-backed array holds in memory; their content stays. Does nothing to other arrays."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    if array is not None and hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError, ValueError):
            array.madvise(mmap.MADV_DONTNEED)


def copy(source: NDArray[Any], target: NDArray[Any]) -> None:
    """`target[...] = source`, slab by slab, for arrays that may lie in files."""
    for rows in row_slabs(target.shape):
        target[rows] = source[rows]
        release(target)
        release(source)


def row_slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    """Consecutive rows of the first axis of an array of this shape, about `CHUNK` elements each, at least one row."""
    step = max(1, CHUNK // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
