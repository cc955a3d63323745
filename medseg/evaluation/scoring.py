"""Score predictions against references and write the report."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import Dataset, LabelClass, Labels
from medseg.errors import DatasetError, Problem, UsageError
from medseg.evaluation.page import render_page
from medseg.evaluation.pairing import Pair, find_references, image_files, pair, read_pair
from medseg.evaluation.records import CASES_FILE, PAGE_FILE, SUMMARY_FILE, Before, CaseScores, Evaluation, defined
from medseg.evaluation.selection import Selection
from medseg.evaluation.summary import summarise
from medseg.io.images import read_header, read_label
from medseg.metrics import METRICS, describe, score_classes
from medseg.parallel import map_cases
from medseg.plans import Plan
from medseg.progress import Progress, Silent
from medseg.record import write_text
from medseg.tasks.base import find_task

SMALL = 10**8
"""Voxels of all cases together below which one process does the scoring (about ten seconds of work)."""


def evaluate(
    predictions: Path,
    references: Path | Dataset,
    labels: Labels | None = None,
    out: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    *,
    plan: Plan | None = None,
    metrics: Sequence[str] | None = None,
    cases: Collection[str] | None = None,
    images: Path | None = None,
    channel: str | None = None,
    curves: Sequence[Path] = (),
    title: str = "",
    selected: bool = False,
    before: Before | None = None,
    selection: Selection | None = None,
) -> Evaluation:
    """Compare predicted label maps with references, case by case and class by class.

    Args:
        predictions: folder of label maps, one per case, called as the case.
        references: a dataset, its folder, or a folder of label files.
        labels: the classes. None takes the plan's, else the dataset's, else one class per value found in the references.
        out: folder for `summary.json`, `cases.csv` and the self-contained `index.html`; None writes nothing.
        workers: processes; None means one per core, but a single one for small images, which are scored before others have started.
        progress: receives progress.
        plan: the plan of the model: its task does the scoring and the page explains it. Without a plan, label maps are scored class by
            class (`medseg.metrics.score_classes`).
        metrics: names, the leading one first; `nsd@1` is NSD at 1 mm. None means all.
        cases: ids that should have been predicted; other predictions count as extra. None means every reference.
        images: folder of images to show under the overlays, where `references` is not a dataset (which knows its images).
        channel: on whose grid the cases of a dataset's folder are read (`LayoutOptions.reference`); None: the plan's first, if there is one.
        curves: `metrics.csv` files of the training, for the page.
        title: what is evaluated; empty takes the name of the dataset.
        selected: something of the model was chosen by its scores on these cases; the page says so.
        before: see `Evaluation`; None: the model began with no other.
        selection: of which models the model was selected, for the page.

    Raises:
        UsageError: nothing matches, an unknown metric, or both `labels` and `plan`.
        DatasetError: problems of all cases at once: another grid than the reference's, values outside the classes, unreadable files.
            Nothing is written then.
    """
    progress = progress or Silent()
    if labels is not None and plan is not None:
        raise UsageError.of("labels and a plan contradict each other", fix="Pass one of them; a plan holds its labels.")
    if images is not None and not images.is_dir():
        raise UsageError.of("no such folder of images", where=str(images), fix="Pass the folder of the images that were predicted.")
    names = _metrics(metrics, plan)
    known = find_references(references, channel, *((plan.data.channels, plan.data.labels) if plan is not None else ()))
    pairs = pair(predictions, known, cases)
    classes = plan.data.labels if plan is not None else labels or known.classes
    if classes is None:
        classes = _found_labels([p.reference for p in pairs.pairs], workers, progress)
    job = Job(classes, names, plan)
    first = read_header(pairs.pairs[0].reference)
    if workers is None and len(pairs.pairs) * math.prod(first.shape) < SMALL:
        workers = 1
    scored: list[CaseScores] = []
    problems: list[Problem] = []
    outcomes = map_cases(partial(score_pair, job), pairs.pairs, workers)
    for outcome in progress.track(outcomes, len(pairs.pairs), "scoring"):
        if outcome.failure is not None:
            problems += outcome.failure.problems
        elif outcome.result is not None:
            scored.append(outcome.result)
    if problems:
        raise DatasetError(problems)
    title = title or (plan.data.name if plan else known.title)
    evaluation = summarise(scored, classes, names, title, pairs.missing, pairs.extra, first.native.spaced, selected, before)
    if out is not None:
        shown = {stem: [path] for stem, path in image_files(images, "images").items()} if images is not None else {}
        shown |= {i: list(files.images) for i, files in known.files.items()}
        page = render_page(evaluation, pairs.pairs, shown, plan, curves, selection)
        write_text(out / SUMMARY_FILE, evaluation.to_json())
        write_text(out / CASES_FILE, cases_csv(evaluation))
        write_text(out / PAGE_FILE, page)
    return evaluation


@dataclass(frozen=True)
class Job:
    """What every worker must know."""

    labels: Labels
    metrics: tuple[str, ...]
    plan: Plan | None


def score_pair(job: Job, case: Pair) -> CaseScores:
    """Read and score one case. Raises ImageError or DatasetError."""
    prediction, truth = read_pair(case, job.labels)
    semantic = job.labels.semantic
    values, others = job.labels.values, {0} if job.labels.ignore is None else {0, job.labels.ignore}
    problems = []
    for path, array, allowed in (
        (case.prediction, prediction.array[0], {*values, *job.labels.written, *others}),
        (case.reference, truth.array[0], {*values, *others}),
    ):
        foreign = sorted(set(_values(semantic(array))) - allowed)
        if foreign:
            shown = ", ".join(map(str, foreign[:8])) + (" ..." if len(foreign) > 8 else "")
            problems.append(
                Problem(
                    "holds values that belong to no class",
                    where=str(path),
                    found=shown,
                    expected=f"values among {', '.join(map(str, sorted(allowed)))}",
                    fix="Check that the file belongs to this dataset, or declare the classes.",
                )
            )
    if problems:
        raise DatasetError(problems)
    spacing = truth.grid.spacing
    a, b = prediction.array[0], truth.array[0]
    if job.plan is not None:
        scores = find_task(job.plan.task)(job.plan).score(a, b, spacing, job.metrics)
    else:
        scores = score_classes(a, b, job.labels, spacing, job.metrics)
    a, b = semantic(a), semantic(b)
    keep = np.ones(b.shape, dtype=bool) if job.labels.ignore is None else b != job.labels.ignore
    return CaseScores(
        id=case.id,
        scores={name: {m: defined(v) for m, v in row.items()} for name, row in scores.items()},
        reference=_voxels(b[keep], job.labels),
        predicted=_voxels(a[keep], job.labels),
    )


def cases_csv(evaluation: Evaluation) -> str:
    """One line per case and class: voxels and every metric; undefined values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "class", "reference_voxels", "predicted_voxels", *evaluation.metrics])
    for case in evaluation.cases:
        for name in evaluation.labels.names:
            row = [case.scores[name].get(m) for m in evaluation.metrics]
            values = ["" if v is None else f"{v:.6g}" for v in row]
            writer.writerow([case.id, name, case.reference[name], case.predicted[name], *values])
    return text.getvalue()


def _metrics(metrics: Sequence[str] | None, plan: Plan | None) -> tuple[str, ...]:
    if metrics is None:
        return find_task(plan.task).metrics if plan is not None else tuple(METRICS)
    if not metrics:
        raise UsageError.of("no metric is named", expected=f"some of {', '.join(METRICS)}")
    if plan is None or find_task(plan.task).metrics == tuple(METRICS):
        for name in metrics:
            describe(name)
    return tuple(dict.fromkeys(metrics))


def _found_labels(references: list[Path], workers: int | None, progress: Progress) -> Labels:
    """One class per value in the references."""
    found: set[int] = set()
    problems: list[Problem] = []
    for outcome in progress.track(map_cases(_file_values, references, workers), len(references), "finding classes"):
        if outcome.failure is not None:
            problems += outcome.failure.problems
        found.update(outcome.result or ())
    if problems:
        raise DatasetError(problems)
    found.discard(0)
    if not found:
        raise DatasetError.of("every reference is empty", where=str(references[0].parent), expected="at least one voxel that is not 0")
    if len(found) == 1:
        (value,) = found
        return Labels(classes=(LabelClass(name="foreground", values=(value,)),))
    return Labels(classes=tuple(LabelClass(name=f"value {v}", values=(v,)) for v in sorted(found)))


def _file_values(path: Path) -> tuple[int, ...]:
    return _values(read_label(path).array)


def _values(array: NDArray[Any]) -> tuple[int, ...]:
    if array.dtype == np.uint8:
        return tuple(int(v) for v in np.flatnonzero(np.bincount(array.ravel(), minlength=1)))
    return tuple(int(v) for v in np.unique(array))


def _voxels(values: NDArray[Any], labels: Labels) -> dict[str, int]:
    return {c.name: int(np.count_nonzero(np.isin(values, c.values))) for c in labels.classes}
