"""The one exception tree of medseg.

    MedsegError                 everything a user can cause and mend; the command line prints it and exits with 2
    |-- DatasetError            a dataset, or a case of it, cannot be used as it is
    |-- ImageError              one image file cannot be read or written
    |-- PlanError               a plan (or another record) holds an impossible value, or does not fit the data
    |-- ModelError              a model folder or checkpoint is missing, damaged, or belongs to another plan
    |-- ResourceError           disk, memory, permissions, devices
    `-- UsageError              arguments that contradict each other

Every error carries one or more `Problem`s, so that all problems of a dataset are reported at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: what, where, found, expected, and how to mend it.

    `where` names a file, case, field or option. `found` and `expected` may be empty where the sentence already says it.
    """

    what: str
    where: str = ""
    found: str = ""
    expected: str = ""
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.found:
            text += f"; found {self.found}"
        if self.expected:
            text += f"{',' if self.found else ';'} expected {self.expected}"
        return f"{text}. {self.fix}" if self.fix else f"{text}."


class MedsegError(Exception):
    """Base of all errors that a user can cause and mend."""

    def __init__(self, problems: Problem | Iterable[Problem] | str) -> None:
        """From one problem or several; a text is one problem (libraries that re-raise an exception of a worker give it a text)."""
        if isinstance(problems, str):
            problems = Problem(problems.strip().removesuffix("."))
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        return "\n".join([f"{len(self.problems)} problems:", *(f"  {i}. {p}" for i, p in enumerate(self.problems, 1))])

    @classmethod
    def of(cls, what: str, *, where: str = "", found: str = "", expected: str = "", fix: str = "") -> MedsegError:
        """The error for a single problem."""
        return cls(Problem(what, where, found, expected, fix))


class DatasetError(MedsegError):
    """A dataset, or a case of it, cannot be used as it is."""


class ImageError(MedsegError):
    """One image file cannot be read or written."""


class PlanError(MedsegError):
    """A plan or another record holds an impossible value, or does not fit the data."""


class ModelError(MedsegError):
    """A model folder or checkpoint is missing, damaged, or belongs to another plan."""


class ResourceError(MedsegError):
    """Disk, memory, permissions or devices do not suffice."""


class UsageError(MedsegError):
    """Arguments that contradict each other or make no sense."""
