"""What requests in flight hold: bounded over all, given back whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.errors import RequestError
from embedserve.http.memory_budget import (
    EBB_BYTES,
    PROGRESS_BYTES,
    PROGRESS_SECONDS,
    SMALL_BYTES,
    Arrival,
    MemoryBudget,
    Reservation,
    largest_stalled,
    reserved,
)

LIMIT = 6400
SMALL = LIMIT // 8 // 8


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_past_the_limit() -> None:
    """429 with when to try again; what was held before stays as it was."""
    budget = MemoryBudget(LIMIT)
    first, second = Reservation(budget), Reservation(budget)
    first.add(4000)
    second.add(1600)
    with pytest.raises(RequestError) as refused:
        second.add(1)
    assert (refused.value.status, refused.value.code) == (429, "queue_full")
    assert refused.value.headers["Retry-After"] == "1"
    assert (budget.bytes, second.bytes) == (5600, 1600)
    first.release()
    second.add(4000)
    assert budget.bytes == 5600


def test_a_request_alone_always_fits() -> None:
    """What an idle server could do is not refused for its size; small ones fit beside it."""
    budget = MemoryBudget(LIMIT)
    alone = Reservation(budget)
    alone.add(LIMIT)
    alone.add(10 * LIMIT)
    with pytest.raises(RequestError):
        Reservation(budget).add(SMALL + 1)
    small = [Reservation(budget) for _ in range(8)]
    for reservation in small:
        reservation.add(SMALL)
    with pytest.raises(RequestError):
        Reservation(budget).add(1)
    alone.release()
    Reservation(budget).add(LIMIT - 2 * reserved(LIMIT))


def test_large_requests_leave_room_for_small_ones() -> None:
    """The last eighth is for small requests, and they may hold the rest as well."""
    budget = MemoryBudget(LIMIT)
    large = [Reservation(budget) for _ in range(7)]
    for reservation in large:
        reservation.add(LIMIT // 8)
    with pytest.raises(RequestError):
        Reservation(budget).add(SMALL + 1)
    for _ in range(8):
        Reservation(budget).add(SMALL)
    with pytest.raises(RequestError):
        Reservation(budget).add(1)
    other = MemoryBudget(LIMIT)
    for _ in range(64):
        Reservation(other).add(SMALL)
    assert other.bytes == LIMIT


def test_a_request_shrinks() -> None:
    """What a body took and its texts do not is free for others."""
    budget = MemoryBudget(LIMIT)
    first, second = Reservation(budget), Reservation(budget)
    first.hold(5000)
    first.hold(100)
    second.hold(5000)
    assert (budget.bytes, first.bytes, second.bytes) == (5100, 100, 5000)


class TestStalled:
    """Bodies that make no progress are given up where others find no room, the largest first."""

    def test_the_largest_is_given_up(self) -> None:
        """And those that are left, as far as it takes; not those that make progress."""
        clock = Clock()
        budget = MemoryBudget(LIMIT, clock=clock)
        given_up: list[str] = []
        reservations = {name: Reservation(budget) for name in ("small", "large", "steady")}
        sizes = {"small": 1000, "large": 3000, "steady": 1500}
        arrivals = {
            name: reservation.arrives(lambda name=name: given_up.append(name))  # type: ignore[misc]
            for name, reservation in reservations.items()
        }
        for name, size in sizes.items():
            reservations[name].add(size)
        clock.now = PROGRESS_SECONDS / 2
        arrivals["steady"].brings(PROGRESS_BYTES)
        clock.now = PROGRESS_SECONDS
        honest = Reservation(budget)
        honest.add(2000)
        assert given_up == ["large"]
        assert reservations["large"].bytes == 0
        honest.add(1500)
        assert given_up == ["large", "small"]
        with pytest.raises(RequestError):
            honest.add(1000)
        assert given_up == ["large", "small"]
        assert budget.bytes == 1500 + 3500

    def test_it_never_gives_up_itself(self) -> None:
        """A body that finds no room for itself is refused."""
        clock = Clock()
        budget = MemoryBudget(LIMIT, clock=clock)
        Reservation(budget).add(4000)
        late = Reservation(budget)
        late.arrives(lambda: pytest.fail("given up"))
        late.add(1000)
        clock.now = 10 * PROGRESS_SECONDS
        with pytest.raises(RequestError):
            late.add(4000)

    def test_what_has_arrived_is_not_stalled(self) -> None:
        """A request that is being answered holds what it needs."""
        clock = Clock()
        budget = MemoryBudget(LIMIT, clock=clock)
        done = Reservation(budget)
        done.arrives(lambda: pytest.fail("given up"))
        done.add(5000)
        done.has_arrived()
        clock.now = 10 * PROGRESS_SECONDS
        with pytest.raises(RequestError):
            Reservation(budget).add(4000)

    @pytest.mark.parametrize(
        ("each", "every", "stalled"),
        [
            pytest.param(1, 0.5, True, id="a trickle"),
            pytest.param(PROGRESS_BYTES // 4, 0.5, True, id="half the least rate"),
            pytest.param(PROGRESS_BYTES // 4, 0.2, False, id="above the least rate"),
            pytest.param(PROGRESS_BYTES, 0.9, False, id="in large pieces"),
        ],
    )
    def test_rates(self, each: int, every: float, stalled: bool) -> None:
        """Progress is a rate, not a byte now and then."""
        clock = Clock()
        arrival = Arrival(Reservation(MemoryBudget(LIMIT)), lambda: None, clock)
        while clock.now < 10:
            clock.now += every
            arrival.brings(each)
        assert (largest_stalled([arrival], clock.now + every / 2) is arrival) is stalled


def test_the_ebb_is_told_once() -> None:
    """When next to nothing is left of much: memory can be given back then."""
    told: list[int] = []
    budget = MemoryBudget(10 * EBB_BYTES, lambda: told.append(budget.bytes))
    reservations = [Reservation(budget) for _ in range(20)]
    for reservation in reservations:
        reservation.add(EBB_BYTES // 10)
    for reservation in reservations:
        reservation.release()
    assert len(told) == 1
    assert told[0] <= EBB_BYTES // 4
    Reservation(budget).add(EBB_BYTES // 2)
    reservations[0].release()
    assert len(told) == 1


@given(
    st.sampled_from([LIMIT, 100 * SMALL_BYTES]),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60) | st.none()), max_size=60),
)
def test_nothing_is_lost(limit: int, steps: list[tuple[int, int | None]]) -> None:
    """The sum is that of the reservations at every moment; only one large one passes the limit."""
    budget = MemoryBudget(limit)
    reservations = [Reservation(budget) for _ in range(5)]
    for i, part in steps:
        if part is None:
            reservations[i].release()
        else:
            try:
                reservations[i].hold(part * limit // 50)
            except RequestError:
                others = budget.bytes - reservations[i].bytes
                assert others + part * limit // 50 > limit - reserved(limit)
        held = [reservation.bytes for reservation in reservations]
        assert budget.bytes == sum(held)
        assert budget.bytes <= max(limit, max(held) + reserved(limit))
