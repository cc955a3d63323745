"""Elements of headers: where enhanced multi-frame objects keep what classic ones say once, and values whatever a file made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.multival import MultiValue

Vector = tuple[float, ...]


def find(header: Dataset, index: int | None, keyword: str, *groups: str) -> Any:
    """The value of an element for a frame: from its own functional group, the shared one, or the file itself; None where it is nowhere.

    Args:
        header: the file.
        index: the frame; None in files of one image.
        keyword: of the element.
        groups: keywords of the functional groups that may hold it.
    """
    if index is not None and groups:
        for holder in _holders(header, index):
            for group in groups:
                items = holder.get(group)
                if items:
                    value = items[0].get(keyword)
                    if value is not None and value != "":
                        return value
    value = header.get(keyword)
    return None if value == "" else value


def _holders(header: Dataset, index: int) -> list[Dataset]:
    holders = []
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if frames and index < len(frames):
        holders.append(frames[index])
    shared = header.get("SharedFunctionalGroupsSequence")
    if shared:
        holders.append(shared[0])
    return holders


def text(value: Any) -> str:
    """An element as one line; several values are joined by backslashes, as in the file."""
    if value is None:
        return ""
    if isinstance(value, (MultiValue, list, tuple)):
        return "\\".join(str(one).strip() for one in value)
    return " ".join(str(value).split())


def number(value: Any) -> float | None:
    """An element as a finite number; the first of several."""
    if isinstance(value, (MultiValue, list, tuple)):
        value = value[0] if len(value) else None
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if np.isfinite(result) else None


def whole(value: Any) -> int | None:
    """An element as an integer."""
    result = number(value)
    return None if result is None else int(result)


def vector(values: Any, count: int) -> Vector | None:
    """An element as so many finite numbers."""
    if not isinstance(values, (MultiValue, Sequence)) or isinstance(values, str) or len(values) != count:
        return None
    found = [number(value) for value in values]
    return None if any(value is None for value in found) else tuple(float(value) for value in found if value is not None)


def private(header: Dataset, group: int, creator: str, element: int) -> Any:
    """The value of a private element; None where it is not there."""
    try:
        return header.private_block(group, creator)[element].value
    except KeyError:
        return None


def seconds(day: Any, clock: Any) -> float | None:
    """Date and time elements as seconds since the year 1; a time alone as seconds of its day."""
    import datetime

    stamp = text(clock).replace(":", "")
    digits, _, fraction = stamp.partition(".")
    if len(digits) < 2 or not digits.isdigit():
        return None
    digits = digits.ljust(6, "0")
    rest = float(f"0.{fraction}") if fraction.isdigit() else 0.0
    total = int(digits[:2]) * 3600 + int(digits[2:4]) * 60 + int(digits[4:6]) + rest
    date = text(day).replace(".", "").replace("-", "")
    try:
        return total + datetime.date(int(date[:4]), int(date[4:6]), int(date[6:8])).toordinal() * 86400.0
    except ValueError:
        return total


def moment(value: Any) -> float | None:
    """A DateTime element (`YYYYMMDDHHMMSS.FFFFFF&ZZXX`) as seconds since the year 1; the time zone is left out."""
    stamp = text(value)
    cut = min((i for i in (stamp.find("+"), stamp.find("-")) if i > 0), default=len(stamp))
    stamp = stamp[:cut]
    return seconds(stamp[:8], stamp[8:]) if len(stamp) >= 10 else None
