"""From what a user points at (files, folders, datasets) to cases with one file per channel, as the model was trained on."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from medseg.dataset import CaseFiles, Channel
from medseg.errors import DatasetError, MedsegError, Problem, UsageError
from medseg.io.images import SUFFIXES, image_stem
from medseg.io.layouts.base import open_dataset

_CHANNEL = re.compile(r"^(?P<id>.+)_(?P<channel>\d{4})$")


def find_cases(inputs: Sequence[Path], channels: tuple[Channel, ...]) -> tuple[CaseFiles, ...]:
    """The cases behind `inputs`, sorted by id.

    An input is an image file (all channels in one file, or one of `case_0000`, `case_0001`, ... whose siblings are found), a folder of
    such files, a folder with one subfolder per case, or a dataset in any known layout (labelled and unlabelled cases alike).

    Raises:
        UsageError: inputs that do not exist, hold no image, lack a channel, or share a case id; all problems at once.
    """
    cases: list[CaseFiles] = []
    problems: list[Problem] = []
    for path in inputs:
        try:
            cases.extend(_of_folder(path, channels) if path.is_dir() else _of_files(_siblings(path), channels))
        except MedsegError as error:
            problems.extend(error.problems)
    first: dict[str, CaseFiles] = {}
    for case in cases:
        other = first.setdefault(case.id, case)
        if other.images != case.images:
            problems.append(
                Problem(
                    "two inputs have the same case id",
                    where=str(case.images[0]),
                    found=f"'{case.id}', also of {other.images[0]}",
                    expected="ids that differ, because outputs are named after them",
                    fix="Rename one of the files, or predict them into different folders.",
                )
            )
    if problems:
        raise UsageError(problems)
    return tuple(sorted(first.values(), key=lambda case: case.id))


def is_image(path: Path) -> bool:
    """Whether a file has an image's suffix and is not hidden (macOS leaves `._` files behind)."""
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(tuple(SUFFIXES))


def _siblings(path: Path) -> list[Path]:
    """The file, with the other channels where its name ends in a channel number."""
    if not path.is_file():
        raise UsageError.of("no such file or folder", where=str(path), fix="Check the path.")
    if not is_image(path):
        raise UsageError.of("is not an image that can be read", where=str(path), expected=f"one of {', '.join(SUFFIXES)}")
    match = _CHANNEL.match(image_stem(path))
    if match is None:
        return [path]
    suffix = path.name[len(image_stem(path)) :]
    stem = re.compile(re.escape(match["id"]) + r"_\d{4}" + re.escape(suffix))
    return sorted(other for other in path.parent.iterdir() if stem.fullmatch(other.name))


def _of_folder(folder: Path, channels: tuple[Channel, ...]) -> list[CaseFiles]:
    files = sorted(path for path in folder.iterdir() if is_image(path))
    if files:
        return _of_files(files, channels)
    try:
        dataset = open_dataset(folder)
    except DatasetError as error:
        unknown = error
    else:
        return [case.model_copy(update={"label": None}) for case in (*dataset.cases, *dataset.unlabelled)]
    cases = []
    for child in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        images = sorted(path for path in child.iterdir() if is_image(path))
        if images:
            cases.append(_of_case_folder(child, images, channels))
    if not cases:
        raise UsageError.of(
            "holds no image",
            where=str(folder),
            expected="image files, one subfolder of images per case, or a dataset",
            fix="; ".join(problem.what for problem in unknown.problems),
        )
    return cases


def _of_case_folder(folder: Path, images: list[Path], channels: tuple[Channel, ...]) -> CaseFiles:
    """One case from a folder: a single file, numbered channels, or files that carry the channel's name."""
    if len(images) == 1:
        return CaseFiles(id=folder.name, images=(images[0],), group=folder.name)
    numbered = [_CHANNEL.match(image_stem(path)) for path in images]
    if all(match is not None and int(match["channel"]) == i for i, match in enumerate(numbered)) and len(images) == len(channels):
        return CaseFiles(id=folder.name, images=tuple(images), group=folder.name)
    named = []
    for channel in channels:
        word = re.compile(rf"(?<![a-z0-9]){re.escape(channel.name.lower())}(?![a-z0-9])")
        found = [path for path in images if word.search(image_stem(path).lower())]
        if len(found) != 1:
            raise UsageError.of(
                f"channel '{channel.name}' is not clear",
                where=str(folder),
                found=", ".join(path.name for path in found or images),
                expected=f"one file per channel whose name holds the channel's name: {', '.join(c.name for c in channels)}",
                fix="Rename the files, or number them _0000, _0001, ... in the order of the channels.",
            )
        named.append(found[0])
    return CaseFiles(id=folder.name, images=tuple(named), group=folder.name)


def _of_files(files: Sequence[Path], channels: tuple[Channel, ...]) -> list[CaseFiles]:
    """Cases from files of one folder: `case_0000` with its siblings, or one file per case."""
    groups: dict[str, dict[int, Path]] = defaultdict(dict)
    singles: list[Path] = []
    for path in files:
        match = _CHANNEL.match(image_stem(path))
        if match is None:
            singles.append(path)
        else:
            groups[match["id"]][int(match["channel"])] = path
    cases = [CaseFiles(id=image_stem(path), images=(path,), group=image_stem(path)) for path in singles]
    problems = []
    for case_id, images in sorted(groups.items()):
        if sorted(images) == list(range(len(channels))):
            cases.append(CaseFiles(id=case_id, images=tuple(images[i] for i in sorted(images)), group=case_id))
        elif len(channels) == 1 or 0 not in images:
            # With one channel a trailing number other than _0000 belongs to the name: scan_2019, scan_2020.
            cases.extend(CaseFiles(id=image_stem(path), images=(path,), group=image_stem(path)) for path in images.values())
        else:
            problems.append(
                Problem(
                    "has the wrong number of channel files",
                    where=str(images[min(images)]),
                    found=", ".join(path.name for _, path in sorted(images.items())),
                    expected=f"_0000 to _{len(channels) - 1:04d} ({', '.join(c.name for c in channels)})",
                    fix="Add the missing files, or use a model for these channels.",
                )
            )
    if problems:
        raise UsageError(problems)
    return cases
