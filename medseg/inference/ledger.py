"""What has been predicted into a folder, so that an interrupted call goes on where it stopped."""

from __future__ import annotations

import time
from pathlib import Path

from medseg.dataset import file_digest
from medseg.errors import PlanError
from medseg.record import Record

NAME = "predictions.json"
PAUSE = 2.0  # seconds between writes: with thousands of small images the list itself would be most of the writing


class PredictedCase(Record):
    """One finished prediction.

    Attributes:
        id: case id.
        file: the label map, relative to the output folder.
        probabilities: the class probabilities, relative to the output folder, or None.
        uncertainty: mean normalised entropy over the predicted foreground (0 sure, 1 ignorant), or None.
        seconds: from reading to writing.
        source: digest of the input files, the model and all settings that change the outcome.
        content: digest of the written files.
    """

    id: str
    file: Path
    probabilities: Path | None = None
    uncertainty: float | None = None
    seconds: float
    source: str
    content: str


class Entries(Record):
    """The content of `predictions.json`."""

    format: int = 1
    cases: tuple[PredictedCase, ...] = ()


class Ledger:
    """`predictions.json` of an output folder: written atomically, at most every `PAUSE` seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME
        self._written = 0.0
        self._entries: dict[str, PredictedCase] = {}
        if self.path.is_file():
            try:
                self._entries = {case.id: case for case in Entries.load(self.path).cases}
            except PlanError:
                self.path.rename(self.path.with_suffix(".damaged.json"))  # not ours, or of another version: keep it, predict again

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
        """Enter a case whose files are in place."""
        self._entries[entry.id] = entry
        if time.monotonic() - self._written > PAUSE:
            self.flush()

    def flush(self) -> None:
        """Write now."""
        Entries(cases=tuple(self._entries[case_id] for case_id in sorted(self._entries))).save(self.path)
        self._written = time.monotonic()


def written_files(folder: Path, entry: PredictedCase) -> list[Path]:
    """The files of an entry."""
    return [folder / name for name in (entry.file, entry.probabilities) if name is not None]


def content_digest(files: list[Path]) -> str:
    """One digest for the files of a prediction."""
    return "-".join(file_digest(file) for file in files)
