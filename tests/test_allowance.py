"""What the loop may do itself: bursts of 20 ms, half of the time, and no more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from embedserve.engine.allowance import Allowance


def test_a_burst_ends_and_time_gives_it_back() -> None:
    """Four times 5 ms at once; 10 ms later 5 ms more."""
    allowance = Allowance()
    for _ in range(4):
        assert allowance.is_left(1.0)
        allowance.spend(0.005)
    assert not allowance.is_left(1.0)
    assert allowance.is_left(1.011)


@given(st.lists(st.tuples(st.floats(0, 0.1), st.floats(0, 0.01)), max_size=50))
def test_never_more_than_half_and_a_burst(asked: list[tuple[float, float]]) -> None:
    """Whatever comes at whichever pauses: one piece of work past it at most."""
    allowance, now, spent = Allowance(), 5.0, 0.0
    for pause, seconds in asked:
        now += pause
        if allowance.is_left(now):
            allowance.spend(seconds)
            spent += seconds
        assert spent <= 0.02 + 0.01 + 0.5 * (now - 5.0) + 1e-9
