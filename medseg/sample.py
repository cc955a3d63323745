"""The real sample that is shipped with medseg."""

from __future__ import annotations

from pathlib import Path

from medseg.errors import UsageError


def sample_dataset() -> Path:
    """The folder of the hippocampus sample: in the installed package, or in the source tree.

    Raises:
        UsageError: it is in neither.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "datasets" / "hippocampus", package.parent / "datasets" / "hippocampus"):
        if (folder / "dataset.json").is_file():
            return folder
    raise UsageError.of(
        "the sample dataset is not installed", expected="datasets/hippocampus", fix="Reinstall medseg, or run from its source tree."
    )
