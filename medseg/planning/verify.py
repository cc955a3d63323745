"""Everything that can be wrong with a dataset, found before anything costs time, and reported at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from medseg.dataset import CaseFiles, Dataset, Modality, shown
from medseg.device import memory_per_array
from medseg.errors import DatasetError, Problem
from medseg.fingerprint import Fingerprint
from medseg.io.digests import Digests
from medseg.io.grids import moved_channels
from medseg.io.layouts.numbering import numbered_classes
from medseg.io.layouts.splits import odd_splits
from medseg.parallel import default_workers, map_cases
from medseg.planning.fingerprinting import Gathered, measure
from medseg.planning.inspection import SHOWN, CaseReport, Measure, inspect_case
from medseg.progress import Progress, Silent
from medseg.record import Record
from medseg.scratch import Scratch

FORBIDDEN = set('/\\:*?"<>|')
SILENT = Silent()
ARRAYS = 2  # large arrays that exist at once while a case is inspected or measured: the image, and a copy of it or of its foreground
FEW = 5  # patients below which cross-validation says little
LARGEST_VALUE = int(np.iinfo(np.int16).max)  # of a label: windows are int16 (`Domain.sample`)
UNITS = 8.0  # spacing so many times the median is most likely in another unit


class Verified(Record):
    """A dataset in which nothing was found that prevents training.

    Attributes:
        dataset: as it was given; with `resample_labels`, cases whose label lies on another grid are marked so. Go on with this one.
        warnings: what is odd.
        occurrences: class name -> number of cases in which it occurs.
        summary: one line.
    """

    dataset: Dataset
    warnings: tuple[Problem, ...]
    occurrences: dict[str, int]
    summary: str


def verify(
    dataset: Dataset,
    workers: int | None = None,
    progress: Progress = SILENT,
    resample_labels: bool = False,
    cache: Path | None = None,
) -> Verified:
    """Read every file of a dataset and check all of it.

    Args:
        resample_labels: a label on another grid is a warning instead of an error, and its case is marked to be resampled when it is read.
        cache: folder in which digests of files are remembered (`Workspace.cache`); None: no cache.

    Raises:
        DatasetError: with all problems of all cases.
    """
    return _verified(dataset, workers, progress, resample_labels, cache, None, Gathered(), None)


def verify_and_measure(
    dataset: Dataset,
    workers: int | None = None,
    progress: Progress = SILENT,
    resample_labels: bool = False,
    cache: Path | None = None,
    check: Callable[[], None] | None = None,
) -> tuple[Verified, Fingerprint]:
    """As `verify`, and the fingerprint (`make_fingerprint`), with every file read once; measurements are remembered in `cache`.

    `check` is called after each case, and what it raises ends the work.

    Raises:
        DatasetError: with all problems of all cases.
    """
    gathered = Gathered()
    measured = partial(measure, domain=dataset.domain, labels=dataset.labels, cache=cache)
    verified = _verified(dataset, workers, progress, resample_labels, cache, measured, gathered, check)
    return verified, gathered.fingerprint(verified.dataset)


def _verified(
    dataset: Dataset,
    workers: int | None,
    progress: Progress,
    resample_labels: bool,
    cache: Path | None,
    measured: Measure | None,
    gathered: Gathered,
    check: Callable[[], None] | None,
) -> Verified:
    problems = [*_ids(dataset), *_values(dataset)]
    warnings: list[Problem] = []
    reports: list[CaseReport] = []
    files = [*dataset.cases, *dataset.unlabelled]
    work = partial(
        inspect_case,
        channels=dataset.channels,
        labels=dataset.labels,
        resample_labels=resample_labels,
        scratch=Scratch(memory_per_array(workers or default_workers(), ARRAYS)),
        digests=Digests.of_cache(cache),
        measure=measured,
    )
    for outcome in progress.track(map_cases(work, files, workers), len(files), "verify"):
        if check is not None:
            check()
        if outcome.failure is not None:
            problems += outcome.failure.problems
            continue
        assert outcome.result is not None
        problems += outcome.result.problems
        warnings += outcome.result.warnings
        reports.append(outcome.result)
        if outcome.result.stats is not None:
            gathered.add(outcome.result.stats)
            outcome.result.stats = None  # gathered, it takes a fifth of the memory
    problems += _dimensions(dataset, reports)
    problems += _channel_order(dataset, reports)
    labelled = reports[: len(dataset.cases)]
    occurrences = {name: sum(r.voxels[i] > 0 for r in labelled if r.voxels) for i, name in enumerate(dataset.labels.names)}
    numbered = numbered_classes(dataset.labels, f"dataset '{dataset.name}'", [(r.label, r.voxels) for r in labelled if r.label is not None])
    found, odd = _classes(dataset, labelled, occurrences, bool(numbered))
    problems += found
    warnings += [
        *numbered,
        *odd,
        *_twins(dataset, labelled),
        *_spacings(labelled),
        *_size(dataset),
        *_modalities(dataset),
        *odd_splits(dataset),
        *_regions(dataset),
    ]
    moved_warning = moved_channels([m for r in reports for m in r.moved], dataset.channels, len(files))
    if moved_warning is not None:
        warnings.append(moved_warning)
    if problems:
        raise DatasetError(problems)
    moved = {r.id for r in labelled if r.resample}
    cases = tuple(c.model_copy(update={"resample_label": True}) if c.id in moved else c for c in dataset.cases)
    return Verified(
        dataset=dataset.model_copy(update={"cases": cases}),
        warnings=tuple(warnings),
        occurrences=occurrences,
        summary=_summary(dataset, labelled, occurrences),
    )


def _summary(dataset: Dataset, reports: Sequence[CaseReport], occurrences: dict[str, int]) -> str:
    """What the dataset holds, in one line."""
    shapes = np.array([r.shape for r in reports])
    low, high = shapes.min(axis=0), shapes.max(axis=0)
    size = " x ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(low, high, strict=True))
    classes = ", ".join(f"{name} in {count}" for name, count in occurrences.items())
    more = f" and {len(dataset.unlabelled)} without label" if dataset.unlabelled else ""
    channels = ", ".join(c.name for c in dataset.channels)
    return f"{dataset.name}: {len(dataset.cases)} {dataset.ndim}D cases{more}, {size} voxels, channels {channels}; classes: {classes}"


def _ids(dataset: Dataset) -> list[Problem]:
    problems = []
    seen: dict[str, CaseFiles] = {}
    for case in (*dataset.cases, *dataset.unlabelled):
        if case.id.startswith(".") or FORBIDDEN & set(case.id):
            problems.append(
                Problem(
                    "the case id cannot be a file name", f"case '{case.id}'", expected='none of / \\ : * ? " < > |', fix="Rename the file."
                )
            )
        # Without regard to case: two ids that differ in it alone are one file on Windows and macOS.
        other = seen.setdefault(case.id.lower(), case)
        if other is not case:
            problems.append(
                Problem(
                    "the case id is not unique",
                    f"case '{case.id}'",
                    f"{other.images[0]} and {case.images[0]}",
                    "one case per id",
                    "Rename one of them, image and label.",
                )
            )
    return problems


def _values(dataset: Dataset) -> list[Problem]:
    declared = [*dataset.labels.values, *dataset.labels.written, *([dataset.labels.ignore] if dataset.labels.ignore is not None else [])]
    wrong = sorted({v for v in declared if not 0 <= v <= LARGEST_VALUE})
    if not wrong:
        return []
    return [
        Problem(
            "declared label values are out of range",
            f"dataset '{dataset.name}'",
            ", ".join(map(str, wrong[:SHOWN])) + (f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""),
            f"0 to {LARGEST_VALUE}, because training windows hold 16-bit integers",
            "Renumber the labels.",
        )
    ]


def _regions(dataset: Dataset) -> list[Problem]:
    """Regions that overlap without one holding the other: a voxel of both is written as the later one."""
    labels = dataset.labels
    if labels.order is None:
        return []
    lost = {one.name: [v for v in one.values if shown(v, labels.classes, labels.order) not in one.values] for one in labels.classes}
    return [
        Problem(
            "a prediction cannot show all of this region, because a later one overwrites it where both are",
            f"dataset '{dataset.name}', class '{name}'",
            f"values {', '.join(map(str, values))}",
            fix="Its scores count these voxels as missed, however good the model is.",
        )
        for name, values in lost.items()
        if values
    ]


def _dimensions(dataset: Dataset, reports: Sequence[CaseReport]) -> list[Problem]:
    known = [r for r in reports if r.shape]
    counts = Counter(len(r.shape) for r in known)
    if len(counts) < 2:
        return []
    (usual, many), *_ = counts.most_common()
    odd = [r.id for r in known if len(r.shape) != usual]
    return [
        Problem(
            "2D and 3D cases are mixed",
            f"dataset '{dataset.name}'",
            f"{many} cases in {usual}D, but {len(odd)} in {5 - usual}D: {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}",
            "one number of dimensions",
            "Make two datasets.",
        )
    ]


def _classes(
    dataset: Dataset, reports: Sequence[CaseReport], occurrences: dict[str, int], numbered: bool
) -> tuple[list[Problem], list[Problem]]:
    """Empty labels and classes that never occur. Without problems elsewhere only: an unreadable label may hold the class.

    Of classes that are `numbered` objects, that they are rare is not worth a warning each.
    """
    read = [r for r in reports if r.voxels]
    empty = [r for r in read if not any(r.voxels)]
    if read and len(empty) == len(read):
        where = f"dataset '{dataset.name}'"
        expected = ", ".join(f"{v}" for v in dataset.labels.values)
        if not any(r.background for r in read):
            found = f"{_unknown(dataset)} everywhere"
            return [
                Problem("nothing is annotated", where, found, f"values 0, {expected}", "Check the label folder and the ignore value.")
            ], []
        return [
            Problem("every label is empty", where, "no voxel of any class", f"values {expected}", "Check the label folder and the classes.")
        ], []
    warnings = [
        Problem("the label is empty", f"case '{r.id}', {r.label}", "only background", "", "Right where the case shows nothing to segment.")
        if r.background
        else Problem(
            "nothing of the case is annotated",
            f"case '{r.id}', {r.label}",
            f"{_unknown(dataset)} everywhere",
            fix="It teaches nothing and cannot be scored: annotate it, or list it without a label.",
        )
        for r in empty
    ]
    stuff = bool(dataset.labels.things) and set(dataset.labels.things) != set(dataset.labels.names)  # which fills what is not an object
    if dataset.labels.ignore is not None and read and not stuff and not any(r.background for r in read):
        cure = "annotate what is none of the objects as a class of stuff" if dataset.labels.things else "annotate some background (value 0)"
        warnings.append(
            Problem(
                "no voxel of background is annotated in any case",
                f"dataset '{dataset.name}'",
                f"classes and {_unknown(dataset)} only",
                fix=f"A model cannot learn where the classes end, and scores count only within them: {cure}, unless the classes fill the whole image.",
            )
        )
    problems = []
    for name, count in occurrences.items():
        values = next(c.values for c in dataset.labels.classes if c.name == name)
        if count == 0 and len(read) == len(dataset.cases):
            problems.append(
                Problem(
                    f"class '{name}' occurs in no case",
                    f"dataset '{dataset.name}'",
                    f"no voxel with value {', '.join(map(str, values))}",
                    "at least one case",
                    "Remove the class from the dataset's description, or add cases that show it.",
                )
            )
        elif count == 1 and len(read) > 1 and not numbered:
            fix = "It cannot be learnt and scored at once."
            if len(occurrences) > 1 and not dataset.labels.things:
                highest = dataset.labels.values[-1]
                fix += f" Where values count objects: --objects numbers, or make one class of them, --class object=1-{highest}."
            warnings.append(
                Problem(
                    f"class '{name}' occurs in one case only",
                    f"dataset '{dataset.name}'",
                    fix=fix,
                )
            )
    return problems, warnings


def _unknown(dataset: Dataset) -> str:
    """What voxels without annotation are called; files of objects hold codes, or have no such value at all (void of panoptic segments)."""
    return "voxels without annotation (void)" if dataset.labels.things else f"the ignore value {dataset.labels.ignore}"


def _twins(dataset: Dataset, reports: Sequence[CaseReport]) -> list[Problem]:
    """Cases with the same image that may be split between training and validation."""
    groups = {c.id: c.group for c in dataset.cases}
    first: dict[str, CaseReport] = {}
    warnings = []
    for report in reports:
        other = first.setdefault(report.content, report)
        if other is not report and groups.get(other.id) != groups.get(report.id):
            warnings.append(
                Problem(
                    "two cases have the same image",
                    f"cases '{other.id}' and '{report.id}'",
                    fix="Remove one: validation on a case that was trained on says nothing.",
                )
            )
    return warnings


def _spacings(reports: Sequence[CaseReport]) -> list[Problem]:
    known = [r for r in reports if r.spacing]
    if len({len(r.spacing) for r in known}) != 1:
        return []
    median = np.median([r.spacing for r in known], axis=0)
    warnings = []
    for report in known:
        ratio = np.asarray(report.spacing) / median
        if ratio.max() > UNITS or ratio.min() < 1 / UNITS:
            warnings.append(
                Problem(
                    "the spacing is far from that of the other cases",
                    f"case '{report.id}'",
                    " x ".join(f"{v:.4g}" for v in report.spacing) + " mm",
                    f"about {' x '.join(f'{v:.4g}' for v in median)} mm",
                    "Check the unit in its header.",
                )
            )
    return warnings


def _size(dataset: Dataset) -> list[Problem]:
    patients = len({c.group for c in dataset.cases})
    if patients >= FEW:
        return []
    return [
        Problem("the dataset is small", f"dataset '{dataset.name}'", f"{patients} patients", f"{FEW} or more", "Scores will be uncertain.")
    ]


def _modalities(dataset: Dataset) -> list[Problem]:
    unknown = [c.name for c in dataset.channels if c.modality is Modality.other]
    if not unknown:
        return []
    return [
        Problem(
            "it is not declared what the intensities mean, so they are taken as relative and normalised case by case",
            f"channel {', '.join(unknown)}",
            fix="For CT in Hounsfield units pass --modality ct (or mr, pet, rgb, gray), or name the modality in the dataset's description.",
        )
    ]


def _channel_order(dataset: Dataset, reports: Sequence[CaseReport]) -> list[Problem]:
    """Cases whose channels fit the other cases only in another order.

    Each channel is described by mean, spread and range on a logarithmic scale. A case is refused if, as it is, it lies more than ten
    times as far from the median of all cases as cases usually do, while two swapped channels bring it within the usual distance.
    """
    count = len(dataset.channels)
    known = [r for r in reports if len(r.features) == count]
    if count < 2 or len(known) < 4:
        return []
    features = np.array([r.features for r in known])  # (cases, channels, features)
    middle = np.median(features, axis=0)
    spread = np.maximum(np.median(np.abs(features - middle), axis=0), 0.05)
    usual = float(np.median(np.abs((features - middle) / spread).mean(axis=(1, 2))))
    problems = []
    for report, own in zip(known, features, strict=True):
        distance = float(np.abs((own - middle) / spread).mean())
        if distance <= 10 * usual or distance <= 1:
            continue
        for a in range(count):
            for b in range(a + 1, count):
                order = list(range(count))
                order[a], order[b] = b, a
                if float(np.abs((own[order] - middle) / spread).mean()) <= 2 * usual:
                    problems.append(_swapped(dataset, report, a, b))
    return problems


def _swapped(dataset: Dataset, report: CaseReport, a: int, b: int) -> Problem:
    names = [c.name for c in dataset.channels]
    return Problem(
        "the channels are in another order than in the other cases",
        f"case '{report.id}', {report.image}",
        f"values of '{names[b]}' where '{names[a]}' should be, and the reverse",
        ", ".join(names),
        "Put the channels of this case in the dataset's order.",
    )
