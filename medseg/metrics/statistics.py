"""Statistics over cases: how sure a mean is, and whether two methods differ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 5000
SEED = 0
SMALLEST_GAIN = 0.0005  # of a mean score; less is not worth acting upon
FEWEST_CASES = 5  # fewer prove nothing
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval; NaN where there is too little to say."""

    mean: float
    low: float
    high: float

    @property
    def proven(self) -> bool:
        """Whether a mean gain is worth acting upon and beyond doubt."""
        return self.mean >= SMALLEST_GAIN and self.low > 0


def mean_interval(values: Floats) -> Interval:
    """Mean of defined values with its 95 % bootstrap interval: cases drawn with replacement, percentile method (Efron 1979).

    Args:
        values: `(cases,)`, or `(cases, columns)` for the mean of the column means (all columns of a case are drawn together). NaN is
            undefined and skipped.

    Returns:
        The interval is NaN for fewer than two cases with a defined value. Deterministic: the generator is seeded.
    """
    table = (values if values.ndim == 2 else values[:, None]).astype(np.float64)
    table = table[~np.isnan(table).all(axis=1)]
    table = table[:, ~np.isnan(table).all(axis=0)]
    n = len(table)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(_column_means(table, np.ones((1, n)))[0])
    if n == 1:
        return Interval(mean, math.nan, math.nan)
    means = [_column_means(table, weights) for weights in resamples(n)]
    low, high = np.nanpercentile(np.concatenate(means), [2.5, 97.5])
    return Interval(mean, min(float(low), mean), max(float(high), mean))


def resamples(cases: int, count: int = RESAMPLES) -> Iterator[Floats]:
    """How often each case is drawn in each of `count` bootstrap samples: arrays `(rows, cases)`, always the same ones."""
    rng = np.random.default_rng(SEED)
    step = max(1, 2_000_000 // cases)  # keeps the weights below 16 MB for any number of cases
    for start in range(0, count, step):
        rows = min(step, count - start)
        drawn = rng.integers(0, cases, (rows, cases)) + cases * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * cases).reshape(rows, cases).astype(np.float64)


def _column_means(table: Floats, weights: Floats) -> Floats:
    """For each row of case weights `(r, cases)`: the mean over columns of the weighted means of defined values, `(r,)`."""
    defined = ~np.isnan(table)
    count = weights @ defined.astype(np.float64)
    total: Floats = weights @ np.where(defined, table, 0.0)
    means = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    some = ~np.isnan(means)
    columns = some.sum(axis=1)
    summed = np.where(some, means, 0.0).sum(axis=1)
    result: Floats = np.divide(summed, columns, out=np.full(len(means), np.nan), where=columns > 0)
    return result


def wilcoxon(differences: Floats) -> float:
    """Two-sided p value of the Wilcoxon signed-rank test (1945) for paired differences; zeros are dropped, NaN is skipped.

    Exact for at most 50 differences without ties, else by normal approximation. 1 when all differences are zero, NaN when there are none.
    """
    defined = differences[~np.isnan(differences)]
    moved = defined[defined != 0]
    if len(defined) == 0:
        return math.nan
    if len(moved) == 0:
        return 1.0
    from scipy import stats

    return float(stats.wilcoxon(moved).pvalue)


def holm(p_values: list[float]) -> list[float]:
    """p values adjusted for testing several hypotheses at once (Holm 1979); NaN stays NaN and counts as no test."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted = list(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(tested):
        running = max(running, min(1.0, p * (len(tested) - rank)))
        adjusted[i] = running
    return adjusted
