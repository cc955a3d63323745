"""What is written of each case: in which formats, into which files, and whether that can be done at all."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import final

from medseg.dataset import CaseFiles, Labels
from medseg.errors import ImageError, Problem, UsageError
from medseg.inference.ledger import PredictedCase, content_digest
from medseg.inference.targets import target_problems
from medseg.io.exports import DETECTIONS, LABELS, TABLE, Export, Maker, Result, find_export, own_exports

LABEL_MAPS = (LABELS,)
"""The formats of predictions that medseg itself goes on with."""


def scored_formats(labels: Labels) -> tuple[str, ...]:
    """The formats of predictions that are evaluated: of objects also a table of them, and all detections with their confidences."""
    return (LABELS, TABLE, DETECTIONS) if labels.things else LABEL_MAPS


@final
class Output:
    """A folder of predictions, and the formats in which they are written there."""

    def __init__(self, folder: Path, formats: Sequence[str] = LABEL_MAPS, probabilities: bool = False, objects: bool = False) -> None:
        """Find the formats.

        Args:
            folder: need not exist.
            formats: names of exports; empty: what suits the first image of each case (`own_exports`).
            probabilities: whether class probabilities are written, too, by the formats that can hold them.
            objects: whether predictions tell objects apart.

        Raises:
            PlanError: there is no such format.
        """
        self.folder = folder
        self.formats = tuple(dict.fromkeys(formats))
        self.probabilities = probabilities
        self.objects = objects
        self._exports = {name: find_export(name) for name in self.formats}

    def exports(self, files: CaseFiles) -> tuple[Export, ...]:
        """The formats of one case."""
        names = self.formats or own_exports(files, self.objects)
        return tuple(self._exports.setdefault(name, find_export(name)) for name in names)

    def targets(self, files: CaseFiles) -> dict[str, tuple[Path, ...]]:
        """The files of a case by format, relative to the folder."""
        return {export.name: export.targets(files, self.probabilities) for export in self.exports(files)}

    def check(self, cases: Sequence[CaseFiles], known: Collection[Path] | None) -> tuple[Path, ...]:
        """All files that will be written, relative to the folder, after making sure that all of them can be, and replace nothing.

        Args:
            cases: all cases, with their labels where these are known.
            known: see `target_problems`.

        Raises:
            UsageError: a format cannot serve a case, or files that must stay are in the way; all at once. Of a case whose header cannot be
                read nothing is said; it fails when its turn comes.
        """
        problems = self._refused(cases)
        targets = tuple(dict.fromkeys(target for case in cases for several in self.targets(case).values() for target in several))
        targets += tuple(file for export in self._all(cases) for file in export.collected)
        problems += target_problems(cases, targets, self.folder, known)
        if problems:
            raise UsageError(problems)
        return targets

    def warnings(self, cases: Iterable[CaseFiles], labels: Labels, maker: Maker) -> tuple[str, ...]:
        """What will be written less well than one may expect, each once with the first case that it is true of."""
        found: dict[str, list[str]] = {}
        for case in cases:
            for export in self.exports(case):
                try:
                    for problem in export.warnings(case, labels, maker):
                        found.setdefault(str(problem), []).append(case.id)
                except ImageError:
                    continue
        return tuple(f"{text} (case '{ids[0]}'{f' and {len(ids) - 1} more' if len(ids) > 1 else ''})" for text, ids in found.items())

    def _all(self, cases: Iterable[CaseFiles]) -> tuple[Export, ...]:
        """The formats of all cases, each once."""
        return tuple({export.name: export for case in cases for export in self.exports(case)}.values())

    def collect(self, cases: Sequence[CaseFiles], done: Sequence[PredictedCase]) -> None:
        """Write what formats say about all cases together, from what they wrote for those that are done. Raises ResourceError."""
        for export in self._all(cases):
            if export.collected:
                export.collect([entry.files[export.name] for entry in done if export.name in entry.files], self.folder)

    def _refused(self, cases: Iterable[CaseFiles]) -> list[Problem]:
        problems: list[Problem] = []
        for case in cases:
            for export in self.exports(case):
                try:
                    problems += export.problems(case)
                except ImageError:
                    continue
        return problems

    def key(self, files: CaseFiles, maker: str) -> str:
        """Changes with whatever of the output is not told by the prediction; empty for label maps alone.

        Args:
            maker: its digest.
        """
        names = tuple(export.name for export in self.exports(files))
        return "" if names == LABEL_MAPS else repr((names, maker))

    def write(self, result: Result, source: str, start: float, uncertainty: bool = False) -> PredictedCase:
        """Write a prediction in every format; `start` is when the work on it began (`time.monotonic`).

        Raises:
            ImageError: the prediction cannot be expressed in a format.
            ResourceError: a file cannot be written.
        """
        for export in self.exports(result.files):
            export.write(result, self.folder)
        files = {
            export.name: export.targets(result.files, result.prediction.probabilities is not None) for export in self.exports(result.files)
        }
        return PredictedCase(
            id=result.files.id,
            files=files,
            uncertainty=result.prediction.uncertainty if uncertainty else None,
            seconds=round(time.monotonic() - start, 3),
            source=source,
            content=content_digest([self.folder / file for file in dict.fromkeys(name for several in files.values() for name in several)]),
        )
