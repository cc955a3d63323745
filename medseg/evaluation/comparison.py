"""Do two methods differ on the same cases?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.errors import Problem, UsageError
from medseg.evaluation.records import SUMMARY_FILE, Comparison, Difference, Evaluation, defined
from medseg.evaluation.summary import case_means
from medseg.metrics import METRICS, Better
from medseg.metrics.statistics import holm, mean_interval, wilcoxon
from medseg.workspace import RunFolder

ALL = "mean of classes"
"""Name of the row that compares the mean over classes of each case."""


def open_evaluation(path: Path) -> Evaluation:
    """Read the evaluation in a report folder, or in a run that has one.

    Raises:
        UsageError: there is none.
    """
    report = RunFolder(path).report
    found = report if report.is_dir() else path
    if not (found / SUMMARY_FILE).is_file():
        raise UsageError.of(
            "holds no evaluation",
            where=str(path),
            expected=SUMMARY_FILE,
            fix="Pass a folder that `medseg evaluate` or `medseg run` wrote.",
        )
    return Evaluation.open(found)


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Compare two evaluations case by case: paired Wilcoxon test and bootstrap interval of the mean difference b - a.

    Only cases in both count; the others are listed. p values are also adjusted for the number of classes (Holm).

    Raises:
        UsageError: the two share no case, no class or no metric.
    """
    cases = tuple(i for i in a.ids if i in set(b.ids))
    classes = tuple(name for name in a.labels.names if name in b.labels.names)
    metrics = tuple(m for m in a.metrics if m in b.metrics)
    problems = [
        Problem(
            f"two evaluations without a common {what}", found=f"{', '.join(x[:4])} and {', '.join(y[:4])}", fix="Evaluate the same data."
        )
        for what, common, x, y in (
            ("case", cases, a.ids, b.ids),
            ("class", classes, a.labels.names, b.labels.names),
            ("metric", metrics, a.metrics, b.metrics),
        )
        if not common
    ]
    if problems:
        raise UsageError(problems)
    rows_a, rows_b = [a.ids.index(i) for i in cases], [b.ids.index(i) for i in cases]
    differences: list[Difference] = []
    for metric in metrics:
        table_a, table_b = a.values(metric)[rows_a], b.values(metric)[rows_b]
        group = [
            _difference(name, metric, table_a[:, a.labels.names.index(name)], table_b[:, b.labels.names.index(name)]) for name in classes
        ]
        adjusted = holm([float("nan") if d.p is None else d.p for d in group])
        differences += [d.model_copy(update={"p_holm": defined(p)}) for d, p in zip(group, adjusted, strict=True)]
        if len(classes) > 1 and a.labels.names == b.labels.names:
            differences.append(_difference(ALL, metric, case_means(a, metric)[rows_a], case_means(b, metric)[rows_b]))
    only_a, only_b = (tuple(i for i in x.ids if i not in set(cases)) for x in (a, b))
    return Comparison(a=a.title, b=b.title, cases=cases, only_a=only_a, only_b=only_b, differences=tuple(differences))


def _difference(name: str, metric: str, a: np.ndarray, b: np.ndarray) -> Difference:
    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[both], b[both]
    interval, p = mean_interval(b - a), wilcoxon(b - a)
    base = METRICS.get(metric.partition("@")[0])
    better = base.better if base else Better.up
    good_a, good_b = {Better.up: (a, b), Better.down: (-a, -b), Better.zero: (-np.abs(a), -np.abs(b))}[better]
    return Difference(
        cls=name,
        metric=metric,
        n=len(a),
        mean_a=float(a.mean()) if len(a) else None,
        mean_b=float(b.mean()) if len(b) else None,
        difference=defined(interval.mean),
        low=defined(interval.low),
        high=defined(interval.high),
        better_a=int((good_a > good_b).sum()),
        better_b=int((good_b > good_a).sum()),
        p=defined(p),
        p_holm=defined(p),
    )
