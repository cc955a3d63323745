"""Names to objects, through Python entry points: how tasks, domains, networks and layouts are found.

Built-in and third-party objects are registered in the same way, by one line in a `pyproject.toml`:

    [project.entry-points."medseg.tasks"]
    semantic = "medseg.tasks.semantic:Semantic"

Nothing is imported until a name is asked for, so a plug-in with a broken import harms nobody who does not use it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from medseg.errors import PlanError, UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """The registered objects of one family, for example every task."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.group = f"medseg.{family}"

    @cached_property
    def _entries(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for entry in sorted(entry_points(group=self.group), key=lambda e: (e.name, e.value)):
            other = found.setdefault(entry.name, entry)
            if other.value != entry.value:
                raise UsageError.of(
                    f"two packages register '{entry.name}' in '{self.group}'",
                    found=f"{other.value} and {entry.value}",
                    fix="Uninstall one of the two packages.",
                )
        return found

    def names(self) -> tuple[str, ...]:
        """All registered names, sorted."""
        return tuple(self._entries)

    def get(self, name: str) -> T:
        """The object registered as `name`.

        Raises:
            PlanError: nothing is registered under this name; the nearest name is suggested.
        """
        entry = self._entries.get(name)
        if entry is None:
            near = difflib.get_close_matches(name, self.names(), n=1)
            raise PlanError.of(
                f"unknown name in '{self.group}'",
                found=f"'{name}'",
                expected=f"one of {', '.join(self.names()) or 'nothing registered'}",
                fix=f"Did you mean '{near[0]}'?" if near else "Install the package that provides it.",
            )
        return cast(T, entry.load())

    def items(self) -> Iterator[tuple[str, T]]:
        """Every name with its loaded object."""
        for name in self.names():
            yield name, self.get(name)


# Typed as Any because the classes live in higher layers; `medseg.tasks.base.find_task` and its kin give typed access.
tasks: Registry[Any] = Registry("tasks")
domains: Registry[Any] = Registry("domains")
networks: Registry[Any] = Registry("networks")
layouts: Registry[Any] = Registry("layouts")
exports: Registry[Any] = Registry("exports")
