"""The rules by which channels find their series, from what channels are called: the words that radiologists and scanners use.

A rule is only as good as descriptions of series are; a site that knows its own writes better ones (`RUN/dicom.json`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.dataset import Channel, Labels, Modality
from medseg.errors import PlanError, Problem, UsageError
from medseg.io.dicom.settings import NOTHING_CHOSEN, DicomSettings, SeriesRule
from medseg.io.dicom.terms import class_terms

MODALITIES = {Modality.ct: ("CT",), Modality.mr: ("MR",), Modality.pet: ("PT",)}
GENERAL = {"ct": Modality.ct, "mr": Modality.mr, "mri": Modality.mr, "pet": Modality.pet, "pt": Modality.pet, "suv": Modality.pet}
MEANINGLESS = {"image", "images", "img", "scan", "volume", "channel", "modality", "input", "series", "w", "weighted", *GENERAL}

SCOUT = r"locali[sz]er|(?<![a-z])scout|(?<![a-z])survey|topogram|surview|scanogram"
UNCORRECTED = r"(?<![a-z])nac(?![a-z])|uncorrected|no.?ac\b"
CONTRAST = (
    r"contrast|kontrast|(?<![a-z])(gd|gad|gado|ce|km|post)(?![a-z])|gadol|gadob|gadot|\+ ?c\b|t1(ce|gd|c)\b|dotarem|gadovist|magnevist|multihance|"
    r"prohance|omniscan|primovist|eovist|clariscan"
)
PLANE = r"(?<![a-z0-9])(ax|axial|sag|cor|tra)?_?"
T1 = PLANE + r"t1(?![0-9])|mprage|mp2rage|(?<![a-z])(bravo|spgr)(?![a-z])"
T2 = PLANE + r"t2(?![0-9*])(?!.?star)"
FLAIR = r"flair|dark.?fluid|(?<![a-z])tirm(?![a-z])"
ADC = r"adc(?![a-z])|apparent.?diff"
HIGH = r"b.?val|hbv|high.?b|(?<![a-z])b ?=? ?(8|9|1\d|2\d)\d\d(?![0-9])|trace"
DIFFUSION = r"dwi|diff|trace|b.?val|hbv|(?<![a-z])b ?=? ?\d{3,4}(?![0-9])"
SUSCEPTIBILITY = r"(?<![a-z])swi|t2\*|t2.?star|suscept|(?<![a-z])hemo"
DENSITY = r"(?<![a-z])pdw?(?![a-z])|proton.?dens"


@dataclass(frozen=True)
class Kind:
    """A kind of MR image: a pattern of names of channels for it, and patterns of its series."""

    name: str
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()


KINDS = (
    Kind(r"\bt1.*(ce|c|gd|gad|post|km|contrast)\b|(post|ce|gd|gad|contrast).*\bt1|\bcontrast\b", (T1, CONTRAST)),
    Kind(r"\bt1", (T1,), (CONTRAST,)),
    Kind(r"flair|\bt2f\b", (FLAIR,), (PLANE + "t1(?![0-9])",)),
    Kind(r"\bt2 ?star|\bt2s\b|\bswi", (SUSCEPTIBILITY,)),
    Kind(r"\bt2", (T2,), (FLAIR,)),
    Kind(r"\badc", (ADC,)),
    Kind(r"\bhbv|\bhb\b|\bhigh ?b|\bb ?\d{3,4}", (DIFFUSION, HIGH), (ADC,)),
    Kind(r"\bdwi|\bdiff|\btrace", (DIFFUSION,), (ADC,)),
    Kind(r"\bpdw?\b", (DENSITY,)),
)
"""The first that fits the name of a channel is its kind."""


def rules_of(channels: Sequence[Channel], settings: DicomSettings) -> dict[str, SeriesRule]:
    """The rule of every channel: the one that somebody chose, or what follows from its name and modality."""
    return {channel.name: settings.series.get(channel.name) or _derived(channel, channels) for channel in channels}


def _derived(channel: Channel, channels: Sequence[Channel]) -> SeriesRule:
    modality = _modality(channel)
    found = MODALITIES.get(modality, ())
    kind = _kind(channel) if modality is Modality.mr else None
    if kind is not None:
        return SeriesRule(modality=found, include=kind.include, exclude=(*kind.exclude, SCOUT))
    include: tuple[str, ...] = ()
    if sum(_modality(other) is modality for other in channels) > 1 and modality is not Modality.rgb:
        include = tuple(
            f"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])" for word in _words(channel.name) if word not in MEANINGLESS and not word.isdigit()
        )
    if modality is Modality.pet:
        return SeriesRule(modality=found, include=include, exclude=(UNCORRECTED, SCOUT))
    return SeriesRule(modality=found, include=include, exclude=(SCOUT,) if found else ())


def _modality(channel: Channel) -> Modality:
    """What a channel holds; where the dataset does not say, what its name says."""
    if channel.modality is not Modality.other:
        return channel.modality
    named = [GENERAL[word] for word in _words(channel.name) if word in GENERAL]
    return named[0] if named else Modality.mr if _kind(channel) is not None else Modality.other


def _kind(channel: Channel) -> Kind | None:
    words = " ".join(word for word in _words(channel.name) if word not in GENERAL)
    return next((kind for kind in KINDS if re.search(kind.name, words)), None)


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9*+]+", name.lower())


def effective(settings: DicomSettings, channels: Sequence[Channel], labels: Labels, model: str) -> DicomSettings:
    """All that applies: what was chosen, and what follows from the names of channels, classes and model where nothing was."""
    return DicomSettings(series=rules_of(channels, settings), classes=class_terms(labels, settings, model))


def with_series(settings: DicomSettings, texts: Iterable[str], channels: Sequence[Channel]) -> DicomSettings:
    """Settings with rules that were said on the command line: `T1=3` (number of the series), `T1=PATTERN` (of its texts), `T1=KEY` (a volume);
    without a name for a model of one channel. `@b800` behind any of them, or alone, is the diffusion weighting.

    Raises:
        UsageError: no such channel, one that is named twice, or no pattern; all at once.
    """
    names = [channel.name for channel in channels]
    rules: dict[str, SeriesRule] = {}
    problems: list[Problem] = []
    for text in texts:
        name, separator, value = text.rpartition("=") if text.count("=") == 1 else text.partition("=")
        if len(names) == 1 and name not in names and not (separator and re.fullmatch(r"[A-Za-z]\w+", name)):  # `b=1000` is a pattern
            name, value = names[0], text
        if separator and value and name not in names:
            problems.append(Problem(f"the model has no channel '{name}'", "--series", f"'{text}'", _wanted(names), _near(name, names)))
        elif name not in names or not value:
            problems.append(Problem("no channel of the model", "--series", f"'{text}'", _wanted(names), _near(name, names)))
        elif name in rules:
            problems.append(Problem("a channel is given twice", "--series", f"'{text}'", "each channel once"))
        else:
            weight = re.search(r"@b(\d+(?:\.\d+)?)$", value)
            b, value = (float(weight[1]), value[: weight.start()]) if weight else (None, value)
            try:
                re.compile(value)
                number = int(value) if re.fullmatch(r"\d{1,9}", value) else None
                rules[name] = SeriesRule(number=number, include=(value,) if value and number is None else (), b_value=b)
            except re.error as error:
                problems.append(Problem("not a regular expression", "--series", f"'{text}'", fix=f"Mend it: {error}."))
    if problems:
        raise UsageError(problems)
    return settings.model_copy(update={"series": {**settings.series, **rules}})


def settings_of(file: Path, channels: Sequence[Channel], classes: Sequence[str]) -> DicomSettings:
    """What was chosen for a model in `dicom.json`; nothing where there is no such file.

    Raises:
        PlanError: the file cannot be read, or names channels or classes that the model does not have.
    """
    if not file.is_file():
        return NOTHING_CHOSEN
    settings = DicomSettings.load(file)
    known: Mapping[str, tuple[Iterable[str], Sequence[str]]] = {
        "channel": (settings.series, [channel.name for channel in channels]),
        "class": (settings.classes, classes),
    }
    problems = [
        Problem(f"the model has no such {what}", str(file), f"'{name}'", f"one of {', '.join(names)}", _near(name, names))
        for what, (given, names) in known.items()
        for name in given
        if name not in names
    ]
    if problems:
        raise PlanError(problems)
    return settings


def _wanted(names: Sequence[str]) -> str:
    return f"CHANNEL=SERIES with one of {', '.join(names)}"


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean '{near[0]}'?" if near else ""
