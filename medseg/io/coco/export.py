"""Predictions as COCO files: instances with run lengths, and panoptic segments.

Files name images by their file names alone, without folders. Ids of images are those of the COCO file that annotates them, where there is one,
else 1, 2, ...; ids of categories are class values.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from PIL import Image as Pillow

from medseg.dataset import CaseFiles
from medseg.errors import Problem
from medseg.io.coco.labels import SUFFIX, image_id
from medseg.io.detections import detections_of
from medseg.io.exports import Export, Result
from medseg.io.format import numbers
from medseg.io.found import Findings
from medseg.io.images import read_header
from medseg.io.raster import coloured
from medseg.record import write_atomic, write_text
from medseg.scratch import release, row_slabs


class _Coco(Export):
    """One JSON file for each case, and one for all of them."""

    def problems(self, files: CaseFiles) -> tuple[Problem, ...]:
        """COCO is about images in 2D."""
        shape = read_header(files.images[0]).shape
        if len(shape) == 2:
            return ()
        return (
            Problem(
                "a volume cannot be written as COCO",
                f"case '{files.id}', {files.images[0]}",
                f"shape {numbers(shape)}",
                "an image in 2D",
                f"Leave {self.name} out of --format; the table lists objects of volumes.",
            ),
        )

    @property
    def collected(self) -> tuple[Path, ...]:
        """See `Export.collected`."""
        return (Path(f"{self.name}.json"),)

    def collect(self, written: Sequence[tuple[Path, ...]], out: Path) -> None:
        """See `Export.collect`; ids of images that several cases share are replaced."""
        parts = [json.loads((out / files[0]).read_text(encoding="utf-8")) for files in written]
        ids = [part["images"][0]["id"] for part in parts]
        if len(set(ids)) < len(ids):
            ids = list(range(1, len(ids) + 1))
        whole: dict[str, Any] = {
            "info": parts[0]["info"] if parts else {},
            "images": [],
            "categories": parts[0]["categories"] if parts else [],
            "annotations": [],
        }
        for identity, part in zip(ids, parts, strict=True):
            whole["images"].append({**part["images"][0], "id": identity})
            for one in part["annotations"]:
                numbered = {"id": len(whole["annotations"]) + 1} if "id" in one else {}
                whole["annotations"].append({**one, **numbered, "image_id": identity})
        write_text(out / self.collected[0], json.dumps(whole, ensure_ascii=False) + "\n")


@final
class Instances(_Coco):
    """`coco/<id>.json`, and `coco.json` of all cases: all detections, which may overlap; where there are no things, each class is one object."""

    name: ClassVar[str] = "coco"
    summary: ClassVar[str] = (
        "COCO instances (JSON, 2D): run lengths, box, area and score of each object that was found, also of unsure ones; one for each case and one "
        "for all"
    )

    def targets(self, files: CaseFiles, probabilities: bool) -> tuple[Path, ...]:
        """See `Export.targets`."""
        return (Path("coco", f"{files.id}.json"),)

    def write(self, result: Result, out: Path) -> None:
        """See `Export.write`."""
        part = _about(result)
        image = part["images"][0]["id"]
        for number, one in enumerate(detections_of(result), 1):
            rle = one.mask
            told = _told(result, one.index, rle.area, rle.box.astype(int).tolist(), one.score)
            segmentation = {"size": list(rle.shape), "counts": rle.to_string()}
            part["annotations"].append({"id": number, "image_id": image, **told, "segmentation": segmentation})
        write_text(out / self.targets(result.files, False)[0], json.dumps(part, ensure_ascii=False) + "\n")


@final
class Panoptic(_Coco):
    """`panoptic/<id>.json` and `panoptic/<id>.png` (id = R + 256 G + 65536 B, 0 where nothing was found), and `panoptic.json` of all cases."""

    name: ClassVar[str] = "panoptic"
    summary: ClassVar[str] = "COCO panoptic (PNG and JSON, 2D): every pixel's object or class; one for each case and one JSON for all"

    def targets(self, files: CaseFiles, probabilities: bool) -> tuple[Path, ...]:
        """See `Export.targets`."""
        return Path("panoptic", f"{files.id}.json"), Path("panoptic", f"{files.id}.png")

    def write(self, result: Result, out: Path) -> None:
        """See `Export.write`; of classes that overlap a pixel shows the last."""
        findings = Findings.of(result)
        owners = np.zeros(len(findings.values), np.int32)
        for identity, one in enumerate(findings.found, 1):
            owners[list(one.places)] = identity
        areas = np.zeros(len(findings.found) + 1, np.int64)
        height, width = findings.map.shape
        colours = np.ascontiguousarray(np.moveaxis(coloured(np.arange(len(areas), dtype=np.int32)), 0, -1))
        shown = Pillow.new("RGB", (width, height))
        for rows in row_slabs((height, width)):
            ids = owners[findings.map[rows]]
            areas += np.bincount(ids.ravel(), minlength=len(areas))
            shown.paste(Pillow.fromarray(colours[ids]), (0, rows.start))
            release(findings.map)
        part = _about(result)
        segments = [
            {
                "id": identity,
                **_told(result, one.index, int(areas[identity]), [[s.start for s in one.box], [s.stop for s in one.box]], one.score),
            }
            for identity, one in enumerate(findings.found, 1)
            if areas[identity]
        ]
        file, picture = self.targets(result.files, False)
        part["annotations"].append({"image_id": part["images"][0]["id"], "file_name": picture.name, "segments_info": segments})
        write_atomic(out / picture, lambda temporary: shown.save(temporary))
        write_text(out / file, json.dumps(part, ensure_ascii=False) + "\n")


def _about(result: Result) -> dict[str, Any]:
    """A file without annotations."""
    labels, label = result.labels, result.files.label
    known = label is not None and label.name.endswith(SUFFIX)
    height, width = result.grid.shape
    return {
        "info": {"description": f"{result.maker.model}, medseg {result.maker.version}"},
        "images": [
            {
                "id": image_id(label) if known and label is not None else 1,
                "file_name": result.files.images[0].name,
                "height": height,
                "width": width,
            }
        ],
        "categories": [
            {"id": value, "name": name, "isthing": int(not labels.things or name in labels.things)}
            for name, value in zip(labels.names, labels.written, strict=True)
        ],
        "annotations": [],
    }


def _told(result: Result, index: int, area: int, box: list[list[int]], score: float | None) -> dict[str, Any]:
    """What both kinds of files say of an object; `box` is its lower and its upper corner."""
    (top, left), (bottom, right) = box
    told: dict[str, Any] = {
        "category_id": result.labels.written[index],
        "area": area,
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
    }
    if score is not None:
        told["score"] = round(score, 6)
    return told
