"""Reasons that are logged and kept must not tell whose study it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from medseg.serving.store import SUFFIX

FREE = frozenset({"AE", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "UC", "UI", "UR", "UT"})  # value representations that may name somebody
WELL_KNOWN = "1.2.840.10008."  # UIDs of the standard itself
SHORTEST = 2  # characters; less says nothing
HIDDEN = "[...]"


def without_identifiers(text: str, images: Path) -> str:
    """A text in which every word that stands as free text, date or UID in a header of the images is hidden.

    What a problem found is often a value of a header: the description of a series, a name, a UID.
    """
    values = {value for file in images.glob(f"*{SUFFIX}") for value in _values(file) if value.lower() in text.lower()}
    for value in sorted(values, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", HIDDEN, text, flags=re.IGNORECASE)
    return text


def _values(file: Path) -> Iterator[str]:
    try:
        data = dcmread(file, stop_before_pixels=True)
    except (OSError, InvalidDicomError):
        return
    yield from _of(data)


def _of(data: Dataset) -> Iterator[str]:
    for tag in data:
        if tag.VR == "SQ":
            for item in tag.value:
                yield from _of(item)
        elif tag.VR in FREE:
            several = tag.value if tag.VM > 1 else [tag.value]
            for one in several:
                whole = str(one).strip()
                for value in (whole, *re.split(r"[\^=]+", whole)):
                    if len(value) >= SHORTEST and not value.startswith(WELL_KNOWN):
                        yield value
