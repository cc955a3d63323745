"""The process that predicts: it holds the model, lives as long as the node, and is replaced when it dies."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

import psutil

from medseg.errors import MedsegError, ResourceError
from medseg.serving.privacy import without_identifiers

LOG = logging.getLogger(__name__)
START = multiprocessing.get_context("spawn")  # the node has threads, with which no process must be forked


class Handle(Protocol):
    """Predicts one study."""

    def __call__(self, images: Path, out: Path) -> Results:
        """Predict the images in a folder; `out` is an empty folder. Raises MedsegError where nothing of it can be predicted."""


class Recipe(Protocol):
    """What a worker process is told to do; goes to the process, so it must be picklable."""

    def load(self) -> Handle:
        """Read the model. Raises MedsegError where that is not possible."""


@dataclass(frozen=True)
class Results:
    """What came of a study.

    Attributes:
        files: DICOM files to send.
        instances: digests of their SOP Instance UIDs.
        note: what went wrong with parts of the study.
    """

    files: tuple[Path, ...]
    instances: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Reply:
    """What the process says of the study that it was given.

    Attributes:
        results: None where it failed.
        reason: of the failure.
        final: whether another try would end alike.
        seconds: that it took.
    """

    results: Results | None
    reason: str = ""
    final: bool = False
    seconds: float = 0.0


class Worker:
    """One process at a time; studies are given to it one by one."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self.starts = 0
        self.ready = False

    def start(self) -> None:
        """Start the process; `poll` tells when it is ready."""
        ours, theirs = START.Pipe()
        self._process = START.Process(target=_work, args=(self._recipe, theirs), name="medseg-worker")
        self._process.start()
        theirs.close()
        self._pipe = ours
        self.ready = False
        self.starts += 1

    @property
    def alive(self) -> bool:
        """Whether there is a process; one that has just died counts until `end`."""
        return self._process is not None

    def give(self, images: Path, out: Path) -> None:
        """Let it predict a study."""
        assert self._pipe is not None
        self._pipe.send((images, out))

    def poll(self, seconds: float) -> Reply | None:
        """Wait up to some seconds for a reply.

        Raises:
            EOFError: the process has died; `end` says how.
            MedsegError: it cannot read the model.
        """
        assert self._pipe is not None
        if not self._pipe.poll(seconds):
            return None
        told = self._pipe.recv()
        if isinstance(told, MedsegError):
            raise told
        if told is None:
            self.ready = True
            return None
        assert isinstance(told, Reply)
        return told

    def end(self, grace: float = 0.0) -> int | None:
        """End the process, after `grace` seconds by force. Returns its exit code."""
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        self.ready = False
        if process is None or pipe is None:
            return None
        pipe.close()
        process.join(grace)
        if process.is_alive():
            process.kill()
            process.join()
        code = process.exitcode
        process.close()
        return code

    def memory(self) -> int:
        """Bytes of main memory that the process holds."""
        process = self._process
        try:
            return int(psutil.Process(process.pid).memory_info().rss) if process is not None else 0
        except (psutil.Error, ValueError):  # it has just ended
            return 0


def _work(recipe: Recipe, pipe: Connection) -> None:
    """What the process does."""
    import signal

    from medseg.serving.logs import silence

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the node decides when it ends
    silence()
    _die_with_parent()
    try:
        handle = recipe.load()
    except MedsegError as error:
        pipe.send(error)
        return
    pipe.send(None)
    while True:
        try:
            images, out = pipe.recv()
        except EOFError:
            return
        began = time.monotonic()
        reply = _attempt(handle, images, out)
        pipe.send(Reply(reply.results, reply.reason, reply.final, time.monotonic() - began))


def _attempt(handle: Handle, images: Path, out: Path) -> Reply:
    try:
        results = handle(images, out)
        return Reply(replace(results, note=without_identifiers(results.note, images)) if results.note else results)
    except MedsegError as error:
        return Reply(None, without_identifiers(str(error), images), final=not isinstance(error, ResourceError))
    except Exception as error:  # its text may hold values of headers; its place does not
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return Reply(None, f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}")


def _die_with_parent() -> None:
    """A killed node leaves no process behind that still writes results."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
