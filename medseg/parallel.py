"""Work over cases in several processes: spawn-safe, in order, one failing item does not stop the others; and work aside, in a thread."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

from medseg.errors import MedsegError, Problem, ResourceError
from medseg.garbage import importing, own_process

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
    return min(usable_cores(), 16)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_cases(function: Callable[[A], R], items: Sequence[A], workers: int | None = None) -> Iterator[Outcome[A, R]]:
    """`function` over `items`, results in the order of `items`; at most `2 * workers` results are held, so memory stays bounded.

    `function` must be importable (a module-level function or a `functools.partial` of one). MedsegErrors become the item's failure;
    any other exception is a bug and propagates.

    Raises:
        ResourceError: a worker was killed, most often because memory ran out.
    """
    workers = default_workers() if workers is None else max(1, workers)
    if workers == 1 or (len(items) < 2 and workers not in _shared.get()):
        for item in items:
            yield _attempt(function, item)
        return
    with _pool(workers, len(items)) as pool:
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


@contextmanager
def shared_workers(workers: int | None, modules: Sequence[str]) -> Iterator[None]:
    """Within it all calls of `map_cases` from this thread with this number of workers share processes, which start now and import `modules`.

    Starting a process and what it imports takes about as long as a hundred small cases.
    """
    count = default_workers() if workers is None else max(1, workers)
    if count == 1 or _shared.get():
        yield
        return
    with _new_pool(count) as pool:
        for _ in range(count):
            pool.submit(_import, tuple(modules))  # one for each process, because none of them is done before the last one is handed out
        token = _shared.set({count: pool})
        try:
            yield
        finally:
            _shared.reset(token)
            pool.shutdown(wait=True, cancel_futures=True)


# At most one, by its number of workers. Each thread has its own: another's would end with that thread's work.
_shared: ContextVar[Mapping[int, ProcessPoolExecutor]] = ContextVar("_shared", default=MappingProxyType({}))


@contextmanager
def _pool(workers: int, items: int) -> Iterator[ProcessPoolExecutor]:
    """The shared pool of so many processes, else one for this work alone."""
    shared = _shared.get()
    if workers in shared:
        yield shared[workers]
        return
    with _new_pool(min(workers, items)) as pool:
        yield pool


def _new_pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet_worker)


def _import(modules: Iterable[str]) -> None:
    with importing():
        for module in modules:
            importlib.import_module(module)


class Aside(Generic[R]):
    """A function at work in a thread of its own from now on, most of all one that imports, while this thread waits for processes."""

    def __init__(self, function: Callable[[], R]) -> None:
        self._future: Future[R] = Future()
        self._thread = threading.Thread(target=self._work, args=(function,), name="aside")
        self._thread.start()

    def _work(self, function: Callable[[], R]) -> None:
        try:
            self._future.set_result(function())
        except BaseException as error:
            self._future.set_exception(error)

    def check(self) -> None:
        """Raise what the function has raised, if it has by now."""
        if self._future.done():
            self._future.result()

    def result(self) -> R:
        """What the function returns; waits for it. Raises what it raises."""
        self._thread.join()
        return self._future.result()


def _attempt(function: Callable[[A], R], item: A) -> Outcome[A, R]:
    try:
        return Outcome(item, function(item), None)
    except MedsegError as error:
        return Outcome(item, None, error)


def _quiet_worker() -> None:
    """One compute thread per worker: the pool already uses every core; Ctrl-C is handled by the parent."""
    import signal

    own_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # read when the worker first imports numpy or torch
