"""Which files a prediction must not touch."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from medseg.dataset import CaseFiles
from medseg.errors import Problem
from medseg.io.images import files_behind

SHOWN = 5  # files named in an error


def target_problems(cases: Sequence[CaseFiles], targets: Sequence[Path], out: Path, known: Collection[Path] | None) -> list[Problem]:
    """What would be replaced that must stay.

    Args:
        cases: all cases, with their labels where these are known.
        targets: the files that will be written, relative to `out`.
        out: output folder; need not exist.
        known: files relative to `out` that were written by medseg and may be replaced; None: every file that is no input.

    Returns:
        A problem for targets that are inputs (also by another name: a link, or other capitals where these are the same), and one for
        those that exist and are not `known`.
    """
    paths = {file for case in cases for path in (*case.images, case.label) if path is not None for file in files_behind(path)}
    inputs = {_place(path) for path in paths}
    nodes = {node for path in paths if (node := _node(path))}
    own = [out / target for target in targets if _place(out / target) in inputs or _node(out / target) in nodes]
    problems = []
    if own:
        problems.append(
            Problem(
                "predictions would overwrite their own inputs",
                str(out),
                _some(own),
                "a folder that holds none of the images and labels given",
                "Choose another folder with -o.",
            )
        )
    if known is not None:
        others = [out / target for target in targets if target not in known and os.path.lexists(out / target)]
        others = [path for path in others if path not in own]
        if others:
            problems.append(
                Problem(
                    "predictions would overwrite files that medseg did not write",
                    str(out),
                    _some(others),
                    "new files, or predictions that predictions.json lists",
                    "Choose another folder with -o, or replace these files with --overwrite.",
                )
            )
    return problems


def _place(path: Path) -> str:
    """Where a file lies, whatever links lead to its folder. The file itself is not followed: writing replaces a link, not its target."""
    return os.path.normcase(path.parent.resolve() / path.name)


def _node(path: Path) -> tuple[int, int] | None:
    """What identifies a file under all its names; None where there is no file, or no number for it (some network drives)."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None


def _some(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in paths[:SHOWN])
    return f"{names} and {len(paths) - SHOWN} more" if len(paths) > SHOWN else names
