"""COCO datasets of a few pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHAPE = (6, 8)  # rows, columns
CATEGORIES = [{"id": 1, "name": "cell"}, {"id": 3, "name": "gland"}, {"id": 4, "name": "never seen"}]


def pictures(folder: Path, *names: str, shape: tuple[int, int] = SHAPE) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.arange(np.prod(shape)).reshape(shape) * 5 % 251).astype(np.uint8)).save(folder / name)


def square(y: int, x: int, size: int = 2) -> list[list[float]]:
    """One polygon that covers `size` pixels along each axis from (y, x) on."""
    return [[x, y, x + size, y, x + size, y + size, x, y + size]]


def annotation(number: int, image: int, segmentation: Any, category: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0, **more}


def listed(*names: str, first: int = 1) -> list[dict[str, Any]]:
    return [{"id": i, "file_name": name, "height": SHAPE[0], "width": SHAPE[1]} for i, name in enumerate(names, first)]


def write(path: Path, images: Any, annotations: Any, categories: Any = CATEGORIES, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations, **more}))
    return path


def instances(root: Path) -> Path:
    """Two images, one of them without an object."""
    pictures(root / "images", "a.png", "b.png")
    return write(
        root / "annotations.json",
        listed("a.png", "b.png"),
        [annotation(7, 1, square(0, 0)), annotation(8, 1, square(3, 4), category=3)],
    )


THINGS = [{"id": 1, "name": "cell", "isthing": 1}, {"id": 2, "name": "tissue", "isthing": 0}]


def segments(root: Path, ids: np.ndarray, infos: list[dict[str, Any]], file: str = "a.png") -> Path:
    """One image with a panoptic map of these ids."""
    pictures(root / "images", "a.png", shape=ids.shape)  # type: ignore[arg-type]
    (root / "panoptic").mkdir()
    colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], -1).astype(np.uint8)
    Image.fromarray(colours).save(root / "panoptic" / "a.png")
    return write(root / "panoptic.json", listed("a.png"), [{"image_id": 1, "file_name": file, "segments_info": infos}], THINGS)
