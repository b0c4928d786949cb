"""Admission: the predicted wait, and what it learns of work that passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.engine.admission import Admission, Ahead
from embedserve.engine.batch_queue import PATIENCE
from embedserve.model.cost import Shape

SHAPE = Shape("plain", quadratic=1e12)
BEFORE = 1000.0


def made() -> Admission:
    """Two lanes of 100 cost units a second."""
    return Admission({SHAPE: 100.0}, lanes=2, max_wait=10.0)


def wait(admission: Admission, cost: float, before: float = BEFORE) -> float:
    """What a request of `cost` would wait, with so much before it."""
    return admission.wait_behind(Ahead(0.0, before, cost), {SHAPE: before})


def learn(admission: Admission, passed: float, times: int = 1, cost: float = 500.0) -> None:
    """Requests of `cost` were done after what was before them and so much of others."""
    for _ in range(times):
        admission.learn(Ahead(70.0, BEFORE, cost), 70.0 + BEFORE + passed + cost)


def test_what_waits_before_is_all_while_nothing_passes() -> None:
    """1,000 units on two lanes of 100 a second."""
    admission = made()
    assert wait(admission, 500) == pytest.approx(5)
    learn(admission, passed=0.0, times=50)
    assert wait(admission, 500) == pytest.approx(5)


def test_what_passes_is_counted_once_it_was_seen() -> None:
    """At most as much as waits, and as may pass by the queue's rule; soon learned."""
    admission = made()
    learn(admission, passed=BEFORE, times=30)
    assert wait(admission, 500) == pytest.approx(10, rel=0.01)
    # PATIENCE times its cost of 25 may pass a smaller one, whatever waits.
    assert wait(admission, 25) == pytest.approx(5 + 25 * PATIENCE / 200, rel=0.01)


def test_it_is_forgotten_slowly() -> None:
    """A prediction holds for nearly all: one in five that were passed keeps most of it."""
    admission = made()
    for _ in range(50):
        learn(admission, passed=BEFORE)
        learn(admission, passed=0.0, times=4)
    assert wait(admission, 500) > 8
    learn(admission, passed=0.0, times=300)
    assert wait(admission, 500) < 5.1


def test_nothing_before_is_no_wait() -> None:
    """However much has passed others: what an idle server could do is not refused."""
    admission = made()
    learn(admission, passed=BEFORE, times=30)
    assert wait(admission, 10_000, before=0.0) == 0
    admission.learn(Ahead(0.0, 0.0, 10.0), 500.0)  # it found nothing: nothing is learned
    assert wait(admission, 500) == pytest.approx(10, rel=0.01)


def test_who_found_little_teaches_nothing() -> None:
    """Queries that come while a large request runs alone say nothing of those that wait."""
    admission = made()
    for _ in range(30):
        admission.learn(Ahead(0.0, 50.0, 10_000.0), 20_000.0)
    assert wait(admission, 500) == pytest.approx(5)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e6, 1e9)), max_size=30),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
)
def test_from_one_to_two_times_what_waits(
    learned: list[tuple[float, float]], cost: float, before: float
) -> None:
    """Whatever it was told: a cancelled request's work, or none at all."""
    admission = made()
    for its_cost, passed in learned:
        learn(admission, passed, cost=its_cost)
    plain = admission.wait({SHAPE: before})
    assert plain <= wait(admission, cost, before) <= 2 * plain + 1e-9
