"""From what a user points at (files, folders, datasets) to cases with one file per channel, as the model was trained on."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.dataset import CaseFiles, Channel, Modality
from medseg.errors import DatasetError, ImageError, MedsegError, Problem, UsageError
from medseg.inference.studies import Studies, dicom_within, find_studies, is_dicom
from medseg.io.dicom.settings import NOTHING_CHOSEN, DicomSettings
from medseg.io.grids import Moved, channels_by_file, moved_channels, place
from medseg.io.images import SUFFIXES, image_stem, read_header
from medseg.io.layouts.base import modality_of, open_dataset
from medseg.io.layouts.case_folders import case_folders
from medseg.io.layouts.files import without_channel
from medseg.io.layouts.roles import ONLY, RoleFile, role_files, role_of_channel
from medseg.progress import Progress, Silent

SILENT = Silent()


def find_cases(
    inputs: Sequence[Path | CaseFiles],
    channels: tuple[Channel, ...],
    settings: DicomSettings = NOTHING_CHOSEN,
    ndim: int | None = None,
    progress: Progress = SILENT,
    damaged: bool = False,
) -> tuple[CaseFiles, ...]:
    """The cases behind `inputs`, sorted by id.

    An input is an image file (all channels in one file, or one of `case_0000`, `case_0001`, ... whose siblings are found), a folder of
    such files, a case folder whose files are named after the channels, a folder with one subfolder per case, a dataset in any known
    layout (labelled and unlabelled cases alike), or a case as a dataset lists it, which is taken as it is. In case folders, labels are
    left aside, and so are images that the model has no channel for (see `left_aside`).

    A number at the end of a name counts as a channel's only where the file does not hold all channels: `frame_0003.png` in colour is a
    case of its own for a model of three colours. The number stays in its id, unless `_0000` is the only file of that name (nnU-Net's
    colour images).

    DICOM is a folder, a file, a zip archive or a DICOMDIR, or the name of a volume; of all of them together those series become cases that
    serve as the model's channels (`medseg.io.dicom.choice`), by its own rules or those in `settings`, with warnings to `progress`. In a
    folder with DICOM files, images of other formats are left aside. A time series is not a case. With `damaged`, series that would serve if
    they could be used are cases, too, beside others; they fail when they are read.

    Raises:
        UsageError: inputs that do not exist, hold no image, lack a channel, or share a case id; all problems at once.
    """
    found = chosen(inputs, channels, settings, ndim, progress)
    for warning in found.warnings():
        progress.say(f"warning: {warning}")
    return found.cases(damaged)


@dataclass(frozen=True)
class Chosen:
    """What inputs are made of.

    Attributes:
        files: cases of images in other formats than DICOM.
        studies: of the DICOM inputs; None where there are none.
        problems: of inputs that could not be looked into.
        aside: DICOM files within folders that were taken for images of other formats; one of each folder.
    """

    files: tuple[CaseFiles, ...]
    studies: Studies | None
    problems: tuple[Problem, ...]
    aside: tuple[Path, ...] = ()

    def warnings(self) -> tuple[str, ...]:
        """What is odd about the inputs, and what is left aside."""
        said = [f"DICOM beside images of other formats is left aside: {file.parent}; name it to predict on it" for file in self.aside]
        return (*(self.studies.warnings() if self.studies is not None else ()), *said)

    def cases(self, damaged: bool = False) -> tuple[CaseFiles, ...]:
        """All cases, sorted by id; `damaged` as in `Studies.cases`. Raises UsageError with all problems."""
        problems, cases = list(self.problems), list(self.files)
        try:
            cases += self.studies.cases(damaged) if self.studies is not None else ()
        except UsageError as error:
            problems += error.problems
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


def chosen(
    inputs: Sequence[Path | CaseFiles],
    channels: tuple[Channel, ...],
    settings: DicomSettings = NOTHING_CHOSEN,
    ndim: int | None = None,
    progress: Progress = SILENT,
) -> Chosen:
    """See `find_cases`; problems are told, not raised."""
    cases: list[CaseFiles] = []
    problems: list[Problem] = []
    dicom: list[Path] = []
    aside: list[Path] = []
    for path in inputs:
        if isinstance(path, CaseFiles):
            cases.append(path)
            continue
        if is_dicom(path):
            dicom.append(path)
            continue
        if path.is_dir() and (file := dicom_within(path, archives=False)) is not None:
            aside.append(file)
        try:
            cases.extend(_of_folder(path, channels) if path.is_dir() else _of_file(path, channels))
        except MedsegError as error:
            problems.extend(error.problems)
    studies = None
    try:
        studies = find_studies(dicom, channels, settings, ndim, progress) if dicom else None
    except MedsegError as error:
        problems.extend(error.problems)
    return Chosen(tuple(cases), studies, tuple(problems), tuple(aside))


def is_image(path: Path) -> bool:
    """Whether a file has an image's suffix and is not hidden (macOS leaves `._` files behind)."""
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(tuple(SUFFIXES))


def _of_file(path: Path, channels: tuple[Channel, ...]) -> list[CaseFiles]:
    """The case of a file that was named: itself, or with the other channels where its name ends in a channel number."""
    if not path.is_file():
        raise UsageError.of("no such file or folder", where=str(path), fix="Check the path.")
    if not is_image(path):
        raise UsageError.of("is not an image that can be read", where=str(path), expected=f"DICOM, or one of {', '.join(SUFFIXES)}")
    case_id, channel = without_channel(image_stem(path))
    if channel is None:
        return [_single(path)]
    siblings = [p for p in sorted(path.parent.iterdir()) if _numbered_like(p, case_id, path) and is_image(p)] or [path]
    if _holds_all(path, channels):
        return [_single(path, case_id if channel == 0 and len(siblings) == 1 else None)]
    return _of_files(siblings, channels)


def _numbered_like(path: Path, case_id: str, other: Path) -> bool:
    stem, suffix = image_stem(path), other.name[len(image_stem(other)) :]
    name, channel = without_channel(stem)
    return name == case_id and channel is not None and path.name == stem + suffix


def _holds_all(path: Path, channels: tuple[Channel, ...]) -> bool:
    """Whether one file holds every channel of a case; a file that cannot be read is judged by its name, and fails when its turn comes."""
    if len(channels) == 1:
        return True
    try:
        return read_header(path).channels == len(channels)
    except ImageError:
        return False


def _single(path: Path, case_id: str | None = None) -> CaseFiles:
    name = case_id or image_stem(path)
    return CaseFiles(id=name, images=(path,), group=name)


def _of_folder(folder: Path, channels: tuple[Channel, ...]) -> list[CaseFiles]:
    files = sorted(path for path in folder.iterdir() if is_image(path))
    if files:
        return [_of_roles(folder, channels)] if _has_roles(folder, channels) else _of_files(files, channels)
    children = case_folders(folder)
    if any(_has_roles(child, channels) for child in children):  # also a dataset, whose own order of channels need not be the model's
        return _of_case_folders(children, channels)
    try:
        dataset = open_dataset(folder)
    except DatasetError as error:
        unknown = error
    else:
        return [*dataset.cases, *dataset.unlabelled]
    cases = _of_case_folders([path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")], channels)
    if not cases:
        raise UsageError.of(
            "holds no image",
            where=str(folder),
            expected="image files, one subfolder of images per case, or a dataset",
            fix=f"As a dataset it {'; '.join(problem.what for problem in unknown.problems)}.",
        )
    return cases


def _of_case_folders(folders: Iterable[Path], channels: tuple[Channel, ...]) -> list[CaseFiles]:
    """The cases of all folders that hold images; all problems at once."""
    cases: list[CaseFiles] = []
    problems: list[Problem] = []
    for folder in folders:
        images = [file for file in role_files(folder) if not file.label] or role_files(folder)
        try:
            if images:
                cases.append(_of_roles(folder, channels) if _has_roles(folder, channels) else _of_case_folder(folder, images, channels))
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(problems)
    return cases


def _has_roles(folder: Path, channels: tuple[Channel, ...]) -> bool:
    """Whether the images in a folder are one case, because one at least has the role of a channel and does not hold all channels.

    For a model of one channel every other image must be of a modality, too: `ct` beside `x` and `y` is a scan among others.
    """
    files = role_files(folder)
    images = [file for file in files if not file.label]
    wanted = {role_of_channel(channel.name) for channel in channels}
    found = [file for file in images if file.key in wanted]
    if len(channels) == 1:
        told = len(files) > len(images) or any(file.role != ONLY for file in found)  # `image.png` alone is a scan with a poor name
        return told and len(found) == 1 and all(file in found or modality_of(file.role) is not Modality.other for file in images)
    return any(not _holds_all(file.path, channels) for file in found)


def _of_roles(folder: Path, channels: tuple[Channel, ...]) -> CaseFiles:
    """One case from a folder whose images have the roles of channels."""
    images = [file for file in role_files(folder) if not file.label]
    found = [[file.path for file in images if file.key == role_of_channel(channel.name)] for channel in channels]
    if any(len(paths) != 1 for paths in found):
        twice = [channel.name for channel, paths in zip(channels, found, strict=True) if len(paths) > 1]
        lacking = [channel.name for channel, paths in zip(channels, found, strict=True) if not paths]
        raise UsageError.of(
            " and ".join([*([f"has no {', '.join(lacking)}"] if lacking else []), *([f"has several {', '.join(twice)}"] if twice else [])]),
            where=str(folder),
            found=", ".join(f"{file.role} ({file.path.name})" for file in images),
            expected=f"one file for each of {', '.join(channel.name for channel in channels)}, as the model was trained on",
            fix="Add, rename or remove files, or use a model for these channels.",
        )
    return CaseFiles(id=folder.name, images=tuple(paths[0] for paths in found), group=folder.name)


def _of_case_folder(folder: Path, images: Sequence[RoleFile], channels: tuple[Channel, ...]) -> CaseFiles:
    """One case from a folder: a single file, numbered channels, or files that carry the channel's name."""
    if len(images) == 1:
        return CaseFiles(id=folder.name, images=(images[0].path,), group=folder.name)
    numbers = [without_channel(image_stem(file.path))[1] for file in images]
    if numbers == list(range(len(channels))):
        return CaseFiles(id=folder.name, images=tuple(file.path for file in images), group=folder.name)
    named = []
    for channel in channels:
        word = re.compile(rf"(?<![a-z0-9]){re.escape(channel.name.lower())}(?![a-z0-9])")
        found = [file.path for file in images if word.search(image_stem(file.path).lower())]
        if len(found) != 1:
            raise UsageError.of(
                f"channel '{channel.name}' is not clear",
                where=str(folder),
                found=", ".join(path.name for path in found or [file.path for file in images]),
                expected=f"one file per channel whose name holds the channel's name: {', '.join(c.name for c in channels)}",
                fix="Rename the files, or number them _0000, _0001, ... in the order of the channels.",
            )
        named.append(found[0])
    return CaseFiles(id=folder.name, images=tuple(named), group=folder.name)


def _of_files(files: Sequence[Path], channels: tuple[Channel, ...]) -> list[CaseFiles]:
    """Cases from files of one folder: `case_0000` with its siblings, or one file per case."""
    groups: dict[str, list[dict[int, Path]]] = defaultdict(list)
    cases: list[CaseFiles] = []
    for path in files:
        case_id, channel = without_channel(image_stem(path))
        if channel is None:
            cases.append(_single(path))
            continue
        free = next((images for images in groups[case_id] if channel not in images), None)
        if free is None:  # also for a twin in another format, so that it comes out as a second case of this id
            groups[case_id].append(free := {})
        free[channel] = path
    problems = []
    for case_id, images in ((case_id, images) for case_id, several in sorted(groups.items()) for images in several):
        first = images[min(images)]
        if _holds_all(first, channels):
            cases.extend(_single(path, case_id if list(images) == [0] else None) for path in images.values())
        elif sorted(images) == list(range(len(channels))):
            cases.append(CaseFiles(id=case_id, images=tuple(images[i] for i in sorted(images)), group=case_id))
        elif 0 not in images:  # a number that belongs to the name: scan_2019, scan_2020
            cases.extend(_single(path) for path in images.values())
        else:
            problems.append(
                Problem(
                    "has the wrong number of channel files",
                    where=str(first),
                    found=", ".join(path.name for _, path in sorted(images.items())),
                    expected=f"_0000 to _{len(channels) - 1:04d} ({', '.join(c.name for c in channels)}), or all channels in one file",
                    fix="Add the missing files, or use a model for these channels.",
                )
            )
    if problems:
        raise UsageError(problems)
    return cases


def resampled(cases: Sequence[CaseFiles], channels: tuple[Channel, ...]) -> Problem | None:
    """The warning about channels that are resampled onto the grid of their case's first file; from headers alone.

    Cases that cannot be read, or not be placed, say so when their turn comes.
    """
    moved = []
    for case in cases:
        try:
            headers = [read_header(path) for path in case.images] if len(case.images) > 1 else []
        except ImageError:
            continue
        positions = channels_by_file([header.channels for header in headers])
        for path, header, channel in list(zip(case.images, headers, positions, strict=False))[1:]:
            placement = place(path, header.grid, header.native, case.images[0], headers[0].grid, headers[0].native)
            if placement.coverage is not None:
                moved.append(Moved(case.id, channel, placement.coverage))
    return moved_channels(moved, channels, len(cases))


def left_aside(cases: Sequence[CaseFiles], channels: tuple[Channel, ...]) -> Problem | None:
    """The warning about images in case folders that belong to no channel of the model; None where there are none."""
    names: dict[str, None] = {}
    folders: dict[Path, None] = {}
    wanted = {role_of_channel(channel.name) for channel in channels}
    for case in cases:
        folder = case.images[0].parent
        files = role_files(folder) if folder.name == case.id else ()
        if not any(file.key in wanted for file in files):
            continue
        for file in files:
            if not file.label and file.path not in case.images:
                names[file.role], folders[folder] = None, None
    if not names:
        return None
    return Problem(
        "images that the model has no channel for are left aside",
        f"{len(folders)} of {len(cases)} cases",
        ", ".join(names),
        ", ".join(channel.name for channel in channels),
    )
