"""The verbs that only tell: the reasons of a plan, what two plans or two evaluations differ in, and how a model meets DICOM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.evaluation.records import Comparison
from medseg.evaluation.selection import Selection
from medseg.held_out import trained_with
from medseg.planning.difference import Change
from medseg.planning.difference import difference as plan_difference
from medseg.planning.explain import Decision
from medseg.planning.explain import explain as explain_plan
from medseg.plans import Plan
from medseg.preconditions import check_one_plan, read_plan
from medseg.progress import Progress, Silent
from medseg.steps import plan_of
from medseg.workspace import RunFolder, Workspace

if TYPE_CHECKING:
    from medseg.inference.inputs import Chosen
    from medseg.io.dicom.settings import DicomSettings

SILENT = Silent()


def explain(plan_file: Path) -> tuple[Decision, ...]:
    """Every decision of a plan, or of a model folder's plan, with its reason; with the evidence where the fingerprint lies beside it.

    Of a model that was selected of several it begins with that choice; its partners are model folders of their own.
    """
    folder = RunFolder(plan_file) if plan_file.is_dir() else None
    if folder is not None:
        check_one_plan(folder.root)
    workspace = Workspace.of_plan(plan_file) if folder is None else Workspace(plan_file / "workspace")
    selection = Selection.load(folder.selection_file) if folder is not None and folder.selection_file.is_file() else None
    fingerprint = workspace.fingerprint() if workspace.fingerprint_file.is_file() else None
    chosen = [] if selection is None else [Decision(field="selected", value=" + ".join(selection.chosen), reason=selection.reason)]
    return (*chosen, *explain_plan(Plan.load(plan_file if folder is None else folder.plan_file), fingerprint))


def difference(first: Path, second: Path) -> tuple[Change, ...]:
    """Every field in which two plan files differ, with both values and both reasons; none for equal plans."""
    return plan_difference(read_plan(first), read_plan(second))


def compare(first: Path, second: Path) -> Comparison:
    """Compare two evaluations case by case; each is given as a report folder or as a run that has one."""
    from medseg.evaluation.comparison import compare as compare_evaluations
    from medseg.evaluation.comparison import open_evaluation

    found = compare_evaluations(open_evaluation(first), open_evaluation(second))
    a, b = (trained_with(RunFolder(path if RunFolder(path).report.is_dir() else path.parent)) for path in (first, second))
    return (
        found.model_copy(update={"trained_apart": tuple(case for case in found.cases if a.get(case) != b.get(case))}) if a and b else found
    )


def choice(run: Path, inputs: Sequence[Path], series: Sequence[str] = (), *, progress: Progress = SILENT) -> Chosen:
    """Which cases `predict` would make of its inputs, and for DICOM which series serve as which channels, and why the others do not."""
    from medseg.inference.inputs import chosen
    from medseg.io.dicom.rules import settings_of, with_series

    data, folder = plan_of(run).data, RunFolder(run)
    settings = settings_of(folder.dicom_file, data.channels, data.labels.names)
    return chosen(inputs, data.channels, with_series(settings, series, data.channels), data.ndim, progress)


def dicom(run: Path) -> DicomSettings:
    """By which rules DICOM series serve as the channels of a model, and the terms of its classes: what `RUN/dicom.json` says, and what follows
    from names where it does not."""
    from medseg.io.dicom.rules import effective, settings_of

    data = plan_of(run).data
    return effective(settings_of(RunFolder(run).dicom_file, data.channels, data.labels.names), data.channels, data.labels, data.name)
