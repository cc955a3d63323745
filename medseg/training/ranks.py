"""One process per device, without Lightning's own launchers: those re-run the user's script, or pickle the whole trainer."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from torch import distributed

from medseg.errors import MedsegError, ResourceError
from medseg.progress import Progress
from medseg.training.signals import StopRequest, without_interrupts

T = TypeVar("T")
Work = Callable[[int, int, Progress, StopRequest], T]


class _Relay:
    """A `Progress` in a child process that speaks through the parent's."""

    def __init__(self, messages: Any) -> None:
        self.messages = messages

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        for done, item in enumerate(items):
            self.update(what, done, total)
            yield item

    def update(self, what: str, done: float, total: float, note: str = "", seconds: bool = False) -> None:
        self.messages.put(("update", (what, done, total, note, seconds)))

    def say(self, message: str) -> None:
        self.messages.put(("say", (message,)))


def run_ranks(work: Work[T], ranks: int, progress: Progress) -> T:
    """Run `work(rank, port, progress, stop)` in `ranks` spawned processes; the result of rank 0. `work` must be picklable.

    `stop` says when the parent was asked to stop; a second Ctrl-C ends all at once. On Windows and macOS, as with every use of spawned
    processes, the calling script needs the guard `if __name__ == "__main__"`.

    Raises:
        MedsegError: what a rank raised.
        ResourceError: a rank was killed.
    """
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = context.Value("i", 0, lock=False)
    processes = [context.Process(target=_child, args=(work, rank, port, messages, told), daemon=False) for rank in range(ranks)]
    stop = StopRequest()
    stop.install()
    ended = False
    result: list[T] = []
    failure: BaseException | None = None
    try:
        with without_interrupts():
            for process in processes:
                process.start()
        while failure is None and (any(p.is_alive() for p in processes) or not messages.empty()):
            if stop.name:
                told.value = signal.Signals[stop.name].value
            try:
                kind, content = messages.get(timeout=0.2)
            except queue.Empty:
                failure = _death(processes)
                continue
            if kind == "update":
                progress.update(*content)
            elif kind == "say":
                progress.say(*content)
            elif kind == "result":
                result.append(content)
            else:
                failure = content if isinstance(content, MedsegError) else RuntimeError(f"a training process failed:\n{content}")
        if failure is None:
            failure = _death(processes)
        ended = failure is None
    finally:
        stop.remove()
        for process in processes:
            if not ended and process.is_alive():
                process.terminate()
                process.join(5)
                if process.is_alive():  # its handler waits for a step that cannot end without the other ranks
                    process.kill()
            if process.pid is not None:  # it was started
                process.join()
    if failure is not None:
        raise failure
    return result[0]


def _death(processes: list[Any]) -> ResourceError | None:
    dead = [(rank, p.exitcode) for rank, p in enumerate(processes) if p.exitcode not in (None, 0)]
    if not dead:
        return None
    return ResourceError(
        [
            ResourceError.of(
                "a training process was killed",
                where=f"rank {rank}",
                found=f"exit code {code}",
                fix="Most often memory ran out: train on fewer devices, or with a smaller batch.",
            ).problems[0]
            for rank, code in dead
        ]
    )


def _child(work: Work[Any], rank: int, port: int, messages: Any, told: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows: elsewhere it is so from the start
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        result = work(rank, port, _Relay(messages), StopRequest(told))
        if rank == 0:
            messages.put(("result", result))
    except MedsegError as error:
        messages.put(("error", error))
    except BaseException:
        messages.put(("error", traceback.format_exc()))
    finally:
        messages.close()
        messages.join_thread()
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        # What was said has arrived. An interpreter that ends in order now and then aborts, because a thread of PyTorch's is still there.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _follow_parent() -> None:
    """End with the parent, however it ends: a rank that outlives a killed parent would write into the training that resumes it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
