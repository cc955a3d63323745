"""What evaluation finds out: scores per case, summaries per class, and the comparison of two evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medseg.dataset import Labels
from medseg.record import Record

SUMMARY_FILE = "summary.json"
CASES_FILE = "cases.csv"
OBJECTS_FILE = "objects.csv"
PAGE_FILE = "index.html"


class Summary(Record):
    """One metric over the cases in which it is defined; None where there are too few (see `medseg.metrics` for undefined values).

    Attributes:
        n: cases with a defined value.
        low, high: 95 % bootstrap interval of the mean.
    """

    n: int
    mean: float | None
    low: float | None
    high: float | None
    std: float | None = None
    minimum: float | None = None
    q1: float | None = None
    median: float | None = None
    q3: float | None = None
    maximum: float | None = None


class Presence(Record):
    """In how many cases a class is present or not, and whether the prediction says so.

    Attributes:
        found: in the reference and predicted at all.
        missed: in the reference, nothing predicted.
        false_alarm: not in the reference, yet predicted.
        absent: rightly not predicted.
    """

    found: int
    missed: int
    false_alarm: int
    absent: int


class Matched(Record):
    """Objects of one class, of one case or of all together, matched as panoptic quality does (IoU above 0.5)."""

    matched: int
    missed: int
    invented: int
    iou: float = Field(description="Sum of the IoU of matched objects.")


class CaseScores(Record):
    """One case: class -> metric -> value, None where undefined; and the voxels of each class in reference and prediction.

    `objects` has the objects of each class, where classes are things.
    """

    seldom: ClassVar[tuple[str, ...]] = ("objects",)

    id: str
    scores: dict[str, dict[str, float | None]]
    reference: dict[str, int]
    predicted: dict[str, int]
    objects: dict[str, Matched] | None = None


class Before(Record):
    """What the models that this one began with (`--init`) had to do with the cases that are scored.

    Attributes:
        cases: how many of them some such model was trained on, so that their scores say little about unseen ones.
        unknown: such models that do not say what they were trained on.
    """

    cases: int = 0
    unknown: tuple[str, ...] = ()

    def told(self, count: int) -> tuple[str, ...]:
        """What to say of it about `count` cases."""
        lines = []
        if self.cases:
            lines.append(
                f"{self.cases} of these {count} cases were trained on by the model that this one began with (--init), so their scores say little "
                "about unseen ones"
            )
        if self.unknown:
            names = ", ".join(f"'{name}'" for name in self.unknown)
            lines.append(
                f"it is unknown which cases {names} was trained on, with which this model began (--init); the scores of those among them are "
                "optimistic"
            )
        return tuple(lines)


class Estimate(Record):
    """A score of all cases together with its 95 % bootstrap interval over cases; None where undefined."""

    value: float | None
    low: float | None
    high: float | None


class SizeGroup(Record):
    """Objects of the reference between two sizes in voxels, both included, and how many were found (IoU of 0.5)."""

    smallest: int
    largest: int
    objects: int
    found: int


class ObjectScores(Record):
    """Scores of the objects of all cases together: counts are added up before ratios are taken.

    Attributes:
        metrics: names; see `medseg.metrics.instances`.
        things: classes that have objects; each of the others counts as one object per case, and has panoptic quality only.
        classes: class -> metric -> score.
        means: `all`, and `things` and `stuff` where there are both -> metric -> mean over the classes in which it is defined.
        counts: class -> objects that matched or did not.
        thresholds: IoU at which the `curves` are: class -> metric -> scores.
        precision: class -> precision at sensitivities 0, 0.01, ... 1, objects matching at an IoU of 0.5; with confidences only.
        froc: class -> false positives per case, and the sensitivity at each; with confidences, in 3D.
        sizes: class -> groups of objects, the smallest first.
        left_out: metric -> why it could not be computed.
        painted: cases without detections, of which average precision and FROC know the objects in the label map only. Written where there are.
    """

    seldom: ClassVar[tuple[str, ...]] = ("painted",)

    metrics: tuple[str, ...]
    things: tuple[str, ...]
    classes: dict[str, dict[str, Estimate]]
    means: dict[str, dict[str, Estimate]]
    counts: dict[str, Matched]
    thresholds: tuple[float, ...]
    curves: dict[str, dict[str, tuple[float | None, ...]]]
    precision: dict[str, tuple[float, ...]]
    froc: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
    sizes: dict[str, tuple[SizeGroup, ...]]
    left_out: dict[str, str]
    painted: int = 0

    def of_painted(self) -> str:
        """A sentence on `painted`; empty where all cases have detections."""
        if not self.painted:
            return ""
        return (
            f"Average precision and FROC of {self.painted} case{'s' if self.painted > 1 else ''} are of the objects in the label map alone, with the "
            "confidences of objects/<case>.csv: there is no detections/<case>.json, which would hold fainter ones, too."
        )


class Evaluation(Record):
    """The evaluation of a set of predictions.

    Attributes:
        title: what was evaluated.
        unit: of distances: `mm`, or `px` for photographs, whose files know no millimetres.
        metrics: names, the leading one first.
        classes: class -> metric -> summary over cases.
        overall: metric -> mean of the class means; cases are resampled for its interval.
        presence: class -> presence counts.
        missing: references without a prediction; they are not scored.
        extra: predictions without a reference; they are not scored.
        selected: weights (`--patience`), the configuration or cleaning rules were chosen by their scores on these very cases, so the
            scores are slightly optimistic.
        before: what models that this one began with saw of these cases.
        objects: scores of all cases together, where classes are things. Written where there are.
    """

    seldom: ClassVar[tuple[str, ...]] = ("objects",)

    format: int = Field(default=1, ge=1, le=1)
    title: str
    labels: Labels
    unit: Literal["mm", "px"] = "mm"
    metrics: tuple[str, ...] = Field(min_length=1)
    overall: dict[str, Summary]
    classes: dict[str, dict[str, Summary]]
    presence: dict[str, Presence]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    selected: bool = False
    before: Before = Before()
    objects: ObjectScores | None = None
    cases: tuple[CaseScores, ...] = Field(min_length=1)

    @property
    def ids(self) -> tuple[str, ...]:
        """Case ids."""
        return tuple(case.id for case in self.cases)

    def values(self, metric: str) -> NDArray[np.float64]:
        """`(cases, classes)` values of a metric, NaN where undefined."""
        return np.array([[_nan(case.scores[name].get(metric)) for name in self.labels.names] for case in self.cases], dtype=np.float64)

    @classmethod
    def open(cls, path: Path) -> Evaluation:
        """Read an evaluation from a report folder or its `summary.json`. Raises PlanError (see `Record.load`)."""
        return cls.load(path / SUMMARY_FILE if path.is_dir() else path)


class Difference(Record):
    """One class and metric in two evaluations, over the cases in which both define it.

    Attributes:
        n: paired cases.
        mean_a, mean_b: means over these cases.
        difference, low, high: mean of b - a with its 95 % bootstrap interval.
        better_a, better_b: cases in which a, or b, is strictly better.
        p: two-sided Wilcoxon signed-rank test.
        p_holm: p adjusted for all classes of this metric.
    """

    cls: str
    metric: str
    n: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    low: float | None
    high: float | None
    better_a: int
    better_b: int
    p: float | None
    p_holm: float | None


class Comparison(Record):
    """Two evaluations of the same cases, paired.

    Attributes:
        only_a, only_b: cases that the other one lacks.
        trained_apart: cases that are predicted by models which have trained on different cases, as far as the model folders say.
    """

    a: str
    b: str
    cases: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    trained_apart: tuple[str, ...] = ()
    differences: tuple[Difference, ...]


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def defined(value: float) -> float | None:
    """None for NaN: JSON has no NaN."""
    return None if np.isnan(value) else float(value)
