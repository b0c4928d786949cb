"""Counts of a JSON body in pieces: never below what a parser makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.http.json_structure import Structure

PIECES = st.lists(st.integers(0, 400), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


def counted(body: bytes, cuts: list[int] | None = None) -> Structure:
    structure = Structure()
    places = sorted(cuts or [])
    for start, end in zip([0, *places], [*places, len(body)], strict=True):
        structure.feed(body[start:end])
    return structure


def nodes(value: Any) -> tuple[int, int]:
    """How many values, keys among them, and how many objects."""
    inner = value if isinstance(value, list) else []
    inner = [*value.values(), *value] if isinstance(value, dict) else inner
    counts = [nodes(one) for one in inner]
    objects = sum(count[1] for count in counts) + isinstance(value, dict)
    return 1 + sum(count[0] for count in counts), objects


@given(VALUES, PIECES, st.booleans())
def test_never_below(value: Any, cuts: list[int], escaped: bool) -> None:
    """Every value but one scalar alone is counted, every object exactly, however it is cut."""
    body = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    found = counted(body, cuts)
    values, objects = nodes(value)
    assert found.objects == objects
    assert values <= 1 + found.values + found.objects


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), PIECES, st.booleans())
def test_width(text: str, cuts: list[int], escaped: bool) -> None:
    """A parsed text takes at most so many bytes a character."""
    body = json.dumps(text, ensure_ascii=escaped).encode()
    widest = max(map(ord, text))
    width = 1 if widest < 0x100 else 2 if widest < 0x10000 else 4
    assert counted(body, cuts).width >= width
    if b"\\u" not in body:  # else it counts as wide, whatever it is
        assert counted(body, cuts).width == width


@given(st.text('ab"\\,[{:\\\\'), PIECES)
def test_marks_in_strings_are_text(text: str, cuts: list[int]) -> None:
    """Whatever a string holds, escaped quotes and backslashes included, it is one value."""
    found = counted(json.dumps([text]).encode(), cuts)
    assert (found.values, found.objects) == (2, 0)


@pytest.mark.parametrize(
    ("body", "values", "objects"),
    [
        pytest.param(b"[" + b"[]," * 100 + b"[]]", 202, 0, id="arrays"),
        pytest.param(b"[" + b'{"":0},' * 100 + b"0]", 301, 100, id="objects"),
        pytest.param(b"[" + b"0," * 100 + b"0]", 101, 0, id="integers"),
        pytest.param(b"[" * 100, 100, 0, id="nesting"),
        pytest.param(b'{"a":1,"a":1}', 5, 1, id="a key twice"),
    ],
)
def test_counts(body: bytes, values: int, objects: int) -> None:
    """Separators, brackets and strings."""
    found = counted(body)
    assert (found.values, found.objects) == (values, objects)
