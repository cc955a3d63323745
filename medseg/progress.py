"""How long work reports progress: library code yields through a `Progress`; the command line shows it with rich, a notebook may not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Receives what long work has to say."""

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """Yield `items`, counting each as done when the next is asked for."""

    def update(self, what: str, done: float, total: float, note: str = "", seconds: bool = False) -> None:
        """Set the state of a task that is not a loop over items; with `seconds`, `done` and `total` are a time."""

    def say(self, message: str) -> None:
        """One line for the user."""


class Silent:
    """Reports nothing."""

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """See `Progress.track`."""
        yield from items

    def update(self, what: str, done: float, total: float, note: str = "", seconds: bool = False) -> None:
        """See `Progress.update`."""

    def say(self, message: str) -> None:
        """See `Progress.say`."""
