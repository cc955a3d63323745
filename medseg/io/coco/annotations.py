"""COCO's JSON of instances and of panoptic segments (Lin et al. 2014, arXiv:1405.0312; Kirillov et al. 2019, arXiv:1801.00868).

One file holds `images` (id, file_name, width, height), `categories` (id, name, in panoptic files `isthing`) and `annotations`: of instances
one for each object, of panoptic segments one for each image, whose PNG lies in the folder that has the name of the file without `.json`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from medseg.errors import DatasetError, Problem
from medseg.io.coco.masks import is_id, no_mask
from medseg.io.coco.scanning import Place, elements, scan

ANNOTATIONS = "annotations"
Kind = Literal["instances", "panoptic", "images"]
PALETTE = 254  # class values up to here fit into one byte, with one more for voxels without annotation
MOST_CATEGORIES = 2**15 - 2  # class values that codes of objects have room for
SEGMENTS = 2**24 - 1  # ids that three bytes of a pixel hold
MOST_PIXELS = 2**31 - 1  # of an image
SHOWN = 5


@dataclass(frozen=True)
class Category:
    """A category; `thing` where its voxels are separate objects."""

    id: int
    name: str
    thing: bool


@dataclass(frozen=True)
class Picture:
    """An image as the file tells of it; `file` is its name, which may have folders."""

    id: int
    file: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class Annotations:
    """A file that has been read and is sound, apart from masks, which are looked at image by image.

    Attributes:
        path: the JSON file.
        kind: `images` where nothing is annotated.
        categories: by id.
        pictures: by id.
        entries: image id -> its annotations as JSON: as objects in memory they take several times as much (see `of`).
        annotated: ids of categories that occur.
        crowded: whether areas are annotated as crowds.
        licence: empty where there is none, or where images have several.
    """

    path: Path
    kind: Kind
    categories: dict[int, Category]
    pictures: dict[int, Picture]
    entries: dict[int, bytes] = field(repr=False)
    annotated: frozenset[int]
    crowded: bool
    licence: str

    def of(self, picture: Picture) -> list[Mapping[str, Any]]:
        """The annotations of an image, as in the file: those of objects, or the one of its segments."""
        found: list[Mapping[str, Any]] = json.loads(self.entries.get(picture.id, b"[]"))
        return found

    @property
    def values(self) -> dict[int, int]:
        """Category id -> class value: the id itself where all of them fit into a byte, else 1, 2, ... in the order of ids."""
        ids = sorted(self.categories)
        return {i: i for i in ids} if ids and ids[0] > 0 and ids[-1] <= PALETTE else {i: k for k, i in enumerate(ids, 1)}

    @property
    def ignore(self) -> int:
        """The value of voxels that nobody annotated: crowds, and what is void."""
        return max(self.values.values(), default=0) + 1

    @property
    def maps(self) -> Path:
        """The folder of panoptic PNG files."""
        return self.path.with_suffix("")


def coco_files(root: Path) -> tuple[Path, ...]:
    """The COCO files of a folder: in it, and in the folders directly in it; what lies in `panoptic/` beside `panoptic.json` is a part of that."""
    places = [root, *(p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".") and not is_part(p))]
    files = [p for place in places for p in sorted(place.glob("*.json")) if not p.name.startswith(".") and p.is_file()]
    return tuple(p for p in files if looks_like_coco(p))


def is_part(folder: Path) -> bool:
    """Whether a folder holds what belongs to a JSON file of its name beside it."""
    return folder.with_name(f"{folder.name}.json").is_file()


def looks_like_coco(path: Path) -> bool:
    """Whether a file's text has the keys of COCO, be it sound JSON or not; not parsed, because it may be large."""
    try:
        text = path.read_bytes()
    except OSError:
        return False
    return b'"images"' in text and b'"file_name"' in text and (b'"annotations"' in text or b'"categories"' in text)


def failed_files(root: Path) -> list[Problem]:
    """JSON files in a folder, and in the folders directly in it, that may have been meant as COCO's: why they are none."""
    problems = []
    for place in (root, *(p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith("."))):
        for path in sorted(p for p in place.glob("*.json") if p.is_file() and not p.name.startswith(".")):
            try:
                data = json.loads(path.read_text(encoding="utf-8-sig"))
            except OSError as error:
                problems.append(Problem("cannot be read", str(path), error.strerror or str(error)))
            except (ValueError, RecursionError) as error:
                problems.append(no_json(path, error))
            else:
                if isinstance(data, list) and data and all(isinstance(one, dict) and "image_id" in one for one in data):
                    fix = "Take the file with the annotations; results are for evaluation."
                    problems.append(
                        Problem("is a list of results, and no dataset", str(path), f"{len(data)} entries", "{'images': ..., ...}", fix)
                    )
    return problems


def no_json(path: Path, error: Exception) -> Problem:
    """What is told of a file that cannot be parsed."""
    return Problem("is not valid JSON", str(path), str(error), fix="Export or download it again; it may be truncated.")


def read_annotations(path: Path) -> Annotations:
    """Read and check a file; the last ones are remembered as long as they do not change.

    Raises:
        DatasetError: it cannot be read, is no such JSON, or contradicts itself; all problems at once.
    """
    try:
        seen = path.stat()
    except OSError as error:
        raise DatasetError.of("cannot be read", where=str(path), found=error.strerror or str(error)) from None
    return _read(path, seen.st_mtime_ns, seen.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, modified: int, size: int) -> Annotations:
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = _First(Check(path))
        data, places = scan(text, ANNOTATIONS, first.see)
    except OSError as error:
        raise DatasetError.of("cannot be read", where=str(path), found=error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:  # of JSON, its encoding, numbers of very many digits, and nesting
        raise DatasetError(no_json(path, error)) from None
    lists = [key for key in ("images", "categories") if isinstance(data, dict) and isinstance(data.get(key), list)]
    strange = [key for key in ("categories", ANNOTATIONS) if isinstance(data, dict) and key in data and key not in lists]
    if "images" not in lists or (places is not None and "categories" not in lists) or strange:
        keys = [*data, *([] if places is None else [ANNOTATIONS])] if isinstance(data, dict) else []
        found = f"keys {', '.join(map(str, keys[:8]))}" if isinstance(data, dict) else type(data).__name__
        raise DatasetError.of("is no COCO file", where=str(path), found=found, expected="lists 'images', 'categories' and 'annotations'")
    check = first.check
    places = [place for place, good in zip(places or (), first.sound, strict=True) if good]
    kind = first.kind
    categories = _categories(data.get("categories", ()), kind, check)
    pictures = _pictures(data["images"], check)
    entries, annotated, crowded = _entries(text, places, kind, categories, pictures, check)
    if check.problems:
        raise DatasetError(check.problems)
    return Annotations(
        path=path,
        kind=kind,
        categories=categories,
        pictures=pictures,
        entries={image: f"[{','.join(text[start:stop] for start, stop in several)}]".encode() for image, several in entries.items()},
        annotated=frozenset(annotated),
        crowded=crowded,
        licence=_licence(data),
    )


class Check:
    """Problems of a file, those of one kind together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[tuple[str, str, str], list[str]] = {}

    def add(self, what: str, item: object, expected: str = "", fix: str = "") -> None:
        """Note a problem of one item."""
        self._found.setdefault((what, expected, fix), []).append(str(item))

    def is_object(self, entry: object, where: str) -> bool:
        """Whether an entry of a list is a JSON object."""
        if isinstance(entry, dict):
            return True
        self.add(f"entries of '{where}' are no objects", repr(entry)[:40], "{...}")
        return False

    @property
    def problems(self) -> list[Problem]:
        """What was noted."""
        return [
            Problem(what, str(self.path), shown(items), expected, fix)
            for (what, expected, fix), items in self._found.items()
        ]  # fmt: skip


def shown(items: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(items[:SHOWN]) + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")


class _First:
    """What is found out of annotations when they are first seen: which are JSON objects at all, and of what kind they are."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.sound: list[bool] = []
        self._keys: list[str] | None = None
        self._panoptic = self._masks = False

    def see(self, one: Any) -> None:
        """The next one."""
        self.sound.append(self.check.is_object(one, ANNOTATIONS))
        if self.sound[-1]:
            self._keys = self._keys or list(one)
            self._panoptic, self._masks = self._panoptic or "segments_info" in one, self._masks or "segmentation" in one

    @property
    def kind(self) -> Kind:
        """That of all of them. Raises DatasetError."""
        if not any(self.sound):
            return "images"
        if self._panoptic == self._masks:
            raise DatasetError.of(
                "holds no masks" if not self._panoptic else "holds objects and segments in one list",
                where=str(self.check.path),
                found=f"annotations with {', '.join((self._keys or [])[:8])}",
                expected="'segmentation' in each annotation (instances), or 'segments_info' (panoptic)",
                fix="Captions, boxes and keypoints alone cannot be learnt from.",
            )
        return "panoptic" if self._panoptic else "instances"


def _twice(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _categories(given: Iterable[Any], kind: Kind, check: Check) -> dict[int, Category]:
    found: list[Category] = []
    for one in given:
        if not check.is_object(one, "categories"):
            continue
        identity, name, thing = one.get("id"), one.get("name"), one.get("isthing")
        if not is_id(identity):
            check.add("category ids are no whole numbers from 0 on", repr(identity))
        elif not isinstance(name, str) or not name.strip() or not _is_text(name.strip()):
            check.add("categories without a name", f"id {identity}" + (f" ({name!r})" if isinstance(name, str) and name.strip() else ""))
        elif kind == "panoptic" and thing not in (0, 1):
            check.add("categories that do not say whether they are things", f"'{name}'", "'isthing' of 0 or 1")
        else:
            found.append(Category(identity, name.strip(), kind != "panoptic" or bool(thing)))
    for what, values in (("id", [c.id for c in found]), ("name", [c.name for c in found])):
        for value in _twice(values):
            check.add(f"several categories have one {what}", value, fix="Merge or rename them.")
    if len(found) > MOST_CATEGORIES:
        check.add("too many categories", len(found), f"at most {MOST_CATEGORIES}")
    return {one.id: one for one in found}


def _pictures(given: Iterable[Any], check: Check) -> dict[int, Picture]:
    found: list[Picture] = []
    for one in given:
        if not check.is_object(one, "images"):
            continue
        identity, name, width, height = (one.get(key) for key in ("id", "file_name", "width", "height"))
        told = f"'{name}'" if isinstance(name, str) else f"id {identity!r}"
        if not is_id(identity):
            check.add("image ids are no whole numbers from 0 on", f"{identity!r} ({told})")
        elif not isinstance(name, str) or not name:
            check.add("images without a 'file_name'", told)
        elif not _is_text(name):
            check.add("file names hold what no name can", ascii(name))
        elif (file := _inside(name)) is None:
            check.add("file names lead out of the folder of images", told, "names, or names below it", "Correct 'file_name'.")
        elif not all(is_id(n) and n for n in (width, height)):
            check.add("images without a size", f"{told} ({width!r} x {height!r})", "'width' and 'height' in pixels")
        elif height * width > MOST_PIXELS:
            check.add(
                "images are too large", f"{told} ({width} x {height})", f"at most {MOST_PIXELS} pixels", "Correct 'width' and 'height'."
            )
        else:
            found.append(Picture(identity, file, (height, width)))
    for value in _twice(p.id for p in found):
        check.add("several images have one id", f"{value} ({shown([repr(p.file) for p in found if p.id == value])})")
    for name in _twice(p.file for p in found):
        check.add("images that are listed several times", f"'{name}' (ids {shown([str(p.id) for p in found if p.file == name])})")
    return {one.id: one for one in found}


def _is_text(name: str) -> bool:
    """Whether a name can be shown and be one of a file: halves of surrogate pairs and the character 0 cannot."""
    return not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in name)


def _inside(name: str) -> str | None:
    """A file name with `/`, None for one that leads out of its folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.name or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return None
    return str(path)


def _entries(
    text: str, places: list[Place], kind: Kind, categories: Mapping[int, Any], pictures: Mapping[int, Picture], check: Check
) -> tuple[dict[int, list[Place]], set[int], bool]:
    """Image id -> where its annotations are, the ids of categories that occur, and whether there are crowds."""
    entries: dict[int, list[Place]] = {}
    numbers: list[int] = []
    annotated: set[int] = set()
    crowded = False
    for place, one in enumerate(elements(text, places)):
        image = one.get("image_id")
        told = f"image {image!r}" if kind == "panoptic" else f"annotation {one['id']!r}" if "id" in one else f"annotation at place {place}"
        if not is_id(image) or image not in pictures:
            check.add("annotations of images that are not listed", f"{told} (image {image!r})")
            continue
        entries.setdefault(image, []).append(places[place])
        if kind == "panoptic":
            _check_segments(one, pictures[image], categories, check)
            segments = one.get("segments_info")
            segments = [s for s in segments if isinstance(s, dict)] if isinstance(segments, list) else []
            annotated.update(s["category_id"] for s in segments if is_id(s.get("category_id")))
            crowded = crowded or any(s.get("iscrowd", 0) for s in segments)
            continue
        annotated |= {category} if is_id(category := one.get("category_id")) else set()
        crowded = crowded or bool(one.get("iscrowd", 0))
        if is_id(one.get("id")):
            numbers.append(one["id"])
        elif "id" in one:
            check.add("annotation ids are no whole numbers from 0 on", repr(one["id"]))
        _check_category(one, categories, f"{told} (category {one.get('category_id')!r})", check)
        wrong = no_mask(one.get("segmentation"), pictures[image].shape)
        if wrong:
            check.add(wrong[0], f"{told} of '{pictures[image].file}'{wrong[1]}", wrong[2])
    for value in _twice(numbers):
        check.add("several annotations have one id", value, fix="Number them anew.")
    if kind == "panoptic":
        for image, several in entries.items():
            if len(several) > 1:
                check.add("images with several annotations", f"'{pictures[image].file}'", "one with all segments")
    return entries, annotated, crowded


def _check_category(one: Mapping[str, Any], categories: Mapping[int, Any], told: str, check: Check) -> None:
    category = one.get("category_id")
    if not is_id(category) or category not in categories:
        check.add("annotations of categories that are not listed", told, fix="Add the category, or remove them.")
    if one.get("iscrowd", 0) not in (0, 1):
        check.add("'iscrowd' is neither 0 nor 1", told)


def _check_segments(one: Mapping[str, Any], picture: Picture, categories: Mapping[int, Any], check: Check) -> None:
    name, segments = one.get("file_name"), one.get("segments_info")
    if not isinstance(name, str) or not _is_text(name) or _inside(name) is None:
        check.add("annotations without a PNG file", f"'{picture.file}' ({name!r})", "'file_name' within the folder of the JSON's name")
    if not isinstance(segments, list) or not all(isinstance(s, dict) for s in segments):
        check.add("annotations without a list of segments", f"'{picture.file}'", "'segments_info'")
        return
    for segment in segments:
        identity = segment.get("id")
        if not is_id(identity) or not 0 < identity <= SEGMENTS:
            check.add("segment ids that no pixel can have", f"{identity!r} of '{picture.file}'", f"1 to {SEGMENTS}; 0 is void")
        told = f"segment {identity!r} of '{picture.file}' (category {segment.get('category_id')!r})"
        _check_category(segment, categories, told, check)
    for identity in _twice(s.get("id") for s in segments if is_id(s.get("id"))):
        check.add("several segments of an image have one id", f"{identity} of '{picture.file}'")


def _licence(data: Mapping[str, Any]) -> str:
    licences = data.get("licenses")
    found = [one.get("name", "") for one in licences if isinstance(one, dict)] if isinstance(licences, list) else []
    names = {name for name in found if isinstance(name, str)}
    return names.pop() if len(names) == 1 else ""
