"""JSON with one long list, element by element: a file of millions of points takes as much memory as its text, not six times as much."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()

Place = tuple[int, int]
"""First character of an element, and the one after its last."""


def scan(text: str, key: str, see: Callable[[Any], None]) -> tuple[Any, list[Place] | None]:
    """The value of a JSON text, and the places of the elements of the list that an object has under `key`.

    The list itself is left out of the object. None where there is none; then the value is whole. `see` is shown each element, in order.

    Raises:
        ValueError, RecursionError: as `json.loads`.
    """
    at = _skip(text, 0)
    if not text.startswith("{", at):
        return json.loads(text), None
    found: dict[str, Any] = {}
    places: list[Place] | None = None
    at = _skip(text, at + 1)
    while not text.startswith("}", at):
        if not text.startswith('"', at):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        name, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _expect(text, _skip(text, at), ":"))
        if name == key and (places is not None or key in found):
            raise json.JSONDecodeError(f"Several lists '{key}'", text, at)
        if name == key and text.startswith("[", at):
            places, at = _elements(text, at, see)
        else:
            found[name], at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        if not text.startswith("}", at):
            at = _skip(text, _expect(text, at, ","))
            if text.startswith("}", at):
                raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
    if _skip(text, at + 1) < len(text):
        raise json.JSONDecodeError("Extra data", text, at + 1)
    return found, places


def elements(text: str, places: list[Place]) -> Iterator[Any]:
    """The elements at these places, one after the other."""
    for start, _ in places:
        yield _DECODER.raw_decode(text, start)[0]


def _elements(text: str, at: int, see: Callable[[Any], None]) -> tuple[list[Place], int]:
    places: list[Place] = []
    at = _skip(text, at + 1)
    if text.startswith("]", at):
        return places, at + 1
    while True:
        element, stop = _DECODER.raw_decode(text, at)
        see(element)
        places.append((at, stop))
        at = _skip(text, stop)
        if text.startswith("]", at):
            return places, at + 1
        at = _skip(text, _expect(text, at, ","))


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _expect(text: str, at: int, sign: str) -> int:
    if not text.startswith(sign, at):
        raise json.JSONDecodeError(f"Expecting '{sign}' delimiter", text, at)
    return at + 1
