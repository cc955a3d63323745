"""An archive that studies are fetched from and results are sent to, whatever it speaks."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import Problem, ResourceError, UsageError
from medseg.progress import Progress
from medseg.serving.ledger import digest
from medseg.serving.store import SUFFIX

UID = re.compile(r"[0-9][0-9.]{0,63}")


class UnreachableError(ResourceError):
    """The other side does not answer, or accepts no association: it may later."""


class RejectedError(ResourceError):
    """The other side has refused a request or objects."""


@dataclass(frozen=True)
class Place:
    """A study, or one series of it.

    Attributes:
        study: Study Instance UID.
        series: Series Instance UID; empty for all.
    """

    study: str
    series: str = ""

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name it without telling UIDs."""
        return digest(f"{self.study}/{self.series}" if self.series else self.study)


class Archive(ABC):
    """A study or series in another system."""

    place: Place
    name: str
    """Of the system, for people; without UIDs and credentials."""

    @abstractmethod
    def fetch(self, folder: Path, progress: Progress) -> tuple[Path, ...]:
        """Bring all instances into a folder, one file each, as they are encoded there; those that are in it already are not asked for.

        Raises:
            UnreachableError: no answer; files that have come stay, and a further call goes on.
            RejectedError: a request was refused.
            UsageError: there is nothing.
        """

    @abstractmethod
    def send(self, files: Sequence[Path], progress: Progress) -> None:
        """Store DICOM files there. All are tried.

        Raises:
            UnreachableError: no answer.
            RejectedError: some were refused; says how many and why.
        """

    def nothing(self) -> UsageError:
        """The error where the archive has no such study."""
        what = "holds no such series" if self.place.series else "holds no such study"
        return UsageError(Problem(what, self.name, fix="Check the UID at the end of the address."))


def parse_place(text: str, where: str) -> Place:
    """`STUDY` or `STUDY/SERIES`. Raises UsageError where these are no UIDs."""
    study, _, series = text.strip("/").partition("/")
    if not UID.fullmatch(study) or (series and not UID.fullmatch(series)):
        raise UsageError.of("does not end in a study", where=where, expected="a Study Instance UID, and a Series Instance UID if wanted")
    return Place(study, series)


def instance_file(folder: Path, uid: str) -> Path:
    """Where an instance lies in a folder; the name does not tell its UID."""
    return folder / f"{digest(uid)}{SUFFIX}"
