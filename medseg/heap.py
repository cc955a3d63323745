"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of glibc's mallopt
MANY, NEVER = 2**31 - 1, 0
TRIM_DEFAULT, MMAP_DEFAULT = 2**17, 2**16


@contextmanager
def kept() -> Iterator[None]:
    """Memory that is asked for within this block and freed stays with the process, to be taken again, until `given_back`.

    glibc returns arrays of some MiB to the system as they are freed. What takes their place are new pages, which the system clears one by
    one: of a network's 16-bit maps on a CPU that is an eighth of all time. Other C libraries have no such switch and are left as they are.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(TRIM_THRESHOLD, MANY)
    library.mallopt(MMAP_MAX, NEVER)
    try:
        yield
    finally:
        library.mallopt(MMAP_MAX, MMAP_DEFAULT)


def given_back() -> None:
    """Return to the system what was freed."""
    library = _glibc()
    if library is not None:
        library.mallopt(TRIM_THRESHOLD, TRIM_DEFAULT)
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
