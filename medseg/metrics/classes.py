"""All scores of one case, class by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import Labels
from medseg.errors import UsageError
from medseg.imaging.crop import union, value_boxes
from medseg.metrics.descriptions import METRICS, describe, tolerance
from medseg.metrics.lesions import lesion_f1
from medseg.metrics.overlap import Counts, Mask
from medseg.metrics.surface import Surfaces
from medseg.prediction import Scores


def score_classes(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    labels: Labels,
    spacing: tuple[float, ...],
    metrics: Iterable[str] | None = None,
) -> Scores:
    """Score a label map against the reference, class by class.

    Args:
        prediction: `(*shape)` integer voxel values as written.
        truth: `(*shape)` integer voxel values of the reference; voxels with `labels.ignore` count nowhere.
        labels: the classes; a class is the set of voxels with one of its values, so regions may overlap.
        spacing: mm per axis.
        metrics: names of `METRICS` (or `nsd@X`), in the order wanted; None means all.

    Returns:
        Class name -> metric name -> value, NaN where undefined (see `medseg.metrics` for the rule about empty masks).

    Raises:
        UsageError: an unknown metric.
        ValueError: shapes or number of spacings differ.
    """
    if prediction.shape != truth.shape or len(spacing) != truth.ndim:
        raise ValueError(f"prediction {prediction.shape}, truth {truth.shape} and spacing {spacing} do not belong together")
    names = tuple(METRICS) if metrics is None else tuple(metrics)
    computations = {name: _computation(name) for name in names}
    if labels.ignore is not None:
        keep = truth != labels.ignore
        prediction, truth = np.where(keep, prediction, 0), np.where(keep, truth, 0)
    diagonal = math.hypot(*((n - 1) * s for n, s in zip(truth.shape, spacing, strict=True)))
    boxes = (value_boxes(prediction, labels.values), value_boxes(truth, labels.values))
    scores: Scores = {}
    for cls in labels.classes:
        box = union([b[value] for b in boxes for value in cls.values if value in b], truth.ndim)
        pair = _Pair(_mask(prediction[box], cls.values), _mask(truth[box], cls.values), tuple(map(float, spacing)), diagonal)
        scores[cls.name] = {name: compute(pair) for name, compute in computations.items()}
    return scores


@dataclass(frozen=True)
class _Pair:
    """Masks of one class, cropped to what they occupy together, and what several metrics share."""

    prediction: Mask
    truth: Mask
    spacing: tuple[float, ...]
    diagonal: float

    @cached_property
    def counts(self) -> Counts:
        return Counts.of(self.prediction, self.truth)

    @cached_property
    def surfaces(self) -> Surfaces:
        return Surfaces.between(self.prediction, self.truth, self.spacing)

    def surface(self, one_empty: float, measure: Callable[[Surfaces], float]) -> float:
        """`measure` of both surfaces, or what the rule for empty masks says."""
        if self.counts.reference and self.counts.predicted:
            return measure(self.surfaces)
        return one_empty if self.counts.reference or self.counts.predicted else math.nan


def _computation(name: str) -> Callable[[_Pair], float]:
    describe(name)
    base = name.partition("@")[0]
    if base not in METRICS:
        raise UsageError.of("a metric of objects", found=f"'{name}'", expected=f"one of {', '.join(METRICS)}, or nsd@MILLIMETRES")
    near = tolerance(name) if base == "nsd" else 0.0
    return {
        "dice": lambda p: p.counts.dice,
        "iou": lambda p: p.counts.iou,
        "sensitivity": lambda p: p.counts.sensitivity,
        "precision": lambda p: p.counts.precision,
        "volume_error": lambda p: p.counts.volume_error,
        "lesion_f1": lambda p: lesion_f1(p.prediction, p.truth),
        "nsd": lambda p: p.surface(0.0, lambda s: s.dice(near)),
        "hd95": lambda p: p.surface(p.diagonal, lambda s: s.hausdorff(95)),
        "assd": lambda p: p.surface(p.diagonal, lambda s: s.average),
    }[base]


def _mask(array: NDArray[Any], values: tuple[int, ...]) -> Mask:
    return array == values[0] if len(values) == 1 else np.isin(array, values)
