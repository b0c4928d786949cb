"""base64 of many rows is that of the standard library."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.encoding import base64_rows


@pytest.mark.parametrize("dim", [1, 2, 3, 64, 256, 383, 384, 385, 512, 768, 1024])
@pytest.mark.parametrize("n", [1, 2, 100, 2048])
def test_equals_the_standard_library(n: int, dim: int) -> None:
    """Each row by itself, of any width, few rows and many."""
    rows = np.random.default_rng(n * dim).standard_normal((n, dim)).astype(np.float32)
    assert base64_rows(rows) == [base64.b64encode(row.astype("<f4").tobytes()) for row in rows]


@given(st.binary(min_size=4, max_size=64).filter(lambda data: len(data) % 4 == 0))
def test_every_byte(data: bytes) -> None:
    """Any bytes at all, repeated until the tables are used."""
    row = np.frombuffer(data, "<f4")
    rows = np.tile(row, (16_384 // len(data) + 1, 1))
    assert {bytes(text) for text in base64_rows(rows)} == {base64.b64encode(data)}
