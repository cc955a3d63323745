"""One process at a time writes into a folder."""

from __future__ import annotations

import errno
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from medseg.errors import ResourceError, UsageError

HELD = (errno.EAGAIN, errno.EACCES)  # what systems answer when another process has the lock
LOG = logging.getLogger(__name__)


class TakenError(UsageError):
    """Another call holds the claim."""


class Claim:
    """The right to write into a folder, held until `release`, or by the death of the process, however it dies.

    It is the system's lock on a hidden file, which exists while the folder is claimed. A killed process leaves the file behind without the
    lock; it hinders nobody, and the next claim removes it.
    """

    def __init__(self, folder: Path, who: str, option: str = "-o") -> None:
        """Claim a folder for `who`, a noun such as `prediction`; claims for different nouns do not meet. `option` is how folders are chosen.

        Raises:
            TakenError: another call holds it.
            ResourceError: the folder cannot be written.
        """
        self._who = who
        self._option = option
        self._path = folder / f".{who}.lock"
        self._file = self._open()
        while not self._is_current():  # between our opening and our locking its holder has removed it
            self._file.close()
            self._file = self._open()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the folder back; no file stays."""
        if self._file.closed:  # the file that is there now may be another's
            return
        if sys.platform == "win32":  # an open file cannot be removed there, also not one that the next call has opened meanwhile
            self._file.close()
        with suppress(OSError):
            self._path.unlink()
        self._file.close()

    def _open(self) -> BinaryIO:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("ab")
        except OSError as error:
            raise ResourceError.of(
                "cannot be written",
                where=str(self._path),
                found=error.strerror or str(error),
                fix=f"Choose another folder with {self._option}.",
            ) from None
        try:
            _lock(file.fileno())
        except OSError as error:
            if error.errno in HELD:
                file.close()
                raise TakenError.of(
                    f"another {self._who} is writing there",
                    where=str(self._path.parent),
                    fix=f"Wait until it has ended, or choose another folder with {self._option}.",
                ) from None
            # Some network drives know no locks, and a single process, which is the rule, needs none.
            LOG.warning("%s: no locks on this file system (%s); do not use it twice at once", self._path.parent, error.strerror)
        return file

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False


def is_claimed(folder: Path, who: str) -> bool:
    """Whether another call holds a claim just now."""
    if not folder.is_dir():
        return False
    try:
        Claim(folder, who).release()
    except TakenError:
        return True
    return False


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
