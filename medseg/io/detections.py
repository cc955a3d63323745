"""Detections: all objects that a model found in a case, with a mask of its own and a confidence each, before a label map gives every voxel to
one of them and leaves out what is unsure. Average precision and FROC are about them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from medseg.dataset import CaseFiles, Labels
from medseg.errors import ImageError, MedsegError, Problem
from medseg.io.exports import DETECTIONS, Export, Result
from medseg.io.format import numbers
from medseg.io.found import Findings
from medseg.io.images import image_stem
from medseg.io.rle import Rle
from medseg.record import write_text

Box = tuple[float, ...]


@dataclass(frozen=True)
class Detection:
    """One object.

    Attributes:
        index: of its class in `Labels.classes`.
        score: confidence, higher is surer; None where nobody said it.
        mask: of the whole image.
        box: lower corner, then upper corner, in voxels; None is the smallest box that holds the mask.
    """

    index: int
    score: float | None
    mask: Rle
    box: Box | None = None


def detections_of(result: Result) -> list[Detection]:
    """Of a prediction, the surest first: what was found; where that is not known apart from the label map, the objects there (where there are no
    things, each class is one)."""
    prediction, labels = result.prediction, result.labels
    if (all_found := prediction.found) is not None:
        parts = [(int(all_found.classes[k]) - 1, float(all_found.scores[k]), all_found.mask(k)) for k in range(len(all_found))]
        found = [Detection(index, score, Rle.of_part(part[1], part[0], all_found.shape)) for index, score, part in parts if part]
        return sorted(found, key=lambda one: -(one.score or 0.0))
    findings = Findings.of(result)
    wanted = [one for one in findings.found if one.number or not labels.things]
    return [Detection(one.index, one.score, findings.rle(one)) for one in wanted]


@final
class DetectionFiles(Export):
    """`detections/<id>.json`: the shape of the image, and of each detection its class, score from 0 to 1, and run lengths (COCO's compressed
    string, in which the first axis varies fastest, of images and of volumes)."""

    name: ClassVar[str] = DETECTIONS
    summary: ClassVar[str] = (
        "all objects that were found, also unsure ones (JSON, run lengths): what average precision and FROC are computed of"
    )

    def targets(self, files: CaseFiles, probabilities: bool) -> tuple[Path, ...]:
        """See `Export.targets`."""
        return (Path(DETECTIONS, f"{files.id}.json"),)

    def problems(self, files: CaseFiles) -> tuple[Problem, ...]:
        """See `Export.problems`."""
        return ()

    def write(self, result: Result, out: Path) -> None:
        """See `Export.write`."""
        write_detections(out / self.targets(result.files, False)[0], detections_of(result), result.labels, result.grid.shape)


def detections_path(folder: Path, case: str) -> Path:
    """Where those of a case lie in a folder of predictions."""
    return folder / DETECTIONS / f"{case}.json"


def write_detections(path: Path, found: Sequence[Detection], labels: Labels, shape: tuple[int, ...]) -> None:
    """Write the detections of a case in an image of this shape, atomically. Raises ResourceError."""
    rows = [
        {"class": labels.names[one.index], "score": one.score, "counts": one.mask.to_string()} | ({"box": one.box} if one.box else {})
        for one in found
    ]
    write_text(path, json.dumps({"shape": shape, "detections": rows}, ensure_ascii=False) + "\n")


def read_detections(prediction: Path, labels: Labels, shape: tuple[int, ...]) -> list[Detection] | None:
    """Those of `detections/<case>.json` beside a label map of this shape; None where there is no such file, or some object has no score in it.

    Raises:
        ImageError: the file cannot be read, or belongs to another image or to other classes.
    """
    path = detections_path(prediction.parent, image_stem(prediction))
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        size, rows = tuple(told["shape"]), told["detections"]
        found = [_read(row, labels, size) for row in rows]
    except MedsegError as error:
        raise ImageError([Problem(p.what, str(path), p.found, p.expected, "Predict again.") for p in error.problems]) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ImageError.of(
            "the file of detections cannot be read", where=str(path), found=repr(error)[:80], fix="Predict again."
        ) from None
    if size != shape:
        raise ImageError.of(
            "detections and label map have different shapes",
            where=str(path),
            found=numbers(size),
            expected=numbers(shape),
            fix="Predict again.",
        )
    return None if any(one.score is None for one in found) else found


def _read(row: dict[str, Any], labels: Labels, shape: tuple[int, ...]) -> Detection:
    name, score, box = row["class"], row["score"], row.get("box")
    if name not in labels.names:
        raise ImageError.of("a detection is of another class", found=f"'{name}'", expected=", ".join(labels.names))
    if score is not None and not math.isfinite(score):
        raise ValueError(f"a score of {score}")
    return Detection(labels.names.index(name), score, Rle.of_string(row["counts"], shape), None if box is None else tuple(map(float, box)))
