"""Plain folders: `images/` and a folder of labels with the same file names, optionally described by `medseg.json`.

A label belongs to the image whose stem it has, or whose stem it begins with (`Image_01L_1stHO.png` for `Image_01L.jpg`). Several files
per case are channels by suffix (`_0000`, `_0001`). `imagesTs/`, `images_test/` or `test/` hold cases to predict only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final

from medseg.dataset import CaseFiles, Dataset
from medseg.errors import DatasetError, Problem
from medseg.io.coco.annotations import coco_files, failed_files
from medseg.io.images import SUFFIXES, image_stem, image_suffix
from medseg.io.layouts.base import Layout, LayoutOptions, is_described, make_dataset, refuse_reference
from medseg.io.layouts.descriptor import channels_in_order, classes_of, groups_of, read_descriptor
from medseg.io.layouts.files import channel_gaps, channel_sets, image_files, missing_image, missing_label, usual_header

IMAGES = ("images", "imagesTr")
TESTS = ("imagesTs", "images_test", "test")
LABELS = re.compile(r"^(labels?|masks?|annotations?|ground_?truths?|seg|segmentations?|gt|targets?|semantic)([_-].*|Tr)?$", re.IGNORECASE)


@final
class Folders(Layout):
    """`images/` and a folder of labels."""

    name: ClassVar[str] = "folders"
    task: ClassVar[str] = "semantic"
    domain: ClassVar[str] = "grid"
    looks_for: ClassVar[str] = (
        "images/ and a folder of labels (labels*, masks*, annotations*, groundTruth*), without a dataset.json or COCO's JSON"
    )

    def detect(self, root: Path) -> bool:
        """See `Layout.detect`."""
        return not is_described(root) and _first(root, IMAGES) is not None and not coco_files(root)

    def read(self, root: Path, options: LayoutOptions) -> Dataset:
        """See `Layout.read`."""
        descriptor = read_descriptor(root)
        refuse_reference(options.reference or descriptor.reference, root)
        folder = _label_folder(root, options.labels or descriptor.labels)
        images = _first(root, IMAGES) or root / IMAGES[0]
        files = image_files(images)
        if not files:
            raise DatasetError.of("holds no image", where=str(images), expected=f"files directly in it: {', '.join(SUFFIXES)}")
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
        groups = groups_of(root, [case for case, _ in sets], descriptor.groups)
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
        classes, notes = classes_of(
            root,
            descriptor,
            options,
            [c.label for c in cases if c.label is not None],
            where=folder,
            fix="Check the folder of labels, or name another with --labels FOLDER.",
        )
        return make_dataset(
            root,
            name=descriptor.name or root.name,
            root=root,
            layout=self.name,
            task=self.task,
            domain=self.domain,
            ndim=ndim,
            channels=channels_in_order(descriptor, options, count, image_suffix(files[0]).lower()),
            labels=classes,
            cases=tuple(cases),
            unlabelled=tuple(unlabelled),
            licence=descriptor.licence,
            notes=notes,
        )


def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


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
    if not any(image_files(root / folder) for folder in candidates) and (failed := failed_files(root)):
        raise DatasetError(failed)
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
