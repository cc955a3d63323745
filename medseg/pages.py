"""Memory that a process frees and asks for again, window by window and step by step."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # names of mallopt(3)
USUAL = {MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}  # where glibc's own adaptation ends
MAPPINGS = 2**16  # glibc's own MMAP_MAX
_open = 0  # contexts, within one another or in several threads
_lock = threading.Lock()


@contextlib.contextmanager
def kept_pages() -> Iterator[None]:
    """Within the context, freed memory stays with the process, to be taken again; `given_back` returns it to the system.

    glibc gives large arrays back at once, so that every map of every step begins as new pages, which the system must find and clear (a
    sixth of a training step's CPU time, an eighth of a prediction's). The price is gaps: the peak of a training may be a third higher.
    Other C libraries have no such setting, and nothing happens; nor does it where the environment says how glibc is to allocate (`MALLOC_...`,
    or `glibc.malloc` in `GLIBC_TUNABLES`), which settings of ours would override.

    The settings are the process's. Afterwards large arrays are mappings of their own again, but glibc's own adaptation of its thresholds has
    ended: `TRIM_THRESHOLD` stays without limit until `given_back`.
    """
    global _open
    library = _glibc()
    if library is None:
        yield
        return
    with _lock:
        if _open == 0:
            library.mallopt(MMAP_MAX, 0)
            library.mallopt(TRIM_THRESHOLD, -1)
        _open += 1
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if _open == 0:  # large arrays are mappings of their own again; what is free stays
                library.mallopt(MMAP_MAX, MAPPINGS)


def given_back() -> None:
    """Return to the system what is free, unless a context is open that keeps it; nothing where `kept_pages` does nothing.

    For the rest of the process `MMAP_THRESHOLD` stays at 32 MiB and `TRIM_THRESHOLD` at 64 MiB, where glibc's own adaptation would end: once
    set, it does not adapt them any more.
    """
    library = _glibc()
    if library is None:
        return
    with _lock:
        if _open:
            return
        for name, value in USUAL.items():
            library.mallopt(name, value)
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library where it is glibc and its user has not said how it is to allocate, else None."""
    said = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or said:
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
