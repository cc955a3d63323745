"""Nodes that work while a test goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom import dcmread
from recipes import Copying

from medseg.serving.addresses import Peer
from medseg.serving.node import Node, Settings


def make_node(tmp_path: Path, *forward: Peer, recipe: Copying | None = None, **settings) -> Node:
    """A node on a free port; `settings` as in `Settings`."""
    settings = {"quiet": 0.2, "grace": 0.5, "port": 0, "keep": 0.0, "forward": forward, **settings}
    return Node(Settings(tmp_path / "store", **settings), recipe or Copying())


def study_of(files: list[Path]) -> str:
    """The Study Instance UID of files."""
    return str(dcmread(files[0]).StudyInstanceUID)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@contextmanager
def working(node: Node) -> Iterator[Node]:
    """A node that runs in a thread while the test goes on."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            node.run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: node.port or failures)
        if failures:
            raise failures[0]
        yield node
    finally:
        node.stop()
        thread.join(30)
        assert not thread.is_alive()
    if failures:
        raise failures[0]
