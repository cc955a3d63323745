"""Small datasets of boxes with predictions whose scores are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation_boxes import box, save


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three cases: a perfect one, one with Dice 0.5, one missed."""
    for name, truth, predicted in (("good", (2, 6), (2, 6)), ("half", (2, 6), (4, 8)), ("missed", (2, 6), (0, 0))):
        save(tmp_path / "references" / f"{name}.nii.gz", box(*truth))
        save(tmp_path / "predictions" / f"{name}.nii.gz", box(*predicted))
    return tmp_path / "predictions", tmp_path / "references"
