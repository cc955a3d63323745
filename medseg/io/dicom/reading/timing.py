"""Several images at one position: which of them belong to which time point, and when that was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseg.errors import Problem
from medseg.io.dicom.reading.planes import ORDER, Plane

MATCHED = ("TemporalPositionIndex", "TemporalPositionIdentifier", "TemporalPositionTimeOffset", "TriggerTime",
           "NominalCardiacTriggerDelayTime", "NominalPercentageOfCardiacPhase", "AcquisitionNumber", "FrameAcquisitionNumber",
           "DiffusionBValue", "file")  # fmt: skip
"""Clocks whose values mean the same at every position."""
LEFT_OUT = 0.25  # share of the images that a time series may lose where some positions lack time points; more is no truncated series
FEW_OUT = 0.1  # the same where only acquisitions are numbered: these may as well be phases of which each matters
CARDIAC = ("TriggerTime", "NominalCardiacTriggerDelayTime")
COUNTED = ("InstanceNumber", "file", "content", "frame")
"""Clocks that say in which order images were made, and nothing of why there are several at a position."""


@dataclass(frozen=True)
class Timed:
    """Images in order.

    Attributes:
        slices: `slices[z][t]`, as many at every position.
        whole: positions (by number) and images of positions that hold more images than are common to all; empty where little is left out.
        warnings: what was left out.
        errors: why the images cannot be ordered.
    """

    slices: list[list[Plane]]
    whole: tuple[tuple[int, list[Plane]], ...] = ()
    warnings: tuple[Problem, ...] = ()
    errors: tuple[Problem, ...] = ()


def in_time(stacks: Sequence[Sequence[Plane]]) -> Timed:
    """Time points of images by position."""
    counts = [len(stack) for stack in stacks]
    if max(counts) == 1:
        return Timed([list(stack) for stack in stacks])
    names = [name for name in ORDER if all(_tells(name, stack) for stack in stacks)]
    if not names:
        return Timed([[stack[0]] for stack in stacks], errors=(_same_place(stacks),))
    if min(counts) == max(counts):
        slices = [sorted(stack, key=lambda plane: plane.clock[names[0]]) for stack in stacks]
        return Timed(slices, warnings=_axis(names[0], slices[0]))
    for name in names:
        if name in MATCHED and (matched := _matched(name, stacks)) is not None and _bearable(name, sum(map(len, matched)), sum(counts)):
            return _common(name, stacks, matched)
    return Timed([[stack[0]] for stack in stacks], errors=(_unequal(counts),))


def _axis(name: str, points: Sequence[Plane]) -> tuple[Problem, ...]:
    """What time points are where they are no times."""
    weights = [plane.clock.get("b") for plane in points]
    if None not in weights and len(set(weights)) > 1:
        return (Problem("time points are diffusion weightings", found=f"b = {_listed(weights)} s/mm2", expected="times"),)
    if name == "NominalPercentageOfCardiacPhase":
        found = _listed([plane.clock[name] for plane in points])
        return (Problem("time points are phases of the heart", found=f"{found} % of its cycle", expected="times"),)
    if name in COUNTED:
        return (
            Problem(
                "several images lie at each position, and no header says in what they differ; they are taken as time points",
                found=f"{len(points)} images, in the order of their numbers",
                expected="times, or marks of different images",
                fix="Look at them; images that are no time points belong into series of their own.",
            ),
        )
    return ()


def _listed(values: Sequence[float | None]) -> str:
    """Each value once, in the order of time points, with how many have it."""
    counts = Counter(values)
    told = [f"{value:g}" + (f" ({count} times)" if count > 1 else "") for value, count in counts.items()]
    return ", ".join(told[:12]) + (", ..." if len(told) > 12 else "")


def _bearable(name: str, kept: int, held: int) -> bool:
    """Whether what is common is a time series that was cut short; of a heart's phases, the whole ones are volumes besides."""
    few = FEW_OUT if name in ("AcquisitionNumber", "FrameAcquisitionNumber") else LEFT_OUT
    return name in CARDIAC or kept >= held * (1 - few)


def _tells(name: str, stack: Sequence[Plane]) -> bool:
    values = {plane.clock.get(name) for plane in stack}
    return None not in values and len(values) == len(stack)


def _matched(name: str, stacks: Sequence[Sequence[Plane]]) -> list[list[tuple[int, Plane]]] | None:
    """Each image with the number of its time point, those of the fullest position being numbered; only points that all positions have.

    None where values do not match, or no point is at all positions.
    """
    values = [sorted((_value(name, plane), i) for i, plane in enumerate(stack)) for stack in stacks]
    reference = np.array([value for value, _ in max(values, key=len)])
    reach = np.diff(reference).min() / 2 if len(reference) > 1 else 0.5
    found: list[dict[int, Plane]] = []
    for stack, ordered in zip(stacks, values, strict=True):
        points: dict[int, Plane] = {}
        for value, i in ordered:
            nearest = int(np.abs(reference - value).argmin())
            if abs(reference[nearest] - value) >= reach or nearest in points:
                return None
            points[nearest] = stack[i]
        found.append(points)
    common = set.intersection(*(set(points) for points in found))
    return [[(t, points[t]) for t in sorted(common)] for points in found] if common else None


def _value(name: str, plane: Plane) -> float:
    value = plane.clock[name]
    interval = plane.clock.get("interval")
    return value / interval if name in CARDIAC and interval else value


def _common(name: str, stacks: Sequence[Sequence[Plane]], matched: list[list[tuple[int, Plane]]]) -> Timed:
    slices = [[plane for _, plane in points] for points in matched]
    kept, held = sum(map(len, slices)), sum(map(len, stacks))
    counts = sorted({len(stack) for stack in stacks})
    warning = Problem(
        "positions hold different numbers of images; time points that some positions lack are left out",
        found=f"{counts[0]} to {counts[-1]} images at a position",
        expected=f"the {len(slices[0])} that all {len(stacks)} positions have",
    )
    whole = []
    if kept * 2 < held:
        for z, stack in enumerate(stacks):
            if len(stack) > len(slices[0]):
                whole.append((z, sorted(stack, key=lambda plane: plane.clock[name])))
    return Timed(slices, tuple(whole), (warning,))


def _same_place(stacks: Sequence[Sequence[Plane]]) -> Problem:
    many = [stack for stack in stacks if len(stack) > 1]
    if many[0][0].series.modality == "RTDOSE":
        return Problem(
            "several doses (RTDOSE) lie at one place, and nothing says which is meant",
            str(many[0][0].frame.source),
            f"{len(many)} such planes, up to {max(map(len, many))} doses each",
            "one dose, such as that of the whole plan",
            "Give the file of one dose alone.",
        )
    return Problem(
        "several different images lie at one position, and their headers do not say which comes when",
        str(many[0][0].frame.source),
        f"{len(many)} such positions, up to {max(map(len, many))} images each",
        "one image at each position, or a temporal position, trigger time, acquisition or instance number that differs",
        "Remove the copies, or split the series.",
    )


def _unequal(counts: Sequence[int]) -> Problem:
    usual = int(np.median(counts))
    odd = [z + 1 for z, count in enumerate(counts) if count != usual]
    return Problem(
        "positions hold different numbers of images, which cannot be matched",
        found=f"{min(counts)} to {max(counts)} images at a position; other than {usual} at position {', '.join(map(str, odd[:8]))}"
        + (", ..." if len(odd) > 8 else ""),
        expected="as many at each",
        fix="Images are missing or doubled: export the series again, or split it.",
    )


def weights_of(slices: Sequence[Sequence[Plane]]) -> tuple[float, ...]:
    """The diffusion weighting of each time point, where all images say one and those of a time point agree; else empty."""
    found = [{images[t].clock.get("b") for images in slices} for t in range(len(slices[0]))]
    weights = [one.pop() for one in found if len(one) == 1]
    return tuple(weight for weight in weights if weight is not None) if len(weights) == len(found) and None not in weights else ()


def times_of(slices: Sequence[Sequence[Plane]]) -> tuple[float, ...]:
    """Seconds of time points from the first on, where headers tell; else 0, 1, ..."""
    count = len(slices[0])
    if count > 1:
        for name, scale in (
            ("TemporalPositionTimeOffset", 1.0),
            ("TriggerTime", 1e-3),
            ("NominalCardiacTriggerDelayTime", 1e-3),
            ("FrameReferenceTime", 1e-3),
            ("acquired", 1.0),
        ):
            values = [plane.clock.get(name) for plane in slices[0]]
            known = np.array([value for value in values if value is not None]) * scale
            if len(known) == count and (np.diff(known) > 0).all():
                return tuple(round(float(value), 4) for value in known - known[0])
    return tuple(float(t) for t in range(count))
