"""Score predictions against references and write the report."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import Dataset, LabelClass, Labels, ObjectForm
from medseg.errors import DatasetError, Problem, UsageError
from medseg.evaluation.objects import POOLED, POOLED_3D, VOLUMES_ONLY, Counted, count, pooled
from medseg.evaluation.page import render_page
from medseg.evaluation.pairing import Pair, find_references, image_files, object_labels, pair, read_pair
from medseg.evaluation.records import (
    CASES_FILE,
    OBJECTS_FILE,
    PAGE_FILE,
    SUMMARY_FILE,
    Before,
    CaseScores,
    Evaluation,
    ObjectScores,
    defined,
)
from medseg.evaluation.results import CONFIDENCE, unpack
from medseg.evaluation.selection import Selection
from medseg.evaluation.summary import summarise
from medseg.io.images import read_header, read_label
from medseg.io.layouts.base import Objects
from medseg.io.layouts.numbering import look_numbered
from medseg.metrics import DETECTION_METRICS, INSTANCE_METRICS, METRICS, describe, score_classes
from medseg.metrics.instances import class_numbers, count_objects, poolable, score_instances
from medseg.parallel import map_cases
from medseg.plans import Plan
from medseg.progress import Progress, Silent
from medseg.record import write_text
from medseg.tasks.base import find_task

SMALL = 10**8
"""Voxels of all cases together below which one process does the scoring (about ten seconds of work)."""

FEW = 20  # more values than this in references are hardly classes


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
    objects: Objects | None = None,
    predicted: ObjectForm | None = None,
    confidence: float | None = None,
) -> Evaluation:
    """Compare predicted label maps with references, case by case and class by class.

    Args:
        predictions: folder of label maps, one per case, called as the case; or a COCO file of predicted objects (`unpack`).
        references: a dataset, its folder, or a folder of label files.
        labels: the classes. None takes the plan's, else the dataset's, else one class per value found in the references.
        out: folder for `summary.json`, `cases.csv` and the self-contained `index.html`; None writes nothing.
        workers: processes; None means one per core, but a single one for small images, which are scored before others have started.
        progress: receives progress.
        plan: the plan of the model: its task does the scoring and the page explains it. Without a plan, label maps are scored class by
            class (`medseg.metrics.score_classes`), where classes are things by their objects (`medseg.metrics.instances`).
        metrics: names, the leading one first; `nsd@1` is NSD at 1 mm. None means all, but Lesion F1 of objects in volumes only. Those that
            only all cases together have (`ap`) come in addition to some of single cases.
        cases: ids that should have been predicted; other predictions count as extra. None means every reference.
        images: folder of images to show under the overlays, where `references` is not a dataset (which knows its images).
        channel: on whose grid the cases of a dataset's folder are read (`LayoutOptions.reference`); None: the plan's first, if there is one.
        curves: `metrics.csv` files of the training, for the page.
        title: what is evaluated; empty takes the name of the dataset.
        selected: something of the model was chosen by its scores on these cases; the page says so.
        before: see `Evaluation`; None: the model began with no other.
        selection: of which models the model was selected, for the page.
        objects: how the references tell objects apart, where neither `labels` nor a plan or dataset says it; None of a COCO file is `auto`.
        predicted: how the predictions do, where another program wrote them; None: as medseg writes them (`Labels.given`).
        confidence: of a COCO file, the least score of objects that are painted into label maps, of which all is scored but average precision and
            FROC; None is `CONFIDENCE`.

    Where classes are things, the evaluation also has scores of all cases together (`ObjectScores`), and `out` a table of these.

    Raises:
        UsageError: nothing matches, an unknown metric, both `labels` and `plan`, or `predicted` where no class is a thing.
        DatasetError: problems of all cases at once: another grid than the reference's, values outside the classes, unreadable files.
            Nothing is written then.
    """
    progress = progress or Silent()
    if labels is not None and plan is not None:
        raise UsageError.of("labels and a plan contradict each other", fix="Pass one of them; a plan holds its labels.")
    if images is not None and not images.is_dir():
        raise UsageError.of("no such folder of images", where=str(images), fix="Pass the folder of the images that were predicted.")
    data = plan.data if plan is not None else None
    if predictions.is_file() and data is None and labels is None:
        objects = objects or "auto"
    known = find_references(references, channel, data.channels if data else (), data.labels if data else labels, objects)
    classes = data.labels if data else labels or known.classes
    with ExitStack() as held:
        if predictions.is_file():
            _check_file(predictions, predicted)
            classes = classes or object_labels(list(known.labels.values()), objects or "auto")
            folder = Path(held.enter_context(TemporaryDirectory(prefix="medseg-", ignore_cleanup_errors=True)))
            listed, left = unpack(predictions, known, classes, CONFIDENCE if confidence is None else confidence, folder)
            if left:
                progress.say(f"warning: {left} predicted objects are of categories of which the references have none, and are not scored")
            predictions, predicted, cases = folder, "codes", listed if cases is None else cases
        elif confidence is not None:
            raise UsageError.of(
                "has a meaning for COCO files of predicted objects only",
                where="--confidence",
                found=f"{predictions}, a folder",
                fix="Leave it out.",
            )
        pairs = pair(predictions, known, cases)
        if classes is None:
            files = [p.reference for p in pairs.pairs]
            classes = object_labels(files, objects) if objects is not None else _found_labels(files, workers, progress)
        if labels is None and plan is None:
            _warn_of_numbers([p.reference for p in pairs.pairs], classes, progress)
        if predicted is not None and not classes.things:
            raise UsageError.of(
                "no class has objects", found=f"predictions with objects as {predicted}", fix="Say how the references tell them apart."
            )
        first = read_header(pairs.pairs[0].reference)
        names, together = chosen_metrics(metrics, plan, classes, first.grid.ndim)
        job = Job(classes, names, plan, predicted)
        if workers is None and len(pairs.pairs) * math.prod(first.shape) < SMALL:
            workers = 1
        scored: list[Scored] = []
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
        found = [one.case for one in scored]
        evaluation = summarise(found, classes, names, title, pairs.missing, pairs.extra, first.native.spaced, selected, before)
        if together:
            evaluation = evaluation.model_copy(
                update={"objects": pooled([one.counted for one in scored if one.counted], classes, together)}
            )
        if out is not None:
            shown = {stem: [path] for stem, path in image_files(images, "images").items()} if images is not None else {}
            shown |= {i: list(files.images) for i, files in known.files.items()}
            page = render_page(evaluation, pairs.pairs, shown, plan, curves, selection, predicted)
            write_text(out / SUMMARY_FILE, evaluation.to_json())
            write_text(out / CASES_FILE, cases_csv(evaluation))
            if evaluation.objects is not None:
                write_text(out / OBJECTS_FILE, objects_csv(evaluation.objects))
            write_text(out / PAGE_FILE, page)
        return evaluation


def _check_file(predictions: Path, predicted: ObjectForm | None) -> None:
    """A file of predictions is one of COCO. Raises UsageError."""
    if predictions.suffix.lower() != ".json":
        fix = "Pass the folder that holds it, or a JSON file."
        raise UsageError.of(
            "no file of predicted objects", where=str(predictions), found=predictions.suffix, expected="COCO's JSON, or a folder", fix=fix
        )
    if predicted is not None:
        raise UsageError.of(
            "a COCO file says itself what its objects are", where="--predicted-objects", found=predicted, fix="Leave it out."
        )


@dataclass(frozen=True)
class Job:
    """What every worker must know."""

    labels: Labels
    metrics: tuple[str, ...]
    plan: Plan | None
    predicted: ObjectForm | None = None


@dataclass(frozen=True)
class Scored:
    """One case; `counted` where classes are things."""

    case: CaseScores
    counted: Counted | None


def score_pair(job: Job, case: Pair) -> Scored:
    """Read and score one case. Raises ImageError or DatasetError."""
    prediction, truth = read_pair(case, job.labels, job.predicted)
    semantic, a, b = job.labels.semantic, prediction.array[0], truth.array[0]
    table = count_objects(a, b, job.labels) if job.labels.things else None
    values, others = job.labels.values, {0} if job.labels.ignore is None else {0, job.labels.ignore}
    problems = []
    for path, codes, allowed in (
        (case.prediction, table.prediction.ids if table else a, {*values, *job.labels.written, *others}),
        (case.reference, table.truth.ids if table else b, {*values, *others}),
    ):
        foreign = sorted(set(_values(semantic(codes))) - allowed)
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
        elif job.labels.things and (nameless := int(codes[semantic(codes) == 0].max(initial=0))):
            problems.append(
                Problem(
                    "holds numbers of objects that do not say their class",
                    where=str(path),
                    found=str(nameless),
                    expected="class value * 65536 + number",
                    fix="Say how they tell objects apart: --objects for the references, --predicted-objects for the predictions.",
                )
            )
    if problems:
        raise DatasetError(problems)
    spacing, counted = truth.grid.spacing, None
    if table is not None:
        counted = count(table, a, b, job.labels, (case.prediction, case.reference))
    if job.plan is not None:
        told = {} if table is None else {"counted": table}
        scores = find_task(job.plan.task)(job.plan).score(a, b, spacing, job.metrics, **told)
    elif table is not None:
        scores = score_instances(table, class_numbers(job.labels), job.metrics)
    else:
        scores = score_classes(a, b, job.labels, spacing, job.metrics)
    if table is not None:
        predicted = _of_classes(table.prediction.classes, table.prediction.sizes - table.prediction.ignored, job.labels)
        reference = _of_classes(table.truth.classes, table.truth.sizes, job.labels)
    else:
        keep = np.ones(b.shape, dtype=bool) if job.labels.ignore is None else b != job.labels.ignore
        predicted, reference = _voxels(a[keep], job.labels), _voxels(b[keep], job.labels)
    found = CaseScores(
        id=case.id,
        scores={name: {m: defined(v) for m, v in row.items()} for name, row in scores.items()},
        reference=reference,
        predicted=predicted,
        objects=counted.matched(job.labels) if counted else None,
    )
    return Scored(found, counted)


def cases_csv(evaluation: Evaluation) -> str:
    """One line per case and class: voxels (and objects, where there are any), and every metric; undefined values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    things = evaluation.objects is not None
    counts = ("matched_objects", "missed_objects", "invented_objects") if things else ()
    writer.writerow(["case", "class", "reference_voxels", "predicted_voxels", *counts, *evaluation.metrics])
    for case in evaluation.cases:
        for name in evaluation.labels.names:
            row = [case.scores[name].get(m) for m in evaluation.metrics]
            values = ["" if v is None else f"{v:.6g}" for v in row]
            told = case.objects[name] if case.objects else None
            some = (told.matched, told.missed, told.invented) if told else ()
            writer.writerow([case.id, name, case.reference[name], case.predicted[name], *some, *values])
    return text.getvalue()


def objects_csv(scores: ObjectScores) -> str:
    """One line per class (and group of classes) and metric of all cases together; undefined values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["classes", "metric", "value", "low", "high"])
    for name, row in (*scores.classes.items(), *((f"mean of {group}", row) for group, row in scores.means.items())):
        for metric, found in row.items():
            writer.writerow([name, metric, *("" if v is None else f"{v:.6g}" for v in (found.value, found.low, found.high))])
    return text.getvalue()


def chosen_metrics(metrics: Sequence[str] | None, plan: Plan | None, labels: Labels, ndim: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Metrics of single cases, the leading one first, and those of all cases together. Raises UsageError for names that cannot be."""
    task = find_task(plan.task) if plan is not None else None
    together = (POOLED_3D if ndim == 3 else POOLED) if labels.things else ()
    if metrics is None:
        names = task.metrics if task else tuple(INSTANCE_METRICS) if labels.things else tuple(METRICS)
        return tuple(name for name in names if not (labels.things and ndim < 3 and name in VOLUMES_ONLY)), together
    if not metrics:
        raise UsageError.of("no metric is named", expected=f"some of {', '.join(METRICS)}")
    if not labels.things:
        if task is None or task.metrics == tuple(METRICS):
            for name in metrics:
                describe(name)
        return tuple(dict.fromkeys(metrics)), ()
    of_objects = {*INSTANCE_METRICS, *DETECTION_METRICS}
    for name in metrics:
        if task is None or name not in task.metrics:
            describe(name)
            if name.partition("@")[0] not in of_objects:
                raise UsageError.of("no metric of objects", found=f"'{name}'", expected=f"one of {', '.join(sorted(of_objects))}")
    alone = tuple(dict.fromkeys(name for name in metrics if name.partition("@")[0] not in DETECTION_METRICS))
    if not alone:
        raise UsageError.of(
            "only scores of all cases together are named",
            found=", ".join(metrics),
            expected=f"also one that single cases have: {', '.join(INSTANCE_METRICS)}",
        )
    return alone, tuple(dict.fromkeys(name for name in metrics if name.partition("@")[0] in of_objects and poolable(name)))


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


def _warn_of_numbers(references: list[Path], classes: Labels, progress: Progress) -> None:
    """Say where values that most likely number objects are scored as classes, which takes long and means nothing."""
    why, count = look_numbered(references, classes), len(classes.values)
    if why is not None or (not classes.things and count > FEW):
        told = f", which look like numbers of objects ({why})" if why else ""
        progress.say(
            f"warning: the references hold {count} values{told}, each taken for a class; where they number objects: --objects numbers"
        )


def _file_values(path: Path) -> tuple[int, ...]:
    return _values(read_label(path).array)


def _values(array: NDArray[Any]) -> tuple[int, ...]:
    if array.dtype == np.uint8:
        return tuple(int(v) for v in np.flatnonzero(np.bincount(array.ravel(), minlength=1)))
    return tuple(int(v) for v in np.unique(array))


def _of_classes(classes: NDArray[np.int64], sizes: NDArray[np.int64], labels: Labels) -> dict[str, int]:
    """Voxels of each class, from those of its objects."""
    return {name: int(sizes[classes == k].sum()) for k, name in class_numbers(labels).items()}


def _voxels(values: NDArray[Any], labels: Labels) -> dict[str, int]:
    return {c.name: int(np.count_nonzero(np.isin(values, c.values))) for c in labels.classes}
