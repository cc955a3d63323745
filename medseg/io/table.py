"""Objects of predictions as tables, one for each case and one for all of a call."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import ClassVar, final

from medseg.dataset import CaseFiles
from medseg.errors import Problem
from medseg.io.exports import TABLE, Export, Result
from medseg.io.found import Findings, Found
from medseg.io.images import read_header
from medseg.record import write_text

ALL = Path("objects.csv")
FOLDER = "objects"


@final
class Table(Export):
    """`objects/<id>.csv`, and `objects.csv` with the rows of all cases.

    Columns: case; number of the object, its value in a label map of `numbers`, empty for a class without objects; class; score from 0 to 1;
    voxels; volume in mm3, in 2D area in mm2;
    centroid in mm (LPS) and in voxels from 0 on, as the file counts them; box, first voxel and one past the last. What a picture cannot say,
    which lies nowhere in the world, is empty.
    """

    name: ClassVar[str] = TABLE
    summary: ClassVar[str] = "a table (CSV) of objects: class, score, volume, centroid, box; one for each case and one for all"

    def targets(self, files: CaseFiles, probabilities: bool) -> tuple[Path, ...]:
        """See `Export.targets`."""
        return (Path(FOLDER, f"{files.id}.csv"),)

    def problems(self, files: CaseFiles) -> tuple[Problem, ...]:
        """See `Export.problems`."""
        return ()

    def write(self, result: Result, out: Path) -> None:
        """See `Export.write`."""
        spaced = read_header(result.files.images[0]).native.spaced
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns(result.grid.ndim))
        writer.writerows(_rows(result, spaced))
        write_text(out / self.targets(result.files, False)[0], text.getvalue())

    @property
    def collected(self) -> tuple[Path, ...]:
        """See `Export.collected`."""
        return (ALL,)

    def collect(self, written: Sequence[tuple[Path, ...]], out: Path) -> None:
        """See `Export.collect`."""
        texts = [(out / files[0]).read_text(encoding="utf-8") for files in written]
        heads = [text.partition("\n")[0] for text in texts[:1]]
        write_text(out / ALL, "".join([f"{heads[0]}\n" if heads else "", *(text.partition("\n")[2] for text in texts)]))


def columns(ndim: int) -> list[str]:
    """The first row."""
    axes = "xyz"[:ndim]
    named = [*(f"{a}_mm" for a in axes), *axes, *(f"{a}_min" for a in axes), *(f"{a}_max" for a in axes)]
    return ["case", "number", "class", "score", "voxels", "volume_mm3" if ndim == 3 else "area_mm2", *named]


def _rows(result: Result, spaced: bool) -> Iterator[list[object]]:
    findings = Findings.of(result)
    for one in findings.found:
        yield _row(result, findings, one, spaced)


def _row(result: Result, findings: Findings, one: Found, spaced: bool) -> list[object]:
    grid = result.grid
    centre = findings.centre(one)
    world = [_short(v) for v in grid.world(centre)] if spaced else [""] * grid.ndim
    box = one.box[::-1]
    return [
        result.files.id,
        one.number or "",
        result.labels.names[one.index],
        "" if one.score is None else _short(one.score),
        one.voxels,
        _short(one.voxels * prod(grid.spacing)) if spaced else "",
        *world,
        *(_short(v) for v in centre[::-1]),
        *(axis.start for axis in box),
        *(axis.stop for axis in box),
    ]


def _short(value: float) -> str:
    return f"{float(value):.6g}"
