"""What is refused of an image before or while it is predicted, and how a failure is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg.case import Case
from medseg.dataset import CaseFiles, Labels
from medseg.device import out_of_memory
from medseg.errors import ImageError, MedsegError, ModelError, Problem
from medseg.plans import DataPlan, Plan
from medseg.prediction import Prediction
from medseg.progress import Progress
from medseg.scratch import Scratch, release, row_slabs
from medseg.tasks.base import find_task


def check_fit(data: DataPlan, case_id: str, channels: int, shape: tuple[int, ...], path: Path | None = None) -> None:
    """Whether a model of such data can be asked about an image at all. Raises ImageError."""
    where = str(path) if path is not None else f"case '{case_id}'"
    problems = []
    if len(shape) != data.ndim:
        problems.append(
            Problem(
                "has the wrong number of dimensions",
                where,
                f"{len(shape)}D, shape {shape}",
                f"{data.ndim}D, as model '{data.name}' was trained on",
                "Use a model for such images.",
            )
        )
    if channels != len(data.channels):
        names = ", ".join(channel.name for channel in data.channels)
        problems.append(
            Problem(
                "has the wrong number of channels",
                where,
                f"{channels}",
                f"{len(data.channels)} ({names}), as model '{data.name}' was trained on",
                "Give one file with all channels, or one file per channel named CASE_0000, CASE_0001, ... in this order.",
            )
        )
    if problems:
        raise ImageError(problems)


def check_partners(plan: Plan, others: Sequence[Plan]) -> None:
    """Whether models can say together what the model of `plan` says alone. Raises ModelError with all that differs."""
    problems = [
        Problem(
            f"a member of the ensemble has other {what}",
            where=f"plan '{other.name}' of '{other.data.name}'",
            found=str(theirs),
            expected=f"{ours}, as in plan '{plan.name}'",
            fix="Select of models of one dataset.",
        )
        for other in others
        for what, ours, theirs in (
            ("classes", plan.data.labels, other.data.labels),
            ("channels", plan.data.channels, other.data.channels),
            ("tasks", plan.task, other.task),
            ("dimensions", plan.data.ndim, other.data.ndim),
        )
        if ours != theirs
    ]
    if others and not find_task(plan.task).combines:
        problems.append(
            Problem(
                "models of this task cannot be combined",
                where=f"plan '{plan.name}'",
                found=f"{len(others) + 1} models of task '{plan.task}'",
                expected="one",
                fix="Predict with one of them.",
            )
        )
    if problems:
        raise ModelError(problems)


def check_voxels(case: Case, labels: Labels | None = None) -> bool:
    """NaN, infinite or constant images would come out as nonsense without a word.

    Where all of `labels` are things, an image that is constant in every channel is sound: an empty field of a plate shows no object. Of other
    classes each voxel has one, which nobody can see there.

    Returns:
        Whether there is something to see.

    Raises:
        ImageError: all else that cannot be predicted.
    """
    constant: list[Problem] = []
    for index, channel in enumerate(case.image):
        where = f"case '{case.id}', channel {index}"
        if channel.size == 0:
            raise ImageError.of("holds no voxel", where=where, found=f"shape {channel.shape}")
        low, high, bad = math.inf, -math.inf, 0
        for rows in row_slabs(channel.shape):
            part = channel[rows]
            lowest, highest = float(part.min()), float(part.max())
            if not math.isfinite(lowest) or not math.isfinite(highest):
                bad += int(np.count_nonzero(~np.isfinite(part)))
            low, high = min(low, lowest), max(high, highest)
            release(channel)
        if bad:
            raise ImageError.of(
                "holds NaN or infinite voxels",
                where=where,
                found=f"{bad} of {channel.size}",
                expected="finite intensities",
                fix="Repair the image, for example by replacing them with the background's value.",
            )
        if low == high:
            fix = "Check how the image was exported."
            constant.append(Problem("is constant: there is nothing to see", where, f"{low:g} everywhere", fix=fix))
    objects = labels is not None and set(labels.things) == set(labels.names)
    if constant and not (objects and len(constant) == len(case.image)):
        raise ImageError(constant)
    return not constant


def empty_field(case: Case, labels: Labels, probabilities: bool, scratch: Scratch, progress: Progress) -> Prediction:
    """What is predicted of an image in which there is nothing to see: no object. Probabilities are those of background and the classes."""
    progress.say(
        f"warning: case '{case.id}' is constant: no object is predicted; check how the image was exported, unless its field is empty"
    )
    chances = None
    if probabilities:
        chances = scratch.zeros((1 + len(labels.names), *case.grid.shape), np.float16)
        chances[0] = 1
    return Prediction(case.id, scratch.zeros(case.grid.shape, labels.dtype), chances, objects={})


def case_problems(files: CaseFiles, error: Exception) -> tuple[Problem, ...]:
    """What failed in a case; of an error that nobody foresaw its kind and the first line of its message, not its traceback."""
    if isinstance(error, MedsegError):
        return error.problems
    kind, first = type(error).__name__, (str(error).strip().splitlines() or [""])[0]
    fix = (
        "Pass a smaller --memory, or predict on another device (--device)."
        if out_of_memory(error)
        else "Check this case's files; if they are sound, please report this as a bug of medseg."
    )
    return (Problem("could not be predicted", f"case '{files.id}', {files.images[0]}", kind + (f": {first}" if first else ""), "", fix),)
