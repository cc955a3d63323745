from __future__ import annotations

from pathlib import Path

import pytest

from medseg.planning.reference import plan_markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "plan.md"


def test_every_row_has_a_meaning() -> None:
    rows = [line for line in plan_markdown().splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    empty = [row for row in rows if row.split("|")[3].strip() == "" and not row.startswith("| `space.channels.")]
    assert empty == []


@pytest.mark.parametrize(
    "field", ["training.batch_size", "network.features", "target.class_weights", "space.spacing", "data.labels.ignore"]
)
def test_fields_are_listed(field: str) -> None:
    assert f"| `{field}` |" in plan_markdown()


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == plan_markdown()
