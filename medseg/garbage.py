"""When Python looks for garbage: not while modules are imported, whose objects all stay. That takes a third of the time of importing torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_own = False


def own_process() -> None:
    """Say that this process is a command of medseg, or one that works for it: what it imports is then never looked through again.

    Elsewhere, in a notebook, there are objects of others, which may become garbage later.
    """
    global _own
    _own = True


@contextmanager
def importing() -> Iterator[None]:
    """Within it nothing looks for garbage, in no thread."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _own:
            gc.freeze()
        if was:
            gc.enable()


def ending() -> None:
    """To be called last: a process of our own that ends would look through all that it has once more, for half a second where that is torch."""
    if _own:
        gc.freeze()
