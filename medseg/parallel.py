"""Work over cases in several processes: spawn-safe, in order, one failing item does not stop the others."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, TypeVar

from medseg.errors import MedsegError, Problem, ResourceError

A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True)
class Outcome(Generic[A, R]):
    """What came of one item: `result`, or the error as `failure`."""

    item: A
    result: R | None
    failure: MedsegError | None


def default_workers() -> int:
    """One process per usable core, at most 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 16)


def map_cases(function: Callable[[A], R], items: Sequence[A], workers: int | None = None) -> Iterator[Outcome[A, R]]:
    """`function` over `items`, results in the order of `items`; at most `2 * workers` results are held, so memory stays bounded.

    `function` must be importable (a module-level function or a `functools.partial` of one). MedsegErrors become the item's failure;
    any other exception is a bug and propagates.

    Raises:
        ResourceError: a worker was killed, most often because memory ran out.
    """
    workers = min(default_workers() if workers is None else max(1, workers), len(items))
    if workers <= 1:
        for item in items:
            yield _attempt(function, item)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet_worker) as pool:
        pending: deque[Future[Outcome[A, R]]] = deque()
        queue = iter(items)
        try:
            for item in queue:
                pending.append(pool.submit(_attempt, function, item))
                if len(pending) >= 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise ResourceError(
                Problem(
                    "a worker process did not start or was killed, most often because memory ran out",
                    fix='Use fewer workers (--workers 1). A script that calls medseg needs `if __name__ == "__main__":` around its calls.',
                )
            ) from None
        finally:
            for future in pending:
                future.cancel()


def _attempt(function: Callable[[A], R], item: A) -> Outcome[A, R]:
    try:
        return Outcome(item, function(item), None)
    except MedsegError as error:
        return Outcome(item, None, error)


def _quiet_worker() -> None:
    """One compute thread per worker: the pool already uses every core; Ctrl-C is handled by the parent."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # read when the worker first imports numpy or torch
