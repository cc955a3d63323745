"""Predicted objects as COCO has them: a list of results (`[{image_id, category_id, segmentation, score}]`), or a whole file with images and
categories, as `medseg predict --format coco` writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.errors import DatasetError, ImageError
from medseg.io.coco.annotations import Check, Picture, no_json
from medseg.io.coco.masks import corners, is_id, mask_of, no_mask
from medseg.io.detections import Detection


@dataclass(frozen=True)
class Results:
    """A file that has been parsed; its entries are looked at by `detections`.

    Attributes:
        images: id -> file name; None of a list of results, whose ids are those of the file that annotates the images.
        categories: id -> name, likewise.
        entries: the objects as JSON.
    """

    path: Path
    images: dict[int, str] | None
    categories: dict[int, str] | None
    entries: list[Any] = field(repr=False)

    @property
    def ids(self) -> set[int]:
        """Of images for which there is a result."""
        named = (one.get("image_id") for one in self.entries if isinstance(one, dict))
        return {value for value in named if is_id(value)}


def read_results(path: Path) -> Results:
    """Parse a file of predicted objects. Raises DatasetError where it holds none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DatasetError.of("cannot be read", where=str(path), found=error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(no_json(path, error)) from None
    if isinstance(data, list):
        return Results(path, None, None, data)
    lists = {key: data.get(key) if isinstance(data, dict) else None for key in ("images", "categories", "annotations")}
    if not all(isinstance(one, list) for one in lists.values()):
        cases = isinstance(data, dict) and "cases" in data
        raise DatasetError.of(
            "holds no predicted objects",
            where=str(path),
            found=f"keys {', '.join(map(str, list(data)[:8]))}" if isinstance(data, dict) else type(data).__name__,
            expected="a list of results, or lists 'images', 'categories' and 'annotations'",
            fix=f"This is medseg's own record of predictions: pass the folder {path.parent}, or predict with --format coco."
            if cases
            else "",
        )
    check = Check(path)
    names: dict[str, dict[int, str]] = {}
    for key, name in (("images", "file_name"), ("categories", "name")):
        found = names.setdefault(key, {})
        for one in lists[key] or ():
            if not check.is_object(one, key):
                continue
            if not is_id(one.get("id")) or not isinstance(one.get(name), str) or one["id"] in found:
                check.add(f"entries of '{key}' without an id of their own, or without '{name}'", repr(one)[:60])
            else:
                found[one["id"]] = one[name]
    if check.problems:
        raise DatasetError(check.problems)
    return Results(path, names["images"], names["categories"], lists["annotations"] or [])


def detections(
    results: Results, pictures: Mapping[int, Picture], classes: Mapping[int, int | None], check: Check, told: Mapping[str, str]
) -> dict[int, list[Detection]]:
    """Image id -> detections, in the order of the file; what is wrong goes to `check`.

    Args:
        pictures: id -> image with its size, of those that are scored.
        classes: category id -> index of its class; None leaves its results out.
        told: what is expected of `image` and `category` ids, for errors.
    """
    found: dict[int, list[Detection]] = {identity: [] for identity in pictures}
    for place, one in enumerate(results.entries):
        if not check.is_object(one, "results"):
            continue
        image, category, score = one.get("image_id"), one.get("category_id"), one.get("score")
        name = f"result {place}"
        known = is_id(image) and image in pictures
        if not known:
            check.add("results of unknown images", f"{name} (image {image!r})", told["image"])
        listed = is_id(category) and category in classes
        if not listed:
            check.add("results of unknown categories", f"{name} (category {category!r})", told["category"])
        scored = isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score)
        if not scored:
            check.add("results without a score", f"{name} ({score!r})", "a number, higher where the model is surer")
        if "segmentation" not in one:
            check.add("results without a mask", name, "'segmentation': run lengths or polygons", "Boxes alone are not scored.")
            continue
        if not known:
            continue
        picture = pictures[image]
        if wrong := no_mask(one["segmentation"], picture.shape):
            check.add(wrong[0].replace("annotations", "results"), f"{name} of '{picture.file}'{wrong[1]}", wrong[2])
        else:
            try:
                mask = mask_of(one["segmentation"], picture.shape)
            except ImageError as error:
                for p in error.problems:
                    check.add(p.what, f"{name} of '{picture.file}' ({p.found})", p.expected)
            else:
                if listed and scored and (index := classes[category]) is not None:
                    found[image].append(Detection(index, float(score), mask, corners(one.get("bbox"))))
    return found
