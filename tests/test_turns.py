"""The order of work in slices: small first, nothing starves, and what goes before is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.engine.batch_queue import PATIENCE
from embedserve.engine.turns import Turn, Turns

GRAIN = 10
COSTS = st.integers(1, 1_000)
# What happens, one after the other: work comes (its cost), a slice is done, the nth turn leaves.
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("comes"), COSTS),
        st.tuples(st.just("slice"), COSTS),
        st.tuples(st.just("leaves"), st.integers(0, 20)),
    ),
    max_size=60,
)


def played(events: list[tuple[str, int]]) -> tuple[Turns, list[Turn]]:
    """Turns after the events, and all work that waits."""
    turns, waiting = Turns(GRAIN), list[Turn]()
    for event, number in events:
        if event == "comes":
            waiting.append(turns.put(number % 3, number))
        elif event == "slice" and (turn := turns.take()) is not None:
            turns.advance(turn, number)
            if turn.left == 0:
                turns.leave(turn)
                waiting.remove(turn)
        elif event == "leaves" and number < len(waiting):
            turns.leave(waiting.pop(number))
    return turns, waiting


def first(turns: Turns) -> Turn | None:
    """The work that has the next slice, and goes on having it."""
    turn = turns.take()
    if turn is not None:
        turns.advance(turn, 0)
    return turn


def test_small_passes_large() -> None:
    """Work that came later goes first when it asks for less."""
    turns = Turns(GRAIN)
    large = turns.put("a", 1_000)
    assert first(turns) is large
    small = turns.put("a", 10)
    assert first(turns) is small
    turns.leave(small)
    assert first(turns) is large


def test_what_was_taken_is_not_given_again_before_its_slice_is_over() -> None:
    """The next has a thread meanwhile; then the order is what it was."""
    turns = Turns(GRAIN)
    one, two = turns.put("a", 100), turns.put("a", 100)
    assert [turns.take(), turns.take(), turns.take()] == [one, two, None]
    turns.advance(two, 10)
    turns.advance(one, 10)
    assert (turns.take(), turns.waiting()) == (one, {"a": 180})


def test_equal_work_is_done_in_the_order_in_which_it_came() -> None:
    """And the first is finished before the second begins."""
    turns = Turns(GRAIN)
    one, two = turns.put("a", 100), turns.put("a", 100)
    assert turns.take() is one
    turns.advance(one, 60)
    assert turns.take() is one
    turns.advance(one, 40)
    turns.leave(one)
    assert turns.take() is two


def test_leaving_twice_is_leaving_once() -> None:
    """And a slice that was under way counts as done all the same."""
    turns = Turns(GRAIN)
    turn = turns.put("a", 100)
    turns.leave(turn)
    turns.leave(turn)
    turns.advance(turn, 30)
    assert (len(turns), turns.done, turns.waiting()) == (0, 30, {})


@pytest.mark.parametrize("small", [1, 5, 20])
def test_nothing_starves(small: int) -> None:
    """Large work is begun before PATIENCE times its cost of later work is done."""
    turns = Turns(GRAIN)
    large = turns.put("a", 500)
    for _ in range(PATIENCE * 500):
        turns.put("a", small)
        turn = turns.take()
        if turn is large:
            break
        assert turn is not None
        turns.leave(turn)
        turns.advance(turn, turn.left)
    assert turn is large
    assert turns.done <= PATIENCE * 500 + small


@given(EVENTS)
def test_what_waits_is_exact(events: list[tuple[str, int]]) -> None:
    """Whatever came, was done and left: the sums by kind are those of what is left."""
    turns, waiting = played(events)
    expected: dict[object, int] = {}
    for turn in waiting:
        expected[turn.kind] = expected.get(turn.kind, 0) + turn.left
    assert (len(turns), turns.waiting()) == (len(waiting), expected)


@given(EVENTS, COSTS)
def test_what_goes_before_is_known_to_one_grain(events: list[tuple[str, int]], cost: int) -> None:
    """All that has a smaller key, and nothing with a key of a grain more."""
    turns, waiting = played(events)
    key = turns.done + PATIENCE * cost
    before = sum(turns.before(cost).values())
    assert sum(turn.left for turn in waiting if turn.place <= key) <= before
    assert before <= sum(turn.left for turn in waiting if turn.place < key + GRAIN)


@given(EVENTS)
def test_the_first_has_the_smallest_key(events: list[tuple[str, int]]) -> None:
    """Of all that waits."""
    turns, waiting = played(events)
    found = turns.take()
    assert (found is None) == (not waiting)
    if found is not None:
        assert found.place == min(turn.place for turn in waiting)
