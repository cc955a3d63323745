"""The rule by which models are selected, on scores whose right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import TWO

from medseg.evaluation.records import CaseScores
from medseg.evaluation.selection import candidates, case_scores, choose, folder_name
from medseg.evaluation.summary import summarise
from medseg.metrics.statistics import mean_interval

SECONDS = {("a",): 1.0, ("b",): 2.0, ("c",): 4.0, ("a", "b"): 3.0, ("a", "c"): 5.0, ("b", "c"): 6.0, ("a", "b", "c"): 7.0}
BASE = np.linspace(0.5, 0.9, 12)[:, None] + np.array([0.0, 0.05])  # twelve cases that differ, two classes


def picked(**gains):
    """The choice where every candidate scores `BASE` plus a number, or one number per case."""
    scores = {tuple(name.split("_")): BASE + np.broadcast_to(np.asarray(gain, float), 12)[:, None] for name, gain in gains.items()}
    return choose(scores, SECONDS, "dice", "k")


def test_candidates():
    assert candidates(["a", "b"]) == (("a",), ("b",), ("a", "b"))
    assert candidates(["a", "b", "c"]) == (("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c"))
    assert folder_name(("b", "a")) == folder_name(("a", "b")) == "a+b"


def test_the_best_alone_where_together_is_not_better():
    found = picked(a=0, b=0.01, a_b=0.01)
    assert found.chosen == ("b",)
    assert found.reason == "The highest mean of the 2 models alone on 12 cases left out of training. No ensemble is better."
    best = found.candidates[0]
    assert (best.members, best.difference, best.seconds) == (("b",), None, 2.0)
    assert best.mean == pytest.approx(float(BASE.mean()) + 0.01)


def test_a_gain_must_be_worth_it_and_certain():
    assert picked(a=0, b=-0.1, a_b=0.0004).chosen == ("a",)  # certain, but too small
    assert picked(a=0, b=-0.1, a_b=0.0006).chosen == ("a", "b")
    unsure = [0.05, -0.04] * 6  # +0.005 on average, anything in a single case
    found = picked(a=0, b=-0.1, a_b=unsure)
    assert found.chosen == ("a",)
    assert "No ensemble is better beyond doubt; the best, 'a + b': +0.0050 (95 % interval -" in found.reason
    several = next(c for c in found.candidates if len(c.members) == 2)
    interval = mean_interval(np.array(unsure))
    assert (several.difference, several.difference_low, several.difference_high) == pytest.approx(
        (interval.mean, interval.low, interval.high)
    )


def test_members_are_named_best_first_and_the_reason_tells_the_cost():
    found = picked(a=0, b=0.02, a_b=0.05)
    assert found.chosen == ("b", "a")
    assert [c.members for c in found.candidates] == [("b", "a"), ("b",), ("a",)]
    assert found.reason == (
        "Together they are better than 'b' alone beyond doubt: +0.0300 (95 % interval +0.0300 to +0.0300) on 12 cases left out of training. "
        "A prediction takes 1.5 times as long."
    )


def test_the_smallest_ensemble_that_none_beats_beyond_doubt():
    close = [0.021 + d for d in (0.01, -0.01) * 6]  # 0.001 more than the pair on average, more or less in a single case
    found = picked(a=0, b=-0.1, c=-0.1, a_b=0.02, a_c=0.001, b_c=-0.1, a_b_c=close)
    assert found.chosen == ("a", "b")
    assert found.reason.endswith("'a + b + c' has a higher mean, but not beyond doubt, and more members.")
    assert found.candidates[0].members == ("a", "b", "c")
    assert picked(a=0, b=-0.1, c=-0.1, a_b=0.02, a_c=0.001, b_c=-0.1, a_b_c=0.021).chosen == ("a", "b", "c")
    # Of two pairs of the same worth it is the one with the higher mean.
    assert picked(a=0, b=-0.1, c=-0.1, a_b=0.0201, a_c=0.0204, b_c=-0.1, a_b_c=0.0).chosen == ("a", "c")


def test_of_equal_models_the_quicker_one():
    assert picked(a=0, b=0, a_b=0).chosen == ("a",)
    assert picked(b=0, a=0, a_b=0).chosen == ("a",)


def test_few_cases_prove_no_ensemble():
    scores = {("a",): np.full((4, 1), 0.5), ("b",): np.full((4, 1), 0.4), ("a", "b"): np.full((4, 1), 0.9)}
    found = choose(scores, SECONDS, "dice", "k")
    assert (found.chosen, found.cases) == (("a",), 4)
    assert found.reason.endswith("No ensemble is taken: 4 cases prove nothing.")


def test_a_class_that_is_rightly_absent_counts_as_perfect():
    def case(name, first, second):
        scores = {"anterior": {"dice": first}, "posterior": {"dice": second}}
        return CaseScores(id=name, scores=scores, reference=dict.fromkeys(scores, 1), predicted=dict.fromkeys(scores, 1))

    evaluation = summarise([case("b", 0.5, None), case("a", 0.25, 0.0)], TWO, ("dice",), "x")
    assert case_scores(evaluation).tolist() == [[0.25, 0.0], [0.5, 1.0]]
