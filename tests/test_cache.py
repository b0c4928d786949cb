"""The cache of vectors: exact, bounded, oldest use first out."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedserve.engine.cache import VectorCache


def key(number: int) -> tuple[str, bytes]:
    """A sequence's key."""
    return ("f", number.to_bytes(8, "little"))


@given(
    limit=st.integers(0, 6000),
    uses=st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60),
)
def test_never_past_its_limit_and_never_another_s_row(
    limit: int, uses: list[tuple[bool, int]]
) -> None:
    """Whatever is put and asked for: size within the limit, a row is the one that was put."""
    cache = VectorCache(limit)
    for is_put, number in uses:
        if is_put:
            cache.put(key(number), np.full(3, number, np.float32))
        row = cache.get(key(number))
        assert row is None or row.tolist() == [number] * 3
        assert 0 <= cache.size <= limit


def test_the_longest_unused_goes_first() -> None:
    """A row that was asked for stays before one that was not."""
    row = np.zeros(384, np.float32)
    cache = VectorCache(3 * (row.nbytes + 508))
    for number in (1, 2, 3):
        cache.put(key(number), row)
    assert cache.get(key(1)) is not None
    cache.put(key(4), row)
    assert [cache.get(key(n)) is not None for n in (1, 2, 3, 4)] == [True, False, True, True]


def test_a_row_does_not_hold_its_pass() -> None:
    """What is kept is a copy: a pass's whole array is freed, and cannot change it."""
    rows = np.ones((256, 3), np.float32)
    cache = VectorCache(10_000)
    cache.put(key(1), rows[0])
    rows[:] = 2
    kept = cache.get(key(1))
    assert kept is not None
    assert kept.base is None
    assert kept.tolist() == [1, 1, 1]
