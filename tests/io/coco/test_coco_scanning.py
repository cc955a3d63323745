"""A list read element by element is the list that `json` reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.io.coco.scanning import elements, scan

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "key", "k", ""]), VALUES), st.lists(VALUES) | VALUES, st.sampled_from([None, 0, 2]))
def test_as_json_reads_it(rest: dict[str, Any], value: Any, indent: int | None) -> None:
    text = json.dumps({**rest, "key": value}, indent=indent)
    seen: list[Any] = []
    found, places = scan(f" {text}\n", "key", seen.append)
    if isinstance(value, list):
        assert places is not None
        assert seen == value == list(elements(f" {text}\n", places))
        assert found == {name: one for name, one in rest.items() if name != "key"}
    else:
        assert places is None
        assert found == {**rest, "key": value}


@pytest.mark.parametrize("text", ['[1, {"a": 2}]', "3", '"a"', "{}", '{"b": [1]}'])
def test_without_such_a_list(text: str) -> None:
    assert scan(text, "a", pytest.fail) == (json.loads(text), None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a"',
        '{"a": ',
        '{"a": [',
        '{"a": [1',
        '{"a": [1,]}',
        '{"a": [1 2]}',
        '{"a": [1],}',
        '{"a": []} x',
        "{1: 2}",
        '{"b": 1 "a": []}',
        '{"a" []}',
        '{"a": [], "a": [2]}',
    ],
)
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match="line 1 column"):
        scan(text, "a", lambda one: None)
