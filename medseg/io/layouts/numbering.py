"""Whether the values in label files are classes, or number objects; nothing in the files says so, but what the values look like does.

Values that number objects are mostly one connected component each, and every file has a range of its own. Values of classes recur between
files, and where they have objects, mostly several in a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.dataset import Labels, ObjectForm
from medseg.errors import ImageError, Problem
from medseg.io.images import read_label
from medseg.io.layouts.base import OBJECT

LOOKED_AT = 8  # label files whose components are counted
SAMPLE = 16  # label files whose values are looked at, where those of all are not known
VOXELS = 2**27  # after so many no further file is looked at
FEW = 32  # more values than this do not become classes by themselves where objects are told apart
NUMBERS = 10  # fewer values are never taken for numbers of objects unless the task is about objects
SINGLE = 0.75  # of the values that number objects, at least so many are one component


@dataclass(frozen=True)
class Pieces:
    """Connected components of values in `files` label files: of `values` values (each counted in every file with it) `single` have one."""

    files: int
    values: int
    single: int

    def __str__(self) -> str:
        return f"of {self.values} values in {self.files} label files, {self.single} are one connected component each"


def form_of(files: Sequence[Path], found: Sequence[AbstractSet[int]]) -> tuple[ObjectForm, bool, str]:
    """How label files of which nothing is declared tell objects apart.

    Args:
        found: the positive foreground values of each file.

    Returns:
        The form; with `components`, whether each value is a class (else all together are one); and why, with how to choose otherwise.
    """
    values = sorted({value for one in found for value in one})
    if max(map(len, found)) < 2:
        classes = len(values) > 1 and len(_recurring(found)) == len(values)
        why = "no label file holds several values"
    else:
        counted = count_pieces(files, found)
        why = str(counted)
        if not (few_recur(found) and 2 * counted.single < counted.values):
            return (
                "numbers",
                False,
                f"objects are numbers, each value in a file is one ({why}); where values are classes: --objects components",
            )
        classes = True
    told = f"each is a class, values {', '.join(map(str, values[:FEW]))}" if classes else "they are one class"
    return "components", classes, f"objects are connected components, {told} ({why}); where values number objects: --objects numbers"


def looks_numbered(files: Sequence[Path], found: Sequence[AbstractSet[int]]) -> str | None:
    """Why the values in label files, given as in `form_of`, look like numbers of objects and no classes; None where they do not."""
    if not _own_ranges(found):
        return None
    counted = count_pieces(files, found)
    return str(counted) if counted.values and counted.single >= SINGLE * counted.values else None


def look_numbered(files: Sequence[Path], labels: Labels) -> str | None:
    """As `looks_numbered`, of label files of which some are looked at, where `labels` makes values classes."""
    if labels.things or len(labels.values) < NUMBERS:
        return None
    some = spread(files, SAMPLE)
    return looks_numbered(some, [values_of(path) - {labels.ignore} for path in some])


def numbered_classes(labels: Labels, where: str, seen: Sequence[tuple[Path, Sequence[int]]]) -> list[Problem]:
    """A warning about classes that are numbers of objects by their looks, else none; `seen` are label files with the voxels of each class."""
    if labels.things or any(len(one.values) > 1 for one in labels.classes):
        return []
    known = [(path, voxels) for path, voxels in seen if voxels]
    found = [{one.values[0] for one, count in zip(labels.classes, voxels, strict=True) if count} for _, voxels in known]
    why = looks_numbered([path for path, _ in known], found)
    if why is None:
        return []
    low, high = labels.values[0], labels.values[-1]
    return [
        Problem(
            "the values of labels look like numbers of objects, but each is a class",
            where,
            f"{len(labels.values)} values from {low} to {high}; {why}",
            fix=f"To tell the objects apart: --task instance. To make them one class: --class {OBJECT}={low}-{high}.",
        )
    ]


def few_recur(found: Sequence[AbstractSet[int]]) -> bool:
    """Whether there are few values, most of which recur in another file, if there is one."""
    values = {value for one in found for value in one}
    return len(values) <= FEW and (sum(map(bool, found)) < 2 or 2 * len(_recurring(found)) >= len(values))


def count_pieces(files: Sequence[Path], found: Sequence[AbstractSet[int]]) -> Pieces:
    """The components of files spread over all those with several values. Objects that touch at corners are one."""
    chosen = [path for path, one in zip(files, found, strict=True) if len(one) > 1]
    looked = values = single = voxels = 0
    for path in spread(chosen, LOOKED_AT):
        if voxels >= VOXELS:
            break
        index = files.index(path)
        try:
            array = read_label(path).array[0]
        except ImageError:
            continue  # `verify` says what is wrong with it
        counts = _components(array, found[index])
        looked, values, single, voxels = looked + 1, values + len(counts), single + counts.count(1), voxels + array.size
    return Pieces(looked, values, single)


def spread(files: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of some files, evenly spread."""
    return list(files[:: max(1, -(-len(files) // count))])


def values_of(path: Path) -> set[int]:
    """The values in a label file but 0, none where it cannot be read (`verify` says why)."""
    try:
        return {int(v) for v in np.unique(read_label(path).array)} - {0}
    except ImageError:
        return set()


def _components(array: np.ndarray, values: Collection[int]) -> list[int]:
    """For each value, how many connected components it has."""
    from scipy import ndimage

    ordered = np.array(sorted(values))
    places = np.where(np.isin(array, ordered), np.searchsorted(ordered, array) + 1, 0).astype(np.int32)
    boxes = ndimage.find_objects(places, max_label=len(ordered))
    structure = ndimage.generate_binary_structure(array.ndim, array.ndim)
    return [int(ndimage.label(places[box] == k, structure)[1]) for k, box in enumerate(boxes, 1) if box is not None]


def _recurring(found: Sequence[AbstractSet[int]]) -> set[int]:
    counts = Counter(value for one in found for value in one)
    return {value for value, count in counts.items() if count > 1}


def _own_ranges(found: Sequence[AbstractSet[int]]) -> bool:
    """Whether there are many values, and files number them from 1 on up to different ends, or hardly share any."""
    several = [one for one in found if one]
    values = {value for one in several for value in one}
    if len(values) < NUMBERS or len(several) < 2 or max(map(len, several)) < 2:
        return False
    if 10 * len(_recurring(several)) <= len(values):
        return True
    counted = [one for one in several if min(one) == 1 and 10 * len(one) >= 9 * max(one)]
    return 4 * len(counted) >= 3 * len(several) and len({max(one) for one in counted}) > 1
