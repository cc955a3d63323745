"""What has been predicted into a folder, so that an interrupted call goes on where it stopped, and nothing else is overwritten."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from medseg.claim import Claim
from medseg.dataset import file_digest
from medseg.errors import PlanError
from medseg.record import Record

NAME = "predictions.json"
PAUSE = 2.0  # seconds between writes: with thousands of small images the list itself would be most of the writing


class PredictedCase(Record):
    """One finished prediction.

    Attributes:
        id: case id.
        files: name of the format -> its files, relative to the output folder; of label maps that of labels first.
        uncertainty: mean normalised entropy over the predicted foreground (0 sure, 1 ignorant), or None.
        seconds: from reading to writing.
        source: digest of the input files, the model, the version of medseg and all settings that change the outcome.
        content: digest of the written files.
    """

    id: str
    files: dict[str, tuple[Path, ...]]
    uncertainty: float | None = None
    seconds: float
    source: str
    content: str

    @property
    def file(self) -> Path:
        """The first file: where the case was written as a label map alone, that."""
        return next(iter(self.files.values()))[0]


class FailedCase(Record):
    """A case that could not be predicted, and why."""

    id: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(problem if self.id in problem else f"case '{self.id}': {problem}" for problem in self.problems)


class Entries(Record):
    """The content of `predictions.json`.

    Attributes:
        cases: finished predictions.
        failures: cases whose last attempt failed; where an older prediction of such a case exists, it is among `cases`, too.
        claimed: files, relative to the output folder, that are medseg's without being in an entry: announced by a call before it writes
            them, or left behind by one that was interrupted or had other options.
    """

    format: int = 1
    cases: tuple[PredictedCase, ...] = ()
    failures: tuple[FailedCase, ...] = ()
    claimed: tuple[Path, ...] = ()


class Ledger:
    """`predictions.json` of an output folder: written atomically, at most every `PAUSE` seconds.

    From `claim` to `close` no other ledger, of whatever process, can write there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME
        self._written = 0.0
        self._right: Claim | None = None
        self._read()

    def _read(self) -> None:
        self._foreign = False
        present = Entries()
        if self.path.is_file():
            try:
                present = Entries.load(self.path)
            except PlanError:
                self._foreign = True  # not ours, or of another version
        self._entries = {case.id: case for case in present.cases}
        self._failures = {case.id: case for case in present.failures}
        self._claimed = set(present.claimed)

    def files(self) -> set[Path]:
        """What earlier calls wrote, interrupted ones too; relative to the folder."""
        return self._claimed.union(*(_names(entry) for entry in self._entries.values()))

    def claim(self, files: Iterable[Path]) -> None:
        """Enter files, relative to the folder, before they are written, so that after a kill it is known whose they are.

        Raises:
            UsageError: another call is writing into the folder.
            ResourceError: it cannot be written.
        """
        self._right = Claim(self.folder, "prediction")
        try:
            self._read()  # another call may have ended since
            self._claimed.update(file for file in files if not (self.folder / file).exists())
            self.flush()
        except BaseException:
            self._right.release()
            raise

    def close(self) -> None:
        """Write for the last time; what was claimed and not written belongs to nobody."""
        try:
            self._claimed = {file for file in self._claimed if (self.folder / file).exists()}
            self.flush()
        finally:
            if self._right is not None:
                self._right.release()

    def finished(self, case_id: str, source: str) -> PredictedCase | None:
        """The entry of a case that was predicted from the same source and whose files are untouched."""
        entry = self._entries.get(case_id)
        if entry is None or entry.source != source:
            return None
        files = written_files(self.folder, entry)
        if not all(file.is_file() for file in files) or content_digest(files) != entry.content:
            return None
        return entry

    def add(self, entry: PredictedCase) -> None:
        """Enter a case whose files are in place; an earlier failure is forgotten."""
        self._claimed.update(_names(self._entries.get(entry.id, entry)))
        self._entries[entry.id] = entry
        self._claimed.difference_update(_names(entry))
        self._failures.pop(entry.id, None)
        self._flush_sometimes()

    def fail(self, failure: FailedCase) -> None:
        """Enter a case that could not be predicted."""
        self._failures[failure.id] = failure
        self._flush_sometimes()

    def _flush_sometimes(self) -> None:
        if time.monotonic() - self._written > PAUSE:
            self.flush()

    def flush(self) -> None:
        """Write now; a file that was not ours is kept beside it."""
        if self._foreign:
            self.path.replace(self.path.with_suffix(".damaged.json"))
            self._foreign = False
        Entries(
            cases=tuple(self._entries[case_id] for case_id in sorted(self._entries)),
            failures=tuple(self._failures[case_id] for case_id in sorted(self._failures)),
            claimed=tuple(sorted(self._claimed)),
        ).save(self.path)
        self._written = time.monotonic()


def written_files(folder: Path, entry: PredictedCase) -> list[Path]:
    """The files of an entry."""
    return [folder / name for name in _names(entry)]


def _names(entry: PredictedCase) -> list[Path]:
    return list(dict.fromkeys(name for several in entry.files.values() for name in several))


def content_digest(files: list[Path]) -> str:
    """One digest for the files of a prediction."""
    return "-".join(file_digest(file) for file in files)
