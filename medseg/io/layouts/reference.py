"""Which channel of a dataset of case folders is the reference, on whose grid cases are read, and which label goes with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.errors import DatasetError, ImageError
from medseg.io.format import Header, numbers
from medseg.io.grids import grid_problems
from medseg.io.images import read_header
from medseg.io.layouts.base import LayoutOptions
from medseg.io.layouts.descriptor import NAME, Descriptor
from medseg.io.layouts.files import SAMPLE
from medseg.io.layouts.roles import CaseRoles, role_of_channel

NUMBER = re.compile(r"\d{4}")
EQUAL = 0.01  # voxels or fields of view that differ by less are equally large


@dataclass(frozen=True)
class Reference:
    """The keys of the reference channel and of the label in every case, and why, for people; empty where there was no choice."""

    channel: str
    label: str
    why: str


def choose_reference(cases: Sequence[CaseRoles], declared: Sequence[str], descriptor: Descriptor, options: LayoutOptions) -> Reference:
    """The reference channel and its label, by the rule of `case_folders`.

    Args:
        cases: with the same roles.
        declared: keys of the channels in the order of `medseg.json`, if it says one.

    Raises:
        DatasetError: there is no such channel, it has no label, or there are several labels for it.
    """
    first = cases[0]
    where = str(first.folder.parent)
    asked = options.reference or descriptor.reference
    wanted = None if asked is None else role_of_channel(asked)
    if wanted is not None and wanted not in first.images:
        raise DatasetError.of(
            "there is no such channel to be the reference",
            where=where,
            found=f"'{asked}'",
            expected=" or ".join(file.role for file in first.images.values()),
            fix=f"Check --reference, or 'reference' in {NAME}.",
        )
    candidates = _with_label(first, wanted, where)
    if wanted is not None:
        channel, why = wanted, "as --reference says" if options.reference else f"as {NAME} says"
    elif declared and declared[0] in candidates:
        channel, why = declared[0], f"the first of 'channels' in {NAME}"
    elif all(NUMBER.fullmatch(key) for key in first.images):
        channel, why = min(first.images), "the first by number"
    elif len(first.images) == 1:
        return Reference(candidates[0], next(iter(first.labels)), "")
    else:
        channel, why = _by_grid(cases, candidates)
    if all(NUMBER.fullmatch(key) for key in first.images) and channel != min(first.images):
        raise DatasetError.of(
            "numbered channels have the first as their reference, because a prediction takes its files by number",
            where=where,
            found=f"'{asked}'",
            expected=f"'{min(first.images)}'",
            fix="Name the files after what they show, or number them in another order.",
        )
    label = channel if len(first.labels) > 1 else next(iter(first.labels))
    text = f"reference channel '{first.images[channel].role}': {why}"
    return Reference(channel, label, text + (f"; its label is {first.labels[label].name}" if len(first.labels) > 1 else ""))


def _with_label(case: CaseRoles, wanted: str | None, where: str) -> list[str]:
    """The channels that can be the reference, sorted: all where a case has one label, else those with a label of their own."""
    if len(case.labels) == 1:
        return sorted(case.images)
    names = ", ".join(file.name for file in case.labels.values())
    if not set(case.labels) <= set(case.images):
        raise DatasetError.of(
            "several labels per case, which are not one for each channel",
            where=where,
            found=names,
            expected=f"one, or labels for channels ({', '.join(f.role for f in case.images.values())})",
            fix="Say which with --labels NAME.",
        )
    if wanted is not None and wanted not in case.labels:
        raise DatasetError.of(
            "the reference channel has no label of its own",
            where=where,
            found=names,
            expected=f"a label for '{case.images[wanted].role}'",
            fix="Choose another --reference, or one of these labels with --labels NAME (and --resample-labels).",
        )
    return sorted(case.labels)


def _by_grid(cases: Sequence[CaseRoles], candidates: Sequence[str]) -> tuple[str, str]:
    """The channel whose grid the label shares; where there is none, or a label for each, the one with the finest voxels."""
    headers = [h for case in cases[:: -(-len(cases) // SAMPLE)] if (h := _headers(case)) is not None]
    roles = {key: file.role for key, file in cases[0].images.items()}
    if not headers:
        return candidates[0], "the first by name"  # no header can be read: `verify` says why
    if len(cases[0].labels) == 1:
        own = next(iter(cases[0].labels))
        shared = {key: sum(_same(case, own, key) for case in headers) for key in candidates}
        most = max(shared.values())
        if most:
            equal = [key for key in candidates if shared[key] == most]
            channel = own if own in equal else equal[0]
            others = ", ".join(roles[key] for key in equal if key != channel)
            return channel, "the label lies on its grid" + (f" (as on that of {others}; the first by name)" if others else "")
    volume = {key: float(np.median([np.prod(h[False, key].grid.spacing) for h in headers])) for key in candidates}
    finest = [key for key in candidates if volume[key] <= min(volume.values()) * (1 + EQUAL)]
    field = {key: float(np.median([np.prod(h[False, key].grid.spacing) * np.prod(h[False, key].shape) for h in headers])) for key in finest}
    largest = [key for key in finest if field[key] >= max(field.values()) * (1 - EQUAL)]
    spacing = np.median([h[False, largest[0]].grid.spacing for h in headers], axis=0)
    why = f"it has the finest voxels ({numbers(np.round(spacing, 4))} mm)"
    if len(finest) > 1:
        others = ", ".join(roles[key] for key in finest if key != largest[0])
        why += f", as {others}, and " + ("is the first of them by name" if len(largest) > 1 else "the larger field of view")
    return largest[0], why


def _headers(case: CaseRoles) -> dict[tuple[bool, str], Header] | None:
    """The headers of all files of a case; None where one cannot be read, which `verify` explains."""
    try:
        return {key: read_header(file.path, label=key[0]) for key, file in case.files.items()}
    except ImageError:
        return None


def _same(headers: dict[tuple[bool, str], Header], label: str, channel: str) -> bool:
    ours, theirs = headers[True, label], headers[False, channel]
    return not grid_problems(Path(), ours.grid, ours.native, Path(), theirs.grid, theirs.native)
