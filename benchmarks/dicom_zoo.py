"""Reads DICOM of many vendors, encodings and kinds of damage, and compares what has a published conversion beside it.

    python benchmarks/dicom_zoo.py --zoo PATH [--sts PATH]

Under `--zoo` every file that begins a name with `X` and ends it in `_reference.nii[.gz]` is compared with the folder `X`: values, and
affine, after both are brought to one orientation. Series and their masks in `--sts` (`STS_xxx/CT_image.nii.gz`, ...) are compared with
`rtstruct_ct_pet_mr/STS_xxx/CT/image`. Everything else is only read: an item is `read`, `refused` with its reasons, or of no image.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hardware import write

from medseg.commands.console import table
from medseg.errors import MedsegError
from medseg.io.dicom.reading.reader import scan
from medseg.io.dicom.volume import Volume
from medseg.io.images import Image, read_image

SERIES = ("rtstruct_ct_pet_mr", "mr_", "ct_", "seg_dcmqi")
"""Folders below which every folder with files is one item; below others, every file is."""


@dataclass(frozen=True)
class Row:
    """What came of an item; seconds of one CPU."""

    item: str
    outcome: str
    values: float | None = None
    affine: float | None = None
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--sts", type=Path)
    arguments = parser.parse_args()
    rows = [_item(path, reference, arguments.zoo) for path, reference in _items(arguments.zoo, arguments.sts)]
    table(
        "DICOM zoo",
        ("item", "outcome", "values", "affine mm", "CPU s"),
        [(r.item, r.outcome[:150], _shown(r.values), _shown(r.affine), f"{r.seconds:.2f}") for r in rows],
    )
    compared = [r for r in rows if r.values is not None and r.affine is not None]
    summary = {
        "items": len(rows),
        "read": sum(r.outcome.startswith("read") for r in rows),
        "refused": sum(r.outcome.startswith("refused") for r in rows),
        "crashed": sum(r.outcome.startswith("crashed") for r in rows),
        "compared": len(compared),
        "largest difference of values": max((r.values or 0 for r in compared), default=0),
        "largest difference of affine (mm)": max((r.affine or 0 for r in compared), default=0),
        "slowest (s of CPU)": max(r.seconds for r in rows),
    }
    print(summary)
    write("dicom_zoo", {"summary": summary, "items": [r.__dict__ for r in rows]}, "every item of the zoo; see the script")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _items(zoo: Path, sts: Path | None) -> Iterator[tuple[Path, Path | None]]:
    for part in sorted(path for path in zoo.iterdir() if path.is_dir()):
        if part.name.startswith(SERIES):
            folders = sorted(
                {file.parent for file in part.rglob("*") if file.is_file() and file.suffix not in (".gz", ".nrrd", ".md", ".txt")}
            )
            for folder in folders:
                yield folder, _published(folder, part, sts)
        else:
            for path in sorted(part.iterdir()):
                if path.is_dir() or path.suffix.lower() not in (".gz", ".nii", ".json", ".txt", ".md", ".csv", ".jpeg", ".nrrd"):
                    beside = [path.with_name(f"{path.name}_reference{suffix}") for suffix in (".nii.gz", ".nii")]
                    yield path, next((file for file in beside if file.is_file()), None)


def _published(folder: Path, part: Path, sts: Path | None) -> Path | None:
    inner = folder.relative_to(part).parts
    if sts is None or part.name != "rtstruct_ct_pet_mr" or len(inner) != 3 or inner[2] != "image":
        return None
    file = sts / inner[0] / f"{inner[1]}_image.nii.gz"
    return file if file.is_file() else None


def _item(path: Path, reference: Path | None, zoo: Path) -> Row:
    name, start = str(path.relative_to(zoo)), time.process_time()
    try:
        found = scan(path)
        problems = [str(p) for other in found.others for p in other.problems] + [str(p) for p in found.problems]
        texts: list[str] = []
        images: list[tuple[Volume, Image]] = []
        for volume in found.volumes:
            try:
                images.append((volume, read_image(volume.path)))
            except MedsegError as error:
                problems += [str(problem) for problem in error.problems]
        seconds = time.process_time() - start
        texts += [f"read {' x '.join(map(str, image.array.shape))} {image.array.dtype}" for _, image in images]
        texts += [str(warning) for volume, _ in images for warning in volume.warnings]
        texts += [f"{annotation.kind} of {len(annotation.names)}" for annotation in found.annotations]
        texts += [other.kind for other in found.others if not other.problems]
        if found.foreign and not (texts or problems):
            texts.append(f"{found.foreign} files that are no DICOM")
        outcome = "; ".join([*texts, *(f"refused: {problem}" for problem in problems)]).replace(str(zoo), "")
        if reference is None:
            return Row(name, outcome, seconds=seconds)
        values, affine = _difference([image for _, image in images], read_image(reference))
        return Row(name, outcome, values, affine, seconds)
    except Exception as error:  # a crash is what this looks for
        return Row(name, f"crashed: {type(error).__name__}: {error}", seconds=time.process_time() - start)


def _difference(images: list[Image], reference: Image) -> tuple[float, float]:
    """The smallest largest difference of values and of affine elements between any volume and the reference; inf for other shapes."""
    best = (float("inf"), float("inf"))
    step = reference.grid.canonical()
    expected, grid = step.apply(reference.array).astype(np.float64), step.grid(reference.grid)
    for image in images:
        turn = image.grid.canonical()
        array, own = turn.apply(image.array), turn.grid(image.grid)
        if array.shape == expected.shape:
            found = (float(np.abs(array - expected).max()), float(np.abs(own.affine - grid.affine).max()))
            best = min(best, found)
    return best


if __name__ == "__main__":
    main()
