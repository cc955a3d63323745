"""Which of several models to take, or which of them together: by their predictions of the same cases, none of which they trained on.

nnU-Net (Isensee et al. 2021) takes the best mean; here an ensemble must be worth what it costs, the prediction time of all its members.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.records import Evaluation, defined
from medseg.metrics.statistics import FEWEST_CASES, Interval, mean_interval
from medseg.record import Record
from medseg.workspace import Members


class Candidate(Record):
    """A model alone, or several together.

    Attributes:
        members: names of the models, the best one first.
        mean, low, high: mean of class means over cases, with its 95 % bootstrap interval.
        difference, difference_low, difference_high: mean paired difference to the best model alone; None for that model itself.
        seconds: mean time to predict a case, from reading to writing.
    """

    members: Members
    mean: float
    low: float | None
    high: float | None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    seconds: float

    @property
    def name(self) -> str:
        """The members' names."""
        return " + ".join(self.members)


class Selection(Record):
    """What was chosen, and of what (`selection.json`).

    Attributes:
        key: digest of the weights of all models and of the splits.
        metric: what was compared. A class that is rightly absent from a prediction counts as 1, so that false alarms cost something.
        cases: how many cases, each predicted by networks that did not train on it.
        candidates: the best mean first.
        chosen: members of the chosen candidate; the first is the model's own plan, the others are its partners.
        reason: why.
    """

    format: int = 1
    key: str
    metric: str
    cases: int
    candidates: tuple[Candidate, ...]
    chosen: Members
    reason: str


def candidates(names: Sequence[str]) -> tuple[Members, ...]:
    """Every model alone, every two together, and all together."""
    every = [(tuple(names),)] if len(names) > 2 else []
    return tuple(itertools.chain(((name,) for name in names), itertools.combinations(names, 2), *every))


def folder_name(members: Members) -> str:
    """One name for all orders of the members."""
    return "+".join(sorted(members))


def case_scores(evaluation: Evaluation) -> NDArray[np.float64]:
    """`(cases, classes)` of the leading metric, cases sorted by id; what is undefined counts as 1, because nothing is wrong with it."""
    values = evaluation.values(evaluation.metrics[0])[np.argsort(evaluation.ids)]
    return np.where(np.isnan(values), 1.0, values)


def choose(scores: Mapping[Members, NDArray[np.float64]], seconds: Mapping[Members, float], metric: str, key: str) -> Selection:
    """The best model alone, unless several together are better beyond doubt.

    Beyond doubt is a gain over the best model alone of at least 0.0005 whose 95 % interval of the paired difference lies above 0, on five
    cases or more. Of the ensembles with such a gain, it is the smallest from which none is better beyond doubt.

    Args:
        scores: `(cases, classes)` for every candidate, the same cases in the same order; 1 is perfect.
        seconds: mean time of a prediction.
        metric: name of what the scores measure.
        key: see `Selection`.
    """
    found = {members: mean_interval(values) for members, values in scores.items()}
    cases = len(next(iter(scores.values())))
    singles = sorted((m for m in found if len(m) == 1), key=lambda m: (-found[m].mean, seconds[m]))
    best, rank = singles[0], {members[0]: place for place, members in enumerate(singles)}
    gains = {m: _gain(scores, m, best) for m in found if m != best}
    proven = {m: gain for m, gain in gains.items() if len(m) > 1 and gain.proven and cases >= FEWEST_CASES}
    if proven:
        top = max(proven, key=lambda m: found[m].mean)
        level = [m for m in proven if m == top or not _gain(scores, top, m).proven]
        chosen = min(level, key=lambda m: (len(m), -found[m].mean, seconds[m]))
        reason = _why_several(chosen, top, best, proven, seconds, cases)
    else:
        chosen = best
        reason = _why_alone(best, gains, found, cases)
    listed = [
        Candidate(
            members=_ordered(members, rank),
            mean=interval.mean,
            low=defined(interval.low),
            high=defined(interval.high),
            difference=defined(gains[members].mean) if members != best else None,
            difference_low=defined(gains[members].low) if members != best else None,
            difference_high=defined(gains[members].high) if members != best else None,
            seconds=round(seconds[members], 3),
        )
        for members, interval in sorted(found.items(), key=lambda item: (-item[1].mean, len(item[0])))
    ]
    return Selection(key=key, metric=metric, cases=cases, candidates=tuple(listed), chosen=_ordered(chosen, rank), reason=reason)


def _gain(scores: Mapping[Members, NDArray[np.float64]], members: Members, other: Members) -> Interval:
    return mean_interval((scores[members] - scores[other]).mean(axis=1))


def _ordered(members: Members, rank: Mapping[str, int]) -> Members:
    return tuple(sorted(members, key=lambda name: rank[name]))


def _why_several(
    chosen: Members, top: Members, best: Members, proven: Mapping[Members, Interval], seconds: Mapping[Members, float], cases: int
) -> str:
    text = (
        f"Together they are better than '{best[0]}' alone beyond doubt: {_said(proven[chosen])} on {cases} cases left out of training. "
        f"A prediction takes {_ratio(seconds[chosen], seconds[best])} as long."
    )
    if chosen != top:
        text += f" '{' + '.join(top)}' has a higher mean, but not beyond doubt, and more members."
    return text


def _why_alone(best: Members, gains: Mapping[Members, Interval], found: Mapping[Members, Interval], cases: int) -> str:
    several = [members for members in gains if len(members) > 1]
    text = f"The highest mean of the {len(found) - len(several)} models alone on {cases} cases left out of training."
    if not several:
        return f"{text} Models of this task do not predict together."
    top = max(several, key=lambda m: gains[m].mean)
    if cases < FEWEST_CASES:
        return f"{text} No ensemble is taken: {cases} cases prove nothing."
    if gains[top].mean <= 0:
        return f"{text} No ensemble is better."
    return f"{text} No ensemble is better beyond doubt; the best, '{' + '.join(top)}': {_said(gains[top])}."


def _said(gain: Interval) -> str:
    interval = "" if math.isnan(gain.low) else f" (95 % interval {gain.low:+.4f} to {gain.high:+.4f})"
    return f"{gain.mean:+.4f}{interval}"


def _ratio(several: float, alone: float) -> str:
    return f"{several / alone:.1f} times" if alone > 0 else "longer, not measured,"
