"""What requests in flight hold: bounded over all, given back whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.errors import RequestError
from embedserve.pending import EBB_BYTES, Pending, Share


def test_past_the_limit() -> None:
    """429 with when to try again; what was held before stays as it was."""
    pending = Pending(100)
    first, second = Share(pending), Share(pending)
    first.add(70)
    second.add(30)
    with pytest.raises(RequestError) as refused:
        second.add(1)
    assert (refused.value.status, refused.value.code) == (429, "queue_full")
    assert refused.value.headers["Retry-After"] == "1"
    assert (pending.bytes, second.bytes) == (100, 30)
    first.release()
    second.add(70)
    assert pending.bytes == 100


def test_a_request_alone_always_fits() -> None:
    """What an idle server could do is not refused for its size."""
    pending = Pending(100)
    alone = Share(pending)
    alone.add(90)
    alone.add(1000)
    with pytest.raises(RequestError):
        Share(pending).add(1)
    alone.release()
    Share(pending).add(100)


def test_the_ebb_is_told_once() -> None:
    """When next to nothing is left of much: memory can be given back then."""
    told: list[int] = []
    pending = Pending(10 * EBB_BYTES, lambda: told.append(pending.bytes))
    shares = [Share(pending) for _ in range(20)]
    for share in shares:
        share.add(EBB_BYTES // 10)
    for share in shares:
        share.release()
    assert len(told) == 1
    assert told[0] <= EBB_BYTES // 4
    Share(pending).add(EBB_BYTES // 2)
    shares[0].release()
    assert len(told) == 1


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60) | st.none()), max_size=60))
def test_nothing_is_lost(steps: list[tuple[int, int | None]]) -> None:
    """The sum is that of the shares at every moment, and past the limit for one alone only."""
    pending = Pending(100)
    shares = [Share(pending) for _ in range(5)]
    for i, count in steps:
        if count is None:
            shares[i].release()
        else:
            try:
                shares[i].add(count)
            except RequestError:
                assert pending.bytes + count > 100
        assert pending.bytes == sum(share.bytes for share in shares)
        assert pending.bytes <= 100 or pending.bytes == max(share.bytes for share in shares)
