"""Which class a region of a DICOM annotation is of, by its name.

People write `GTV_Mass`, `gtv mass` and `GTV-Mass`: names are compared without capitals, and with single spaces for all that separates words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import Problem
from medseg.io.layouts.descriptor import NAME, Descriptor

SHOWN = 8


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset.

    Attributes:
        values: class name -> value in label maps, in order.
        of_region: plain name of a region -> its class; None for one that is left out on purpose.
    """

    values: Mapping[str, int]
    of_region: Mapping[str, str | None]


def plain(name: str) -> str:
    """What names of regions are compared by."""
    return " ".join(part for part in re.split(r"[\s_\-]+", name.casefold()) if part)


def find_classes(root: Path, descriptor: Descriptor, cases: Mapping[str, Iterable[str]], problems: list[Problem]) -> Classes:
    """The class of every region, by `medseg.json` or, where it lists none, by equal names.

    Args:
        root: the dataset's folder, for messages.
        descriptor: of the dataset.
        cases: case -> names of its annotated regions.
        problems: is added what no class can be made of.
    """
    spelled: dict[str, str] = {}
    holders: dict[str, set[str]] = defaultdict(set)
    for case, names in cases.items():
        for name in names:
            spelled[plain(name)] = min(name, spelled.get(plain(name), name))
            holders[plain(name)].add(case)
    ignored = _patterns(root, "ignore_regions", descriptor.ignore_regions, problems)
    left = {name for name in spelled if any(_matches(pattern, name) for pattern in ignored)}
    if descriptor.regions is not None:
        return _declared(root, descriptor.regions, spelled, left, problems)
    kept = sorted(set(spelled) - left)
    single = [name for name in kept if len(holders[name]) == 1]
    if single and len(cases) > 1:
        what = "regions have names that no other case has"
        found = ", ".join(f"'{spelled[name]}'" for name in single[:SHOWN]) + (
            f" and {len(single) - SHOWN} more" if len(single) > SHOWN else ""
        )
        others = ", ".join(f"'{spelled[name]}'" for name in kept if name not in single)[:200]
        problems.append(Problem(what, str(root), found, others and f"names that cases share, as {others}", _fix(single[0])))
    return Classes({spelled[name]: value for value, name in enumerate(kept, 1)}, {n: None if n in left else spelled[n] for n in spelled})


def _declared(
    root: Path, declared: Mapping[str, tuple[str, ...]], spelled: Mapping[str, str], left: set[str], problems: list[Problem]
) -> Classes:
    patterns = {name: _patterns(root, f"regions.{name}", given, problems) for name, given in declared.items()}
    found: dict[str, str | None] = {}
    unknown = []
    for name, spelling in spelled.items():
        classes = [one for one, several in patterns.items() if any(_matches(pattern, name) for pattern in several)]
        if len(classes) > 1:
            problems.append(
                Problem(
                    "a region matches several classes",
                    f"{root / NAME}, field 'regions'",
                    f"'{spelling}': {', '.join(classes)}",
                    "one class",
                )
            )
        if not classes and name not in left:
            unknown.append(spelling)
        found[name] = classes[0] if classes else None
    if unknown:
        shown = ", ".join(f"'{name}'" for name in sorted(unknown)[:SHOWN]) + (
            f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        )
        fix = "Add an expression, or list them in 'ignore_regions' ([\".*\"] for all others)."
        problems.append(Problem("regions are neither of a class nor ignored", f"{root / NAME}, field 'regions'", shown, "", fix))
    for name in declared:
        if name not in found.values():
            problems.append(
                Problem(
                    f"no region of any case is of class '{name}'",
                    f"{root / NAME}, field 'regions'",
                    ", ".join(sorted(spelled.values())[:SHOWN]),
                )
            )
    return Classes({name: value for value, name in enumerate(declared, 1)}, found)


def _patterns(root: Path, field: str, given: Iterable[str], problems: list[Problem]) -> list[re.Pattern[str]]:
    patterns = []
    for text in given:
        try:
            patterns.append(re.compile(text, re.IGNORECASE))
        except re.error as error:
            problems.append(Problem("is not a regular expression", f"{root / NAME}, field '{field}'", f"'{text}' ({error})"))
    return patterns


def _matches(pattern: re.Pattern[str], name: str) -> bool:
    """Whether a pattern matches a plain name, its words separated by spaces, `_` or nothing: people write patterns as they write names."""
    return any(pattern.fullmatch(name.replace(" ", separator)) for separator in (" ", "_", "-", ""))


def _fix(example: str) -> str:
    return (
        f'Say in {NAME} which names mean the same, {{"regions": {{"CLASS": ["{re.escape(example)}", "..."]}}}}, '
        'and which belong to no class, "ignore_regions": ["..."].'
    )
