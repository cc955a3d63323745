"""Intervals and tests against scipy and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medseg.metrics.statistics import holm, mean_interval, wilcoxon


def test_interval_like_scipy():
    values = np.random.default_rng(0).beta(8, 2, 60)
    ours = mean_interval(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=1).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.15 * (theirs.high - theirs.low))


def test_interval_covers_the_mean_about_95_times_in_100():
    rng = np.random.default_rng(3)
    covered = sum(i.low <= 0 <= i.high for i in (mean_interval(rng.normal(size=40)) for _ in range(200)))
    assert 180 <= covered <= 199


def test_interval_of_class_means_draws_cases_whole():
    # The two classes cancel within each case, so their mean is certain, though each class alone is not.
    first = np.array([0.0, 1.0, 0.2, 0.8])
    table = np.stack([first, 1 - first], axis=1)
    both, one = mean_interval(table), mean_interval(first)
    assert (both.mean, both.low, both.high) == pytest.approx((0.5, 0.5, 0.5))
    assert one.high - one.low > 0.4


def test_undefined_values_are_left_out():
    values = np.array([0.5, np.nan, 0.7, np.nan])
    assert mean_interval(values) == mean_interval(np.array([0.5, 0.7]))
    table = np.array([[1.0, np.nan], [0.0, np.nan], [np.nan, 0.8], [np.nan, np.nan]])
    assert mean_interval(table).mean == pytest.approx((0.5 + 0.8) / 2)


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_nothing_to_say(values):
    assert all(math.isnan(v) for v in vars(mean_interval(np.array(values))).values())


def test_one_case_has_no_interval():
    interval = mean_interval(np.array([0.9, np.nan]))
    assert interval.mean == 0.9
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_deterministic_and_constant():
    values = np.full(10, 0.3)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values).low == pytest.approx(0.3)


def test_wilcoxon():
    differences = np.array([0.1, 0.2, 0.3, 0.4, 0.5, np.nan])
    assert wilcoxon(differences) == pytest.approx(2 / 2**5)  # exact: one of 32 sign patterns on either side
    assert wilcoxon(np.array([0.0, 0.0])) == 1.0
    assert wilcoxon(np.append(differences, 0.0)) == wilcoxon(differences)
    assert math.isnan(wilcoxon(np.array([np.nan])))
    assert wilcoxon(-differences) == wilcoxon(differences)
    assert wilcoxon(np.array([0.5])) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, math.nan, 0.9]) == pytest.approx([1.0, math.nan, 1.0], nan_ok=True)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_between_p_and_bonferroni(p_values):
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p <= adjusted <= min(1.0, p * len(p_values)) + 1e-12
