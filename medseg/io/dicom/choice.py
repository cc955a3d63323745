"""Which series of a study serves as which channel of a model, and why the others do not. Pure functions: headers in, choices out.

Rules follow from names and modalities of channels (`rules_of`), unless somebody has chosen others (`DicomSettings.series`). A volume
that obeys the rule of a channel is a candidate for it. Of several, one as it was acquired is better than one that was derived of others;
where nothing decides between two, that is an error, never a guess. Volumes in different frames of reference are never one case: that one
can be brought onto the grid of the other is nowhere said.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.dataset import Channel
from medseg.errors import Problem
from medseg.io.dicom.naming import common_folder
from medseg.io.dicom.settings import SeriesRule
from medseg.io.dicom.volume import Volume
from medseg.io.format import numbers

SHORT = 24  # characters of a pattern that is shown


@dataclass(frozen=True)
class Rating:
    """How a volume does as a channel: 0 does not serve, and the highest is chosen; with the reason.

    `damaged`: it does not serve only because it cannot be used.
    """

    score: int
    reason: str
    damaged: bool = False


@dataclass(frozen=True)
class Study:
    """The volumes of a study, and what they serve as.

    Attributes:
        volumes: in the order in which they were found.
        ratings: name of the channel -> a rating for each volume.
        cases: for each case one volume per channel, in their order; or one volume that holds all channels.
        problems: why there is no case although some volume would serve.
        damaged: cases that there would be, if a volume of theirs were not damaged.
    """

    volumes: tuple[Volume, ...]
    ratings: Mapping[str, tuple[Rating, ...]]
    cases: tuple[tuple[Volume, ...], ...]
    problems: tuple[Problem, ...] = ()
    damaged: tuple[tuple[Volume, ...], ...] = ()

    @property
    def folder(self) -> Path:
        """The deepest folder that holds all of it."""
        return common_folder(self.volumes)

    def serves(self, volume: Volume) -> bool:
        """Whether a volume is part of a case."""
        return any(volume is other for case in self.cases for other in case)

    def told(self, volume: Volume) -> str:
        """As what a volume serves, or why it does not, in words."""
        index = next(i for i, other in enumerate(self.volumes) if other is volume)
        cases = [case for case in self.cases if any(volume is other for other in case)]
        whole = any(len(case) < len(self.ratings) for case in cases)
        names = [name for position, name in enumerate(self.ratings) if whole or any(case[position] is volume for case in cases)]
        if cases:
            return f"serves as {', '.join(names)}"
        reasons = {name: ratings[index].reason for name, ratings in self.ratings.items()}
        if len(set(reasons.values())) == 1:
            return next(iter(reasons.values()))
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def choose(
    volumes: Iterable[Volume], channels: Sequence[Channel], rules: Mapping[str, SeriesRule], ndim: int | None = None
) -> tuple[Study, ...]:
    """Which volumes serve as the channels, study by study.

    A model of one channel takes every volume that serves, each as a case of its own; one of several takes one volume for each channel of
    one study and one frame of reference.

    Args:
        volumes: of any number of studies.
        channels: of the model, the reference first.
        rules: of every channel (`rules_of`).
        ndim: dimensions of the model's cases; None for any.
    """
    studies: dict[str, list[Volume]] = defaultdict(list)
    weights = sorted({rule.b_value for rule in rules.values() if rule.b_value is not None})
    for volume in volumes:
        parts = [volume.weighted(b) for b in weights if len(volume.frames) > 1 and volume.weights.count(b) == 1]
        studies[volume.series.study or volume.key] += [volume, *parts]
    return tuple(_of_study(tuple(several), channels, rules, ndim) for several in studies.values())


def _of_study(volumes: tuple[Volume, ...], channels: Sequence[Channel], rules: Mapping[str, SeriesRule], ndim: int | None) -> Study:
    ratings = {c.name: tuple(rate(volume, c.name, rules[c.name], ndim, len(channels)) for volume in volumes) for c in channels}
    first = ratings[channels[0].name]
    whole = [(volume,) for volume, rating in zip(volumes, first, strict=True) if rating.score and volume.samples == len(channels)]
    if whole or len(channels) == 1:
        damaged = [(v,) for v, rating in zip(volumes, first, strict=True) if rating.damaged and v.samples == len(channels)]
        return Study(volumes, ratings, tuple(whole), damaged=tuple(damaged))
    candidates = {name: [v for v, rating in zip(volumes, rated, strict=True) if rating.score] for name, rated in ratings.items()}
    if not any(candidates.values()):
        return Study(volumes, ratings, ())
    lacking = [name for name, found in candidates.items() if not found]
    if lacking:
        problems = tuple(_none_serves(name, volumes, ratings[name]) for name in lacking)
        several = {
            name: found or [v for v, rating in zip(volumes, ratings[name], strict=True) if rating.damaged]
            for name, found in candidates.items()
        }
        return Study(volumes, ratings, (), problems, (tuple(found[0] for found in several.values()),) if all(several.values()) else ())
    worlds = dict.fromkeys(volume.series.world for volume in candidates[channels[0].name])
    complete = [world for world in worlds if all(any(v.series.world == world for v in found) for found in candidates.values())]
    if not complete:
        return Study(volumes, ratings, (), (_apart(candidates, volumes),))
    best = {name: [v for world in complete for v in _best(name, world, volumes, ratings)] for name in candidates}
    unclear = tuple(_several_serve(name, found) for name, found in best.items() if len(found) > 1)
    return Study(volumes, ratings, () if unclear else (tuple(found[0] for found in best.values()),), unclear)


def _best(name: str, world: str, volumes: Sequence[Volume], ratings: Mapping[str, Sequence[Rating]]) -> list[Volume]:
    """The candidates of one frame of reference between which the score does not decide."""
    rated = [(volume, rating.score) for volume, rating in zip(volumes, ratings[name], strict=True) if volume.series.world == world]
    highest = max(score for _, score in rated)
    return [volume for volume, score in rated if score == highest]


def rate(volume: Volume, name: str, rule: SeriesRule, ndim: int | None = None, channels: int = 1) -> Rating:
    """How a volume does as the channel of that name with this rule, in a model of so many channels."""
    rating = _rate(volume, name, rule, ndim, channels)
    return Rating(0, f"cannot be used: {volume.errors[0].what}", rating.score > 0) if volume.errors else rating


def _rate(volume: Volume, name: str, rule: SeriesRule, ndim: int | None, channels: int) -> Rating:
    """How it would do if nothing were wrong with it."""
    series = volume.series
    if ndim is not None and volume.grid.ndim != ndim:
        return Rating(0, f"is {volume.grid.ndim}D, and the model takes {ndim}D")
    if len(volume.frames) > 1:
        several = "" if rule.b_value is None else f", {volume.weights.count(rule.b_value) or 'none'} of them with b = {rule.b_value:g}"
        return Rating(0, f"is a time series of {len(volume.frames)} volumes{several}, and a channel is one")
    if rule.b_value is not None and volume.weights != (rule.b_value,):
        return Rating(0, f"has {f'b = {volume.weights[0]:g}' if volume.weights else 'no b value'}, not b = {rule.b_value:g}")
    if volume.samples not in (1, channels):
        return Rating(0, f"has {volume.samples} values per voxel")
    if rule.modality and series.modality not in rule.modality:
        return Rating(0, f"is {series.modality or 'of no modality'}, not {' or '.join(rule.modality)}")
    if rule.number is not None and series.number != rule.number:
        return Rating(0, f"is series {'without number' if series.number is None else series.number}, not {rule.number}")
    told = texts(volume)
    for pattern in rule.include:
        if pattern not in (volume.key, volume.whole) and not re.search(pattern, told, re.IGNORECASE):
            return Rating(0, f"its texts do not say '{pattern}'" if len(pattern) <= SHORT else f"its texts do not say that it is {name}")
    for pattern in rule.exclude:
        if found := re.search(pattern, told, re.IGNORECASE):
            return Rating(0, f"its texts hold '{found[0].strip()}'")
    return Rating(2, "as acquired") if "ORIGINAL" in series.kind.upper().split("\\") else Rating(1, "derived of other images")


def texts(volume: Volume) -> str:
    """What the patterns of rules are looked for in."""
    series = volume.series
    return " | ".join((series.description, series.protocol, series.sequence, series.kind, series.body))


def shown(volume: Volume) -> str:
    """A volume in a line, for the screen only: descriptions of series are free text."""
    series = volume.series
    number = "series" if series.number is None else f"series {series.number}"
    name = f" '{series.description}'" if series.description else ""
    return f"{number}{name} ({series.modality}, {numbers(volume.grid.shape)}, {volume.key})"


def _listed(volumes: Iterable[Volume]) -> str:
    return ", ".join(shown(volume) for volume in volumes)


def _none_serves(name: str, volumes: Sequence[Volume], ratings: Sequence[Rating]) -> Problem:
    return Problem(
        f"no series serves as channel '{name}'",
        str(common_folder(volumes)),
        "; ".join(f"{shown(volume)}: {rating.reason}" for volume, rating in zip(volumes, ratings, strict=True)),
        fix=_fix(name, volumes[0]),
    )


def _several_serve(name: str, volumes: Sequence[Volume]) -> Problem:
    return Problem(
        f"several series could serve as channel '{name}'", str(common_folder(volumes)), _listed(volumes), "one", _fix(name, volumes[0])
    )


def _apart(candidates: Mapping[str, Sequence[Volume]], volumes: Sequence[Volume]) -> Problem:
    return Problem(
        "the series that serve lie in different frames of reference, so where one lies in the other is not known",
        str(common_folder(volumes)),
        "; ".join(f"{name}: {_listed(found)}" for name, found in candidates.items()),
        "one frame of reference for all channels",
        "Register the series, and give the outcome.",
    )


def _fix(name: str, example: Volume) -> str:
    numbered = "" if example.series.number is None else f"'{name}={example.series.number}' (number of the series), "
    return (
        f"Say which one with a rule in dicom.json of the model (`medseg dicom`), or for one call of `medseg predict` with --series "
        f"{numbered}'{name}={example.whole}' (one volume) or '{name}=PATTERN' (a regular expression for its description)."
    )
