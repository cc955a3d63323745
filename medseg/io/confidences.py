"""How sure a model was of each object that it predicted: read from the table (`medseg.io.table`) beside the label map."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from medseg.dataset import NUMBER_BITS, Labels
from medseg.errors import ImageError
from medseg.io.images import image_stem
from medseg.io.table import FOLDER


def read_confidences(prediction: Path, labels: Labels) -> dict[int, float] | None:
    """Code of each object (`Labels`) -> confidence; None where there is no table of the case, or some object has no score in it.

    The table of `<case>.nii.gz` is `objects/<case>.csv`; lines without a number are of classes without objects.

    Raises:
        ImageError: the table cannot be read, has no columns `number` and `class`, or holds what is no number or no class.
    """
    path = prediction.parent / FOLDER / f"{image_stem(prediction)}.csv"
    if not path.is_file():
        return None
    values = dict(zip(labels.names, labels.written, strict=True))
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), [row for row in reader if row.get("number")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImageError.of("the table of objects cannot be read", where=str(path), found=str(error)) from None
    if missing := {"number", "class"} - set(columns):
        raise ImageError.of(
            "the table of objects lacks columns", where=str(path), found=", ".join(columns), expected=", ".join(sorted(missing))
        )
    if "score" not in columns or any(not row["score"] for row in rows):
        return None
    found: dict[int, float] = {}
    for line, row in enumerate(rows, 2):
        try:
            code, score = (values[row["class"]] << NUMBER_BITS) + int(row["number"]), float(row["score"])
        except (KeyError, TypeError, ValueError):
            code, score = 0, math.nan
        if not math.isfinite(score):
            raise ImageError.of(
                "a line of the table of objects makes no sense",
                where=f"{path}, line {line}",
                found=", ".join(f"{key} {row[key]}" for key in ("class", "number", "score")),
                expected=f"a number, a class among {', '.join(values)}, and a score",
            )
        found[code] = score
    return found
