"""What happened in each epoch: `metrics.csv`, and the same rows in the checkpoint."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from medseg.record import write_text

Row = dict[str, float]
FIRST = ("epoch", "network", "step", "progress", "seconds", "learning_rate", "loss")


class History:
    """Rows of numbers, one per epoch; a cell that has no value is left out of its row and empty in the file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Append a row. The file is rewritten as a whole, so it never holds an epoch that the checkpoint has forgotten."""
        self.rows.append(row)
        self.save()

    def save(self) -> None:
        """Write the file, atomically."""
        names = [*FIRST, *sorted({name for row in self.rows for name in row} - set(FIRST))]
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({name: _text(value) for name, value in row.items()})
        write_text(self.file, text.getvalue())

    @classmethod
    def read(cls, file: Path) -> History:
        """The history in a file."""
        history = cls(file)
        with file.open(encoding="utf-8", newline="") as text:
            history.rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(text)]
        return history

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Epochs and values of a column, where it has one."""
        rows = [row for row in self.rows if name in row and not math.isnan(row[name])]
        return [row["epoch"] for row in rows], [row[name] for row in rows]


def _text(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"
