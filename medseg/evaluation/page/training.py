"""Training curves from the `metrics.csv` files of folds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg.errors import UsageError
from medseg.evaluation.page.charts import Line, curves

X_AXES = ("epoch", "step")
CLOCKS = ("epoch", "network", "step", "progress", "seconds", "time", "val/seconds", "val/cases")
"""Columns that say when and on how much, not how well."""


def training_curves(files: Sequence[Path]) -> str:
    """One chart per quantity (every loss in one chart, every Dice in one, ...), with all folds in it; empty without files.

    Raises:
        UsageError: a file cannot be read or holds no numbers.
    """
    groups: dict[str, list[Line]] = {}
    x_name = X_AXES[0]
    for path in files:
        columns = _read(path)
        x_name = next((name for name in X_AXES if name in columns), "row")
        rows = len(next(iter(columns.values())))
        x = columns.get(x_name, np.arange(rows, dtype=np.float64))
        for name, y in columns.items():
            known = ~(np.isnan(y) | np.isnan(x))
            if name in CLOCKS or not known.any():
                continue
            title = _quantity(name)
            label = name.replace("_", " ").replace("/", " ")
            lines = groups.setdefault(title, [])
            lines.append(
                Line(f"{path.parent.name.replace('_', ' ')}: {label}" if len(files) > 1 else label, x[known], y[known], len(lines))
            )
    if not groups:
        return ""
    order = sorted(groups, key=lambda t: (t != "Loss", not t.startswith("Dice"), t))
    charts = "".join(curves(title, x_name, groups[title]) for title in order)
    return f'<p class="lead">Recorded after every epoch. The last value stands beside each name.</p><div class="charts">{charts}</div>'


def _quantity(column: str) -> str:
    name = column.lower()
    for title, words in (("Learning rate", ("lr", "learning_rate", "rate")), ("Loss", ("loss",)), ("Dice", ("dice",))):
        if any(word in (name if len(word) > 2 else name.replace("/", "_").split("_")) for word in words):
            return title
    return column.replace("_", " ").replace("/", " ")


def _read(path: Path) -> dict[str, np.ndarray]:
    """Numeric columns by name; empty cells are NaN, columns with text are left out."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError.of("training curves cannot be read", where=str(path), found=str(error)) from None
    columns: dict[str, np.ndarray] = {}
    for name in rows[0] if rows else ():
        try:
            columns[name] = np.array([float(row[name]) if row[name] else np.nan for row in rows], dtype=np.float64)
        except (TypeError, ValueError):
            continue
    if not columns:
        raise UsageError.of("holds no training curves", where=str(path), expected="a CSV file with a header and one row per epoch")
    return columns
