"""One case under inspection: its files, geometry, voxels and label values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from medseg.case import Case
from medseg.dataset import CaseFiles, Channel, Labels
from medseg.errors import ImageError, Problem
from medseg.fingerprint import CaseStats
from medseg.geometry import Array, Shape
from medseg.io.digests import Digests
from medseg.io.format import numbers
from medseg.io.grids import Moved, channels_by_file, grid_problems, nearest, place
from medseg.io.images import Header, Image, is_present, read_annotation, read_case, read_header, read_image
from medseg.io.layouts.files import missing_label
from medseg.scratch import IN_MEMORY, Scratch, release, row_slabs

SHOWN = 8  # label values named in an error
UNREMEMBERED = Digests()

Measure = Callable[[CaseFiles, Callable[[], Case]], CaseStats]
"""Measurements of a case, from its files and from a function that gives the case where it has to be looked at."""


@dataclass
class CaseReport:
    """What was seen of a case.

    Attributes:
        image, label: the files, for messages.
        shape, spacing: of the image; empty where it could not be read.
        content: digest of the image files.
        voxels: per class; empty where there is no readable label.
        background: voxels of it.
        features: per channel: mean, standard deviation, smallest and largest value, as `asinh`.
        resample: the label lies on another grid and is to be resampled.
        moved: channels that lie on another grid than the first.
        stats: measurements, where they were asked for and nothing is wrong with the case.
    """

    id: str
    image: Path
    label: Path | None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    shape: Shape = ()
    spacing: tuple[float, ...] = ()
    content: str = ""
    voxels: tuple[int, ...] = ()
    background: int = 0
    features: tuple[tuple[float, ...], ...] = ()
    resample: bool = False
    moved: list[Moved] = field(default_factory=list)
    stats: CaseStats | None = None


def inspect_case(
    files: CaseFiles,
    channels: Sequence[Channel],
    labels: Labels,
    resample_labels: bool = False,
    scratch: Scratch = IN_MEMORY,
    digests: Digests = UNREMEMBERED,
    measure: Measure | None = None,
) -> CaseReport:
    """Check one case, and measure it where it has a label and no problems; runs in a worker process, large images lie in `scratch`.

    Problems and warnings are in the report. No file's voxels are read twice.
    """
    report = CaseReport(files.id, files.images[0], files.label)
    headers = [_header(path, report) for path in files.images]
    label = _label_header(files, report)
    first = headers[0]
    if first is not None:
        report.shape, report.spacing = first.shape, first.grid.spacing
    if any(h is None for h in headers):
        return report
    known = [h for h in headers if h is not None]
    _check_channels(files, channels, known, report)
    _check_shape(files, known[0], report)
    _place_channels(files, known, report)
    if label is not None and files.label is not None:
        away = grid_problems(files.label, label.grid, label.native, files.images[0], known[0].grid, known[0].native, "label")
        if away and not label.native.listed and (resample_labels or files.resample_label) and label.grid.ndim == known[0].grid.ndim:
            report.resample = True
            report.warnings += away
        else:
            report.problems += away
    report.content = digests.case(files.model_copy(update={"label": None}))
    features: list[tuple[float, ...]] = []
    read: dict[Path, Image] = {}
    for path in files.images:
        image = _read(path, report, lambda path: read_image(path, scratch))
        if image is None:
            continue
        features += _check_voxels(path, image, channels, report, len(features))
        if measure is not None:
            read[path] = image
        del image  # or it would be there still while the next one is read
    report.features = tuple(features)
    if label is None or files.label is None:
        return report
    if prod(label.shape) > prod(known[0].shape) and not report.resample:
        return report  # told above; a damaged header may promise any size
    found = _read(files.label, report, partial(read_annotation, labels=labels))
    if found is not None:
        _warn(files.label, [text for text in found.native.warnings if text not in label.native.warnings], report)
        _check_label(files.label, found, labels, known[0], report)
    if measure is not None and found is not None and not report.problems:
        moved = files.model_copy(update={"resample_label": True}) if report.resample else files
        report.stats = measure(moved, lambda: read_case(moved, True, scratch, lambda path, _: read[path], lambda _: found))
    return report


def _read(path: Path, report: CaseReport, read: Callable[[Path], Image]) -> Image | None:
    try:
        return read(path)
    except ImageError as error:
        report.problems += [_named(report.id, p) for p in error.problems]
        return None


def _header(path: Path, report: CaseReport, label: bool = False) -> Header | None:
    try:
        header = read_header(path, label)
    except ImageError as error:
        report.problems += [_named(report.id, p) for p in error.problems]
        return None
    _warn(path, header.native.warnings, report)
    return header


def _warn(path: Path, warnings: Iterable[str], report: CaseReport) -> None:
    report.warnings += [Problem(text, f"case '{report.id}', {path}") for text in warnings]


def _label_header(files: CaseFiles, report: CaseReport) -> Header | None:
    if files.label is None:
        return None
    if not is_present(files.label):
        report.problems.append(missing_label(files))
        return None
    return _header(files.label, report, label=True)


def _named(case: str, problem: Problem) -> Problem:
    return Problem(problem.what, f"case '{case}', {problem.where}", problem.found, problem.expected, problem.fix)


def _check_channels(files: CaseFiles, channels: Sequence[Channel], headers: list[Header], report: CaseReport) -> None:
    found, wanted = sum(h.channels for h in headers), len(channels)
    if found == wanted:
        return
    fix = "Add or remove channels, or correct the channels that the dataset declares."
    stored = (*headers[0].shape, headers[0].channels)
    if len(headers) == 1 and found > wanted and wanted in stored and wanted > 1:
        fix = "The channels seem to lie on another axis: store them on the last one (NIfTI: X, Y, Z, channels)."
    names = ", ".join(c.name for c in channels)
    report.problems.append(
        Problem("wrong number of channels", f"case '{files.id}', {files.images[0]}", f"{found}", f"{wanted} ({names})", fix)
    )


def _place_channels(files: CaseFiles, headers: list[Header], report: CaseReport) -> None:
    """Channels on another grid than the first are resampled where that is possible, and else a problem."""
    first = headers[0]
    positions = channels_by_file([h.channels for h in headers])
    for path, header, channels in zip(files.images[1:], headers[1:], positions[1:], strict=True):
        placement = place(path, header.grid, header.native, files.images[0], first.grid, first.native)
        report.problems += [_named(report.id, p) for p in placement.problems]
        if placement.coverage is not None:
            report.moved.append(Moved(report.id, channels, placement.coverage))


def _check_shape(files: CaseFiles, header: Header, report: CaseReport) -> None:
    if min(header.shape) > 1:
        return
    where = f"case '{files.id}', {files.images[0]}"
    found = numbers(header.shape)
    if len(header.shape) == 3:
        report.problems.append(
            Problem(
                "is a volume of one slice",
                where,
                found,
                "several slices along every axis",
                "Save single slices as 2D images (X, Y), or leave it out.",
            )
        )
    else:
        report.problems.append(Problem("is an image of one row", where, found, "several rows and columns", "Leave the case out."))


def _check_voxels(path: Path, image: Image, channels: Sequence[Channel], report: CaseReport, first: int) -> list[tuple[float, ...]]:
    where = f"case '{report.id}', {path}"
    features = []
    for i, channel in enumerate(image.array, first):
        name = f"channel '{channels[i].name}'" if i < len(channels) else f"channel {i}"
        seen = _survey(channel)
        if seen.bad:
            report.problems.append(
                Problem(
                    f"{name} holds NaN or infinite values",
                    where,
                    f"{seen.bad} voxels, the first at (x, y{', z' if channel.ndim == 3 else ''}) = {seen.place}",
                    "finite numbers",
                    "Replace them (for example by the background value) or leave the case out.",
                )
            )
            continue
        if seen.low == seen.high:
            report.problems.append(
                Problem(
                    f"{name} is constant", where, f"{seen.low:.6g} everywhere", "an image", "Export the image again, or leave the case out."
                )
            )
        features.append(tuple(float(v) for v in np.arcsinh([seen.mean, seen.std, seen.low, seen.high])))
    return features


@dataclass(frozen=True)
class _Survey:
    bad: int
    place: tuple[int, ...]
    low: float
    high: float
    mean: float
    std: float


def _survey(channel: Array) -> _Survey:
    """Voxels that are NaN or infinite (their number and the index of the first, x first), range, mean and spread; slab by slab."""
    bad = 0
    place: tuple[int, ...] = ()
    low, high, total, squares = np.inf, -np.inf, 0.0, 0.0
    for rows in row_slabs(channel.shape):
        slab = channel[rows]
        if slab.dtype.kind == "f":
            wrong = ~np.isfinite(slab)
            here = int(wrong.sum())
            if here and not bad:
                first = np.argwhere(wrong)[0]
                place = tuple(int(v) for v in reversed((first[0] + rows.start, *first[1:])))
            bad += here
        if not bad:
            low, high = min(low, float(slab.min())), max(high, float(slab.max()))
            values = slab.astype(np.float64)
            total += float(values.sum())
            squares += float(np.square(values).sum())
        release(channel)
    mean = total / channel.size
    return _Survey(bad, place, low, high, mean, float(np.sqrt(max(squares / channel.size - mean**2, 0.0))))


def _check_label(path: Path, label: Image, labels: Labels, image: Header, report: CaseReport) -> None:
    if report.resample:
        label = Image(nearest(label, image.grid), image.grid, image.native)
    present: Counter[int] = Counter()
    for rows in row_slabs(label.array[0].shape):
        values, counts = np.unique(labels.semantic(label.array[0][rows]), return_counts=True)
        present.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    allowed = {0, *labels.values, *(() if labels.ignore is None else (labels.ignore,))}
    strange = sorted(set(present) - allowed)
    if strange:
        names = ["0 background", *(f"{'/'.join(map(str, c.values[:SHOWN]))} {c.name}" for c in labels.classes)]
        if labels.ignore is not None:
            names.append(f"{labels.ignore} ignore")
        shown = ", ".join(map(str, strange[:SHOWN])) + (f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else "")
        report.problems.append(
            Problem(
                "the label holds values that no class has",
                f"case '{report.id}', {path}",
                f"{shown} ({sum(present[v] for v in strange)} voxels)",
                ", ".join(names),
                "Correct the label, or declare the values (--class NAME=VALUES, or the dataset's description).",
            )
        )
    report.voxels = tuple(sum(present[v] for v in c.values) for c in labels.classes)
    report.background = present[0]
