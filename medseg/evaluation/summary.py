"""Scores of cases to summaries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.dataset import Labels
from medseg.evaluation.records import Before, CaseScores, Evaluation, Presence, Summary, defined
from medseg.metrics.statistics import mean_interval


def summarise(
    cases: Sequence[CaseScores],
    labels: Labels,
    metrics: tuple[str, ...],
    title: str,
    missing: Sequence[str] = (),
    extra: Sequence[str] = (),
    spaced: bool = True,
    selected: bool = False,
    before: Before | None = None,
) -> Evaluation:
    """The evaluation of scored cases; `spaced` says whether their files know millimetres, `selected` and `before` see `Evaluation`."""
    names = labels.names
    tables = {
        m: np.array([[np.nan if (v := c.scores[name][m]) is None else v for name in names] for c in cases], dtype=np.float64)
        for m in metrics
    }
    return Evaluation(
        title=title,
        labels=labels,
        unit="mm" if spaced else "px",
        metrics=metrics,
        overall={m: _summary(table) for m, table in tables.items()},
        classes={name: {m: _summary(table[:, i]) for m, table in tables.items()} for i, name in enumerate(names)},
        presence={name: _presence(cases, name) for name in names},
        missing=tuple(missing),
        extra=tuple(extra),
        selected=selected,
        before=before or Before(),
        cases=tuple(cases),
    )


def case_means(evaluation: Evaluation, metric: str) -> NDArray[np.float64]:
    """`(cases,)` mean over the classes that are defined, NaN where none is."""
    table = evaluation.values(metric)
    count = (~np.isnan(table)).sum(axis=1)
    means: NDArray[np.float64] = np.divide(np.nansum(table, axis=1), count, out=np.full(len(table), np.nan), where=count > 0)
    return means


def _summary(values: NDArray[np.float64]) -> Summary:
    """Summary of `(cases,)` values; of `(cases, classes)` values the mean is that of the class means, all else is over case means."""
    interval = mean_interval(values)
    if values.ndim == 2:
        some = ~np.isnan(values)
        values = np.array([row[ok].mean() for row, ok in zip(values, some, strict=True) if ok.any()])
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return Summary(n=0, mean=None, low=None, high=None)
    low, q1, median, q3, high = (float(v) for v in np.percentile(known, [0, 25, 50, 75, 100]))
    return Summary(
        n=len(known),
        mean=defined(interval.mean),
        low=defined(interval.low),
        high=defined(interval.high),
        std=float(known.std(ddof=1)) if len(known) > 1 else None,
        minimum=low,
        q1=q1,
        median=median,
        q3=q3,
        maximum=high,
    )


def _presence(cases: Sequence[CaseScores], name: str) -> Presence:
    pairs = [(c.reference[name] > 0, c.predicted[name] > 0) for c in cases]
    return Presence(
        found=pairs.count((True, True)),
        missed=pairs.count((True, False)),
        false_alarm=pairs.count((False, True)),
        absent=pairs.count((False, False)),
    )
