"""Plain folders: `images/` and a folder of labels with the same file names, optionally described by `medseg.json`.

A label belongs to the image whose stem it has, or whose stem it begins with (`Image_01L_1stHO.png` for `Image_01L.jpg`). Several files
per case are channels by suffix (`_0000`, `_0001`). Classes that nobody declares are the values found in the labels; one value alone
(0/1 or 0/255 masks) is the class `foreground`. `imagesTs/`, `images_test/` or `test/` hold cases to predict only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from medseg.dataset import CaseFiles, Channel, Dataset, Labels, Modality
from medseg.errors import DatasetError, ImageError, PlanError, Problem
from medseg.io.images import image_stem, image_suffix, read_label
from medseg.io.layouts.base import Layout, LayoutOptions, make_channels, make_dataset, make_labels, read_json
from medseg.io.layouts.files import channel_gaps, channel_sets, image_files, missing_image, missing_label, usual_header
from medseg.record import Record

IMAGES = ("images", "imagesTr")
TESTS = ("imagesTs", "images_test", "test")
LABELS = re.compile(r"^(labels?|masks?|annotations?|ground_?truths?|seg|segmentations?|gt|targets?|semantic)([_-].*|Tr)?$", re.IGNORECASE)
PHOTOGRAPHS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MANY = 256  # more values than this are no classes but instances, or an image
EYE = re.compile(r"^(?P<patient>.*[0-9_-])(?P<side>[LR])$")


class Descriptor(Record):
    """`medseg.json`: what plain folders cannot say of themselves.

    Attributes:
        channels: names, or names with modalities, in order.
        classes: class name -> label values.
        order: for regions that overlap, the value written for each class.
        labels: name of the folder of labels.
        groups: regular expression whose first group, matched from the start of a case id, names the patient.
    """

    name: str = ""
    licence: str = ""
    channels: tuple[str | Channel, ...] | None = None
    classes: dict[str, tuple[int, ...]] | None = None
    ignore: int | None = None
    order: tuple[int, ...] | None = None
    labels: str | None = None
    groups: str | None = None


@final
class Folders(Layout):
    """`images/` and a folder of labels."""

    name: ClassVar[str] = "folders"
    task: ClassVar[str] = "semantic"
    domain: ClassVar[str] = "grid"
    looks_for: ClassVar[str] = "images/ and a folder of labels (labels*, masks*, annotations*, groundTruth*), without a dataset.json"

    def detect(self, root: Path) -> bool:
        """See `Layout.detect`."""
        described = read_json(root / "dataset.json")
        if described is not None and ("training" in described or "channel_names" in described):
            return False
        return _first(root, IMAGES) is not None

    def read(self, root: Path, options: LayoutOptions) -> Dataset:
        """See `Layout.read`."""
        descriptor = _descriptor(root)
        folder = _label_folder(root, options.labels or descriptor.labels)
        images = _first(root, IMAGES) or root / IMAGES[0]
        files = image_files(images)
        if not files:
            raise DatasetError.of("holds no image", where=str(images), expected="files in a format that can be read")
        suffixed, sets = channel_sets(files)
        ndim, in_file = usual_header([s[min(s)] for _, s in sets])
        count = max(len(s) for _, s in sets)
        if count == 1:
            count = in_file  # also where every name ends in _0000: colour images as nnU-Net names them
        if descriptor.channels is not None:
            count = len(descriptor.channels)
        problems: list[Problem] = []
        for case, found in sets:
            if suffixed and not (list(found) == [0] and in_file == count):
                problems += channel_gaps(case, found, count)
        tests = _first(root, TESTS)
        _, test_sets = channel_sets(image_files(tests)) if tests is not None else (False, [])
        labels, stray = _match([case for case, _ in sets], image_files(folder), [case for case, _ in test_sets], problems)
        groups = _groups(root, [case for case, _ in sets], descriptor.groups)
        cases = []
        for case, found in sets:
            # A label that is not there keeps its expected name, so that `verify` reports it with all other problems.
            label = labels.get(case) or folder / f"{case}{image_suffix(found[min(found)])}"
            cases.append(CaseFiles(id=case, images=tuple(found[c] for c in sorted(found)), label=label, group=groups[case]))
        if stray or problems:  # `verify`, which looks for the labels of images, is not reached
            ending = ("_0000" if suffixed else "") + image_suffix(files[0])
            problems += [missing_label(case) for case in cases if case.label is not None and not case.label.is_file()]
            problems += [missing_image(path, f"{images / image_stem(path)}{ending}, or an image as its name begins") for path in stray]
        if problems:
            raise DatasetError(problems)
        unlabelled = [CaseFiles(id=case, images=tuple(s[c] for c in sorted(s)), group=case) for case, s in test_sets]
        return make_dataset(
            root,
            name=descriptor.name or root.name,
            root=root,
            layout=self.name,
            task=self.task,
            domain=self.domain,
            ndim=ndim,
            channels=_channels(descriptor, options, count, image_suffix(files[0]).lower()),
            labels=_labels(root, descriptor, options, [c.label for c in cases if c.label is not None]),
            cases=tuple(cases),
            unlabelled=tuple(unlabelled),
            licence=descriptor.licence,
        )


def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _descriptor(root: Path) -> Descriptor:
    data = read_json(root / "medseg.json")
    if data is None:
        return Descriptor()
    try:
        return Descriptor.parse(data, str(root / "medseg.json"))
    except PlanError as error:
        raise DatasetError(error.problems) from None


def _label_folder(root: Path, name: str | None) -> Path:
    present = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in (*IMAGES, *TESTS))
    if name is not None:
        if not (root / name).is_dir():
            raise DatasetError.of(
                "the folder of labels does not exist",
                where=str(root / name),
                found=", ".join(present) or "no folder",
                fix="Check --labels.",
            )
        return root / name
    candidates = [folder for folder in present if LABELS.match(folder)]
    if len(candidates) == 1:
        return root / candidates[0]
    raise DatasetError.of(
        "several folders may hold the labels" if candidates else "no folder of labels",
        where=str(root),
        found=", ".join(candidates or present) or "no other folder",
        expected="one folder labels*, masks*, annotations* or groundTruth*",
        fix="Say which with --labels FOLDER." if present else "Add labels/ with one file per image.",
    )


def _match(
    cases: Sequence[str], files: Sequence[Path], tests: Sequence[str], problems: list[Problem]
) -> tuple[dict[str, Path], list[Path]]:
    """Case id to label file: a label is of the case that has its stem, else of the longest id that its stem begins with; and stray labels.

    Labels of `tests`, cases that are predicted only, may lie among the others.
    """
    known = {*cases, *tests}
    matched: dict[str, list[Path]] = {}
    exact: dict[str, list[Path]] = {}
    stray: list[Path] = []
    for path in files:
        stem = image_stem(path)
        if stem in known:
            exact.setdefault(stem, []).append(path)
            continue
        cuts = [i for i, c in enumerate(stem) if c in "_-. "]
        owner = next((stem[:cut] for cut in reversed(cuts) if stem[:cut] in known), None)
        if owner is not None:
            matched.setdefault(owner, []).append(path)
        else:
            stray.append(path)
    result: dict[str, Path] = {}
    for case in cases:
        found = [*exact.get(case, ()), *matched.get(case, ())]
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            problems.append(
                Problem(f"case '{case}' has several labels", str(found[0].parent), names, "one", "Keep one set of labels per folder.")
            )
        if found:
            result[case] = found[0]
    return result, sorted(stray)


def _groups(root: Path, cases: Sequence[str], pattern: str | None) -> dict[str, str]:
    """The patient of each case: by the descriptor's expression; else both sides (`01L`, `01R`) of a patient belong together."""
    if pattern is not None:
        where = f"{root / 'medseg.json'}, field 'groups'"
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise DatasetError.of("is not a regular expression", where=where, found=f"'{pattern}' ({error})") from None
        if expression.groups < 1:
            raise DatasetError.of("has no group in parentheses", where=where, found=f"'{pattern}'", expected="for example '([^_]+)_'")
        matches = {case: expression.match(case) for case in cases}
        missing = [case for case, match in matches.items() if match is None]
        if missing:
            raise DatasetError.of(
                "does not match every case", where=where, found=", ".join(missing[:5]), expected=f"a match of '{pattern}' from the start"
            )
        return {case: str(match[1]) for case, match in matches.items() if match is not None}
    sides = {case: EYE.match(case) for case in cases}
    if not all(sides.values()):
        return {case: case for case in cases}
    return {case: match["patient"].rstrip("_-") for case, match in sides.items() if match is not None}


def _channels(descriptor: Descriptor, options: LayoutOptions, count: int, suffix: str) -> tuple[Channel, ...]:
    fallback = Modality.gray if suffix in PHOTOGRAPHS else Modality.other
    if descriptor.channels is not None:
        named = make_channels(tuple(c if isinstance(c, str) else c.name for c in descriptor.channels), options, fallback)
        return tuple(n if isinstance(c, str) or options.modality else c for n, c in zip(named, descriptor.channels, strict=True))
    if suffix in PHOTOGRAPHS and count == 3:
        return make_channels(("red", "green", "blue"), options)
    if suffix in PHOTOGRAPHS and count == 1:
        return make_channels(("gray",), options)
    return make_channels(("image",) if count == 1 else tuple(f"channel {i}" for i in range(count)), options, fallback)


def _labels(root: Path, descriptor: Descriptor, options: LayoutOptions, files: Sequence[Path]) -> Labels:
    if options.classes is not None or descriptor.classes is not None:
        return make_labels(options, descriptor.classes or {}, root / "medseg.json", descriptor.ignore, descriptor.order)
    with ThreadPoolExecutor(4) as pool:
        values = sorted({v for found in pool.map(_values, files) for v in found} - {0, descriptor.ignore})
    if not values:
        raise DatasetError.of(
            "no label file has any foreground",
            where=str(files[0].parent),
            found=f"{len(files)} files, all missing, unreadable or 0",
            expected="values above 0",
            fix="Check the folder of labels, or name another with --labels FOLDER.",
        )
    if len(values) > MANY or values[0] < 0:
        raise DatasetError.of(
            "the labels hold too many values to be classes",
            where=str(files[0].parent),
            found=f"{len(values)} values from {values[0]} to {values[-1]}",
            expected=f"at most {MANY} classes with positive values",
            fix="Declare classes: --class NAME=1-9999, or 'classes' in medseg.json.",
        )
    classes = {"foreground": (values[0],)} if len(values) == 1 else {f"class {v}": (v,) for v in values}
    return make_labels(options, classes, root, descriptor.ignore)


def _values(path: Path) -> set[int]:
    try:
        return {int(v) for v in np.unique(read_label(path).array)}
    except ImageError:
        return set()  # `verify` says what is wrong with it
