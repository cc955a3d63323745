"""Cleaning label maps: small or stray components and holes, by rules that held-out predictions have proven.

A rule is adopted where it raises the mean Dice of held-out predictions beyond doubt, so most datasets need none (nnU-Net adopts any gain).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medseg.dataset import Labels
from medseg.imaging.crop import bounding_box
from medseg.metrics.statistics import FEWEST_CASES, Interval, mean_interval
from medseg.record import Record

SIZES = tuple(float(f"{10 ** (k / 2):.1g}") for k in range(11))  # mm³ (mm² in 2D): 1, 3, 10, ..., 100 000
LARGEST_ONLY = math.inf


class Cleaning(Record):
    """One rule. Voxels that it removes become background."""

    cls: str = Field(description="Name of the class; empty: all classes together, as one object.")
    largest: bool = Field(default=False, description="Keep the largest connected component only.")
    smallest: float = Field(default=0.0, ge=0, description="Remove components below this volume (mm³; mm² in 2D).")
    fill: bool = Field(default=False, description="Fill holes, background that the class encloses.")


class HeldOut(NamedTuple):
    """A prediction of a case that its model did not train on: label maps `(*shape)` as written, and mm per axis."""

    prediction: NDArray[Any]
    truth: NDArray[Any]
    spacing: tuple[float, ...]


def clean(labels: NDArray[Any], rules: Sequence[Cleaning], classes: Labels, spacing: tuple[float, ...]) -> NDArray[Any]:
    """Apply rules in order to a label map `(*shape)` of written values, in place. Components touch at corners too."""
    for rule in rules:
        values = _written(rule.cls, classes)
        mask = np.isin(labels, values)
        box = tuple(slice(a, b) for a, b in bounding_box(mask))
        if not box:
            continue
        part, mask = labels[box], mask[box]
        if rule.largest or rule.smallest:
            components, sizes = _components(mask)
            kept = _kept(sizes, LARGEST_ONLY if rule.largest else rule.smallest / math.prod(spacing))
            part[mask & ~kept[components]] = 0
            mask = np.isin(part, values)
        if rule.fill:
            part[_filled(mask) & (part == 0)] = values[0]
    return labels


@dataclass
class _Trials:
    """Dice of every case with and without each candidate rule, class by class."""

    plain: list[list[float]] = field(default_factory=list)
    tried: dict[tuple[str, float | None], list[list[float]]] = field(default_factory=dict)


def learn(cases: Iterable[HeldOut], classes: Labels) -> tuple[tuple[Cleaning, ...], str]:
    """The rules that held-out predictions justify, and why.

    Candidates: the largest component, or components above one of `SIZES`, and holes filled; for all classes together, then for each
    class alone. A class that is rightly absent counts as a Dice of 1, so false alarms in cases without it weigh as they should. Regions
    that overlap are only cleaned together: a component of one may be part of another.

    Args:
        cases: read once, one after another.
        classes: of the model.
    """
    trials = _Trials()
    for case in cases:
        _try(case, classes, trials)
    if len(trials.plain) < FEWEST_CASES:
        return (), f"None: {len(trials.plain)} held-out cases prove nothing."
    together = _rules(trials, ("",))
    alone = _rules(trials, classes.names) if classes.exclusive else []
    # Gains of different classes add up; of two equal ways the simpler one.
    chosen = max(together, alone, key=lambda found: sum(gain for _, _, gain in found))
    rules = [rule for rule, _, _ in chosen]
    reasons = [why for _, why, _ in chosen]
    count = f"on {len(trials.plain)} held-out predictions"
    if not rules:
        return (), f"None: no rule raises the Dice {count} beyond doubt."
    return tuple(rules), f"Proven {count}: {'; '.join(reasons)}."


def _rules(trials: _Trials, names: Iterable[str]) -> list[tuple[Cleaning, str, float]]:
    """The proven rules for some classes: rule, reason, gain."""
    found = []
    for name in names:
        removal, fill = _proven(trials, name, removes=True), _proven(trials, name, removes=False)
        limit = removal[0] if removal else 0.0
        assert limit is not None
        said = [
            f"{what}, +{proof[1].mean:.4f} Dice (95 % interval {proof[1].low:.4f} to {proof[1].high:.4f})"
            for what, proof in ((_said(limit), removal), ("holes filled", fill))
            if proof is not None
        ]
        if said:
            largest = limit == LARGEST_ONLY
            rule = Cleaning(cls=name, largest=largest, smallest=0.0 if largest else limit, fill=fill is not None)
            gain = sum(one[1].mean for one in (removal, fill) if one is not None)
            found.append((rule, f"{name or 'all classes together'}: {'; '.join(said)}", gain))
    return found


def _proven(trials: _Trials, name: str, removes: bool) -> tuple[float | None, Interval] | None:
    """The best rule for a class if its gain is beyond doubt: the limit, and the gain with its interval."""
    plain = np.array(trials.plain)
    found = []
    for (cls, limit), tried in trials.tried.items():
        if cls == name and (limit is not None) == removes:
            found.append((limit, mean_interval((np.array(tried) - plain).mean(axis=1))))
    best = max(found, key=lambda row: row[1].mean, default=None)
    return best if best is not None and best[1].proven else None


def _try(case: HeldOut, classes: Labels, trials: _Trials) -> None:
    """Score every candidate on one case. One labelling per class serves all limits: a component's voxels are counted, not moved."""
    truth = np.where(case.truth == classes.ignore, 0, case.truth) if classes.ignore is not None else case.truth
    prediction = np.where(case.truth == classes.ignore, 0, case.prediction) if classes.ignore is not None else case.prediction
    names = classes.names
    true = [np.isin(truth, c.values) for c in classes.classes]
    predicted = [_class_mask(prediction, k, classes) for k in range(len(names))]
    totals = [int(t.sum()) for t in true]
    plain = [_dice(int((p & t).sum()), int(p.sum()), n) for p, t, n in zip(predicted, true, totals, strict=True)]
    trials.plain.append(plain)
    voxel = math.prod(case.spacing)
    for name in ("", *(names if classes.exclusive else ())):
        members = [k for k, other in enumerate(names) if name in ("", other)]
        mask = np.isin(prediction, _written(name, classes))
        components, sizes = _components(mask)
        volumes = {k: np.bincount(components[predicted[k]], minlength=len(sizes)) for k in members}
        hits = {k: np.bincount(components[predicted[k] & true[k]], minlength=len(sizes)) for k in members}
        for limit in (LARGEST_ONLY, *SIZES):
            kept = _kept(sizes, limit / voxel)
            scores = list(plain)
            for k in members:
                scores[k] = _dice(int(hits[k][kept].sum()), int(volumes[k][kept].sum()), totals[k])
            trials.tried.setdefault((name, limit), []).append(scores)
        if classes.exclusive and name:
            (k,) = members
            filled = _filled(mask) & (predicted[k] | (prediction == 0))
            scores = list(plain)
            scores[k] = _dice(int((filled & true[k]).sum()), int(filled.sum()), totals[k])
            trials.tried.setdefault((name, None), []).append(scores)


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    return np.asarray(ndimage.binary_fill_holes(mask))


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]:
    """Component number of every voxel (0 outside), and the voxels of each number, 0 for the outside."""
    from scipy import ndimage

    components, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[0] = 0
    return components, sizes


def _kept(sizes: NDArray[np.integer[Any]], limit: float) -> NDArray[np.bool_]:
    """Which components stay: the largest, or those of at least `limit` voxels."""
    if math.isinf(limit):
        kept = np.zeros(len(sizes), dtype=np.bool_)
        kept[int(sizes.argmax())] = True
    else:
        kept = sizes >= limit
    kept[0] = False
    return kept


def _written(name: str, classes: Labels) -> tuple[int, ...]:
    """The values that stand for a class in predictions; for an empty name all of them."""
    return tuple(v for v, other in zip(classes.written, classes.names, strict=True) if name in ("", other))


def _class_mask(prediction: NDArray[Any], index: int, classes: Labels) -> NDArray[np.bool_]:
    return np.isin(prediction, classes.classes[index].values)


def _dice(hits: int, predicted: int, truth: int) -> float:
    return 2 * hits / (predicted + truth) if predicted + truth else 1.0


def _said(limit: float) -> str:
    return "the largest component only" if math.isinf(limit) else f"components of at least {limit:g} mm³"
