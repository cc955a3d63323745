"""Image files in a folder, and which of them are the channels of one case."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from medseg.dataset import CaseFiles
from medseg.errors import DatasetError, ImageError, Problem
from medseg.io.images import image_stem, image_suffix, read_header

CHANNEL = re.compile(r"^(?P<id>.+)_(?P<channel>\d{4})$")
SAMPLE = 64  # headers that are read to learn what a dataset usually holds
SERIES = 16  # more numbered files of one name than this are a series, not channels


def image_files(folder: Path) -> tuple[Path, ...]:
    """Image files directly in a folder, sorted by name; hidden files, macOS `._` twins among them, are left out.

    Raises:
        DatasetError: files are links that lead nowhere.
    """
    if not folder.is_dir():
        return ()
    named = sorted((p for p in folder.iterdir() if not p.name.startswith(".") and image_suffix(p)), key=lambda p: p.name)
    lost = [p for p in named if p.is_symlink() and not p.exists()]
    if lost:
        raise DatasetError(
            [
                Problem(
                    "is a link to a file that is missing",
                    str(p),
                    str(p.readlink()),
                    fix="Fetch the files, mount the disk, or remove the link.",
                )
                for p in lost
            ]
        )
    return tuple(p for p in named if p.is_file())


def without_channel(stem: str) -> tuple[str, int | None]:
    """A stem's case id and channel: `liver_003_0001` is channel 1 of `liver_003`; None without a channel suffix."""
    match = CHANNEL.match(stem)
    return (match["id"], int(match["channel"])) if match else (stem, None)


def channel_sets(files: tuple[Path, ...]) -> tuple[bool, list[tuple[str, dict[int, Path]]]]:
    """Cases of files named `<id>_0000`, `<id>_0001`...: whether the files are named so at all, and per case its files by channel.

    Names count as suffixed only if every stem ends so and every case has its channel 0000: `scan_2019.png` alone has no channel 2019.
    Two files for one channel of a case (`a_0000.png`, `a_0000.nii.gz`) come out as two cases with one id.
    """
    split = [(without_channel(image_stem(path)), path) for path in files]
    groups: dict[str, list[tuple[int, Path]]] = {}
    for (case, channel), path in split:
        if channel is None:
            return False, [(image_stem(p), {0: p}) for p in files]
        groups.setdefault(case, []).append((channel, path))
    if not any(channel == 0 for members in groups.values() for channel, _ in members):
        return False, [(image_stem(p), {0: p}) for p in files]
    if len(groups) > 1 and all(len(members) == 1 and members[0][0] > 0 for members in list(groups.values())[1:]):
        return False, [(image_stem(p), {0: p}) for p in files]
    if len(groups) == 1 and len(files) > SERIES:
        return False, [(image_stem(p), {0: p}) for p in files]  # frame_0000 ... frame_0199: a numbered series, not 200 channels
    cases: list[tuple[str, dict[int, Path]]] = []
    for case, members in groups.items():
        sets: list[dict[int, Path]] = []
        for channel, path in sorted(members, key=lambda m: (m[0], m[1].name)):
            free = next((s for s in sets if channel not in s), None)
            if free is None:
                sets.append(free := {})
            free[channel] = path
        cases += [(case, s) for s in sets]
    return True, cases


def channel_gaps(case: str, found: dict[int, Path], expected: int) -> list[Problem]:
    """Channels of a case that are missing or too many."""
    if sorted(found) == list(range(expected)):
        return []
    shown = ", ".join(f"_{c:04d}" for c in sorted(found))
    wanted = ", ".join(f"_{c:04d}" for c in range(expected))
    where = str(next(iter(found.values())).parent)
    return [
        Problem(f"case '{case}' does not have the channels of the dataset", where, shown, wanted, "Add or rename the files of this case.")
    ]


def missing_label(case: CaseFiles) -> Problem:
    """An image without its label."""
    return Problem(
        "the label is missing",
        f"case '{case.id}'",
        f"no file {case.label}",
        f"a label for {case.images[0].name}",
        "Add the label, or move the image to the cases to predict.",
    )


def missing_image(label: Path, expected: str) -> Problem:
    """A label without its image: of a case that would silently not be trained on."""
    return Problem("the label has no image", str(label), "", expected, "Add or rename the image, or move the label to another folder.")


def usual_header(files: Sequence[Path]) -> tuple[int, int]:
    """Dimensions and channels of most of `SAMPLE` files spread over all; (3, 1) where none is readable, which `verify` explains."""
    counts: Counter[tuple[int, int]] = Counter()
    for path in files[:: -(-len(files) // SAMPLE)]:
        try:
            header = read_header(path)
        except ImageError:
            continue
        counts[len(header.shape), header.channels] += 1
    return counts.most_common(1)[0][0] if counts else (3, 1)
