"""How sure a model was of each object that it predicted: read from the table (`medseg.io.table`) beside the label map."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from medseg.dataset import MOST_OBJECTS, NUMBER_BITS, Labels
from medseg.errors import ImageError
from medseg.io.images import image_stem
from medseg.io.table import FOLDER


def read_confidences(prediction: Path, labels: Labels) -> dict[int, float] | None:
    """Code of each object (`Labels`) -> confidence; None where there is no table of the case, or some object has no score in it.

    The table of `<case>.nii.gz` is `objects/<case>.csv`; lines without a number are of classes without objects.

    Raises:
        ImageError: the table cannot be read, has no columns `number` and `class`, holds what is no number or no class, or an object twice.
    """
    path = prediction.parent / FOLDER / f"{image_stem(prediction)}.csv"
    if not path.is_file():
        return None
    values = dict(zip(labels.names, labels.written, strict=True))
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), [(reader.line_num, row) for row in reader if row.get("number")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImageError.of("the table of objects cannot be read", where=str(path), found=str(error)) from None
    if missing := {"number", "class"} - set(columns):
        raise ImageError.of(
            "the table of objects lacks columns", where=str(path), found=", ".join(columns), expected=", ".join(sorted(missing))
        )
    if "score" not in columns or any(not row["score"] for _, row in rows):
        return None
    found: dict[int, float] = {}
    for line, row in rows:
        try:
            value, number, score = values[row["class"]], int(row["number"]), float(row["score"])
        except (KeyError, TypeError, ValueError):
            value, number, score = 0, 0, math.nan
        if not math.isfinite(score) or not 1 <= number <= MOST_OBJECTS:
            raise ImageError.of(
                "a line of the table of objects makes no sense",
                where=f"{path}, line {line}",
                found=", ".join(f"{key} {row[key]}" for key in ("class", "number", "score")),
                expected=f"a number from 1 to {MOST_OBJECTS}, a class among {', '.join(values)}, and a score",
            )
        code = value << NUMBER_BITS | number
        if code in found:
            raise ImageError.of("an object is in the table twice", where=f"{path}, line {line}", found=f"{row['class']} {number}")
        found[code] = score
    return found
