"""What differs between two plans, with both values and both reasons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medseg.plans import Plan
from medseg.record import Record, compact_json

MISSING = object()


class Change(Record):
    """One field that differs.

    Attributes:
        section: first part of the field's name.
        field: dotted field name.
        first, second: JSON text of the values; None where a plan has no such field.
        first_reason, second_reason: why; empty where a plan has no reason for the field or for what contains it.
    """

    section: str
    field: str
    first: str | None
    second: str | None
    first_reason: str
    second_reason: str


def difference(first: Plan, second: Plan) -> tuple[Change, ...]:
    """Every field whose values differ, in the order of the plan file, so that fields of a section follow each other; none for equal plans."""
    values = [plan.model_dump(mode="json", exclude={"reasons"}) for plan in (first, second)]
    return tuple(
        Change(
            section=path.partition(".")[0],
            field=path,
            first=_text(one),
            second=_text(other),
            first_reason="" if one is MISSING else _reason(first, path),
            second_reason="" if other is MISSING else _reason(second, path),
        )
        for path, one, other in _differing(values[0], values[1], "")
    )


def _differing(one: Any, other: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Paths at which plain data differs. Lists count as one value, unless they are equally long lists of records."""
    if one == other:
        return
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys((*one, *other)):
            yield from _differing(one.get(key, MISSING), other.get(key, MISSING), f"{path}.{key}".strip("."))
    elif _records(one) and _records(other) and len(one) == len(other):
        for index, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            yield from _differing(mine, theirs, f"{path}.{index}")
    else:
        yield path, one, other


def _records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _text(value: Any) -> str | None:
    return None if value is MISSING else compact_json(value, width=10**6)


def _reason(plan: Plan, path: str) -> str:
    """The reason for a field, or for the nearest thing that contains it."""
    while path:
        if path in plan.reasons:
            return plan.reasons[path]
        path = path.rpartition(".")[0]
    return ""
