"""Batching: nothing lost, nothing twice, every pass within its limits, nothing starves."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from embedserve.arrays.batch import pad
from embedserve.arrays.types import Ints
from embedserve.engine.batch_queue import (
    AFTER_SMALL,
    LONG_PASS_BUDGETS,
    PART_AFTER_SMALL,
    PATIENCE,
    BatchQueue,
    Entry,
)
from embedserve.model.cost import FREE_PADDING, MAX_PADDING, Shape

PLAIN = Shape("plain", quadratic=100.0)
MASKED = Shape("masked", quadratic=40.0, masked_up_to=12)
UNMASKED = Shape("unmasked", quadratic=1000.0, masked_up_to=0)
SHAPES = (PLAIN, MASKED, UNMASKED)
NO_ATTENTION = Shape("no attention", quadratic=1e12)  # a sequence costs its tokens


def entries_of(
    lengths: list[int], shape: Shape = NO_ATTENTION, owner: object = None
) -> list[Entry]:
    """One request's entries; the first token id is the row."""
    return [
        Entry(np.full(t, row, np.int64), shape, readers=[(owner, row)])
        for row, t in enumerate(lengths)
    ]


def owner_of(entry: Entry) -> object:
    """The one request that reads the entry."""
    ((owner, _),) = entry.readers
    return owner


def work(entry: Entry) -> float:
    """The cost of a sequence, stated once more: t (1 + t / quadratic)."""
    t = len(entry.ids)
    return t + t * t / entry.shape.quadratic


class Queueing(RuleBasedStateMachine):
    """BatchQueue against a dictionary of what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = 0
        self.queue = BatchQueue(1)
        self.waiting: dict[Entry, float] = {}  # with the key it was given
        self.reach: dict[Entry, float] = {}  # how far that was ahead of the work done
        self.placed: dict[Entry, int] = {}  # by which request
        self.gone: list[Entry] = []
        self.served = 0.0
        self.small_until = 0.0  # in work done
        self.requests = 0

    @initialize(budget=st.sampled_from([1, 5, 16, 40]))
    def start(self, budget: int) -> None:
        self.budget = budget
        self.queue = BatchQueue(budget)

    def is_long(self, entry: Entry) -> bool:
        return work(entry) > LONG_PASS_BUDGETS * self.budget

    @rule(
        shape=st.sampled_from(SHAPES),
        lengths=st.lists(st.integers(1, 14) | st.integers(1, 70), min_size=1, max_size=8),
    )
    def put(self, shape: Shape, lengths: list[int]) -> None:
        self.requests += 1
        made = entries_of(lengths, shape, self.requests)
        self.queue.put(made)
        reach = PATIENCE * sum(map(work, made))
        self.waiting.update(dict.fromkeys(made, self.served + reach))
        self.reach.update(dict.fromkeys(made, reach))
        self.placed.update(dict.fromkeys(made, self.requests))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), lengths=st.lists(st.integers(1, 20), max_size=4))
    def put_again(self, data: st.DataObject, lengths: list[int]) -> None:
        """A request for texts that others wait for, and some of its own."""
        self.requests += 1
        shared = data.draw(st.lists(st.sampled_from([*self.waiting]), max_size=4, unique=True))
        made = entries_of(lengths, PLAIN, self.requests)
        self.queue.put([*shared, *made])
        reach = PATIENCE * sum(map(work, [*shared, *made]))
        key = self.served + reach
        for entry in [*shared, *made]:
            if key < self.waiting.get(entry, math.inf):
                self.waiting[entry] = key
                self.reach[entry] = reach
                self.placed[entry] = self.requests

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        """Any entries: some wait, some have left before."""
        known = [*self.waiting, *self.gone[-5:]]
        leaving = data.draw(st.lists(st.sampled_from(known), max_size=6))
        self.queue.discard(leaving)
        for entry in leaving:
            if self.waiting.pop(entry, None) is not None:
                self.gone.append(entry)

    @rule(allow_long=st.booleans())
    def take(self, allow_long: bool) -> None:
        taken = self.queue.take(allow_long)
        eligible = [e for e in self.waiting if allow_long or not self.is_long(e)]
        assert bool(taken) == bool(eligible), "a pass is made exactly when something may run"
        if not taken:
            return
        assert len(set(taken)) == len(taken), "no entry stands twice in a pass"
        assert all(e in self.waiting for e in taken), "what is taken waited, and waits no more"
        self.check_first(taken[0], eligible)
        room = self.room(taken[0])
        self.check_limits(taken, allow_long, room)
        last = self.waiting[taken[0]] + max(self.budget, self.reach[taken[0]])
        assert all(self.waiting[e] <= last + 1e-6 for e in taken), "what could wait fills no pass"
        for entry in taken:
            del self.waiting[entry]
            self.served += work(entry)
        self.check_full(taken, last, room)
        self.gone += taken

    @rule()
    def take_all(self) -> None:
        """All that was put and not discarded comes out."""
        while self.waiting:
            self.take(allow_long=True)
        assert self.queue.take() == []

    def check_first(self, first: Entry, eligible: list[Entry]) -> None:
        """The smallest key goes first, and the longest of its request."""
        least = min(self.waiting[e] for e in eligible)
        assert self.waiting[first] == pytest.approx(least)
        rivals = [len(e.ids) for e in eligible if self.placed[e] == self.placed[first]]
        assert len(first.ids) == max(rivals)

    def room(self, first: Entry) -> float:
        """Tokens a pass may have: fewer for a while after a small request."""
        if self.reach[first] <= self.budget:
            self.small_until = self.served + AFTER_SMALL * self.budget
        elif self.served < self.small_until:
            return PART_AFTER_SMALL * self.budget
        return self.budget

    def check_limits(self, taken: list[Entry], allow_long: bool, room: float) -> None:
        lengths = [len(e.ids) for e in taken]
        b, t = len(taken), max(lengths)
        assert {e.shape for e in taken} == {taken[0].shape}, "a pass is of one model"
        assert b == 1 or b * t <= room, "tokens with padding stay within the budget"
        most = max(FREE_PADDING, MAX_PADDING * b * t)
        assert b * t - sum(lengths) <= most, "padding is bounded"
        limit = taken[0].shape.masked_up_to
        if limit is not None and t > limit:
            assert set(lengths) == {t}, "too long for a mask: equal lengths only"
        assert allow_long or not any(map(self.is_long, taken)), "a long one was not allowed"

    def check_full(self, taken: list[Entry], last: float, room: float) -> None:
        """No sequence that would have fitted, and is as urgent, was left behind."""
        lengths, shape = [len(e.ids) for e in taken], taken[0].shape
        for entry in self.waiting:
            if entry.shape != shape or self.waiting[entry] >= last - 1e-6:
                continue
            both = [*lengths, len(entry.ids)]
            size = len(both) * max(both)
            fits = size <= room and size - sum(both) <= max(FREE_PADDING, MAX_PADDING * size - 1e-6)
            near = len(entry.ids) in shape.near(lengths[0])
            assert not (fits and near), (lengths, len(entry.ids))

    @invariant()
    def gauges_agree(self) -> None:
        assert len(self.queue) == len(self.waiting)
        for shape in SHAPES:
            mine = [work(e) for e in self.waiting if e.shape == shape]
            assert self.queue.depth(shape) == len(mine)
            assert self.queue.cost(shape) == pytest.approx(sum(mine))
            assert mine or self.queue.cost(shape) == 0, "no crumbs of floats in an empty queue"

    @invariant()
    def what_goes_before_is_known(self) -> None:
        for cost in (0.0, 25.0) if self.budget else ():
            last = (self.served + PATIENCE * cost) // self.budget
            for shape in SHAPES:
                ahead = [
                    work(e)
                    for e, key in self.waiting.items()
                    if e.shape == shape and key // self.budget <= last
                ]
                assert self.queue.cost_before(cost).get(shape, 0.0) == pytest.approx(sum(ahead))


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@given(
    bulk=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    short=st.integers(1, 40),
    others=st.integers(1, 6),
    backlog=st.integers(0, 20),
    same_model=st.booleans(),
)
@settings(deadline=None)
def test_an_endless_stream_of_short_requests_does_not_starve_bulk(
    bulk: list[int], short: int, others: int, backlog: int, same_model: bool
) -> None:
    """Bulk ends before PATIENCE + 1 times its own work is served, plus what stood before it.

    `others` clients each send one text and the next as soon as it is taken.
    """
    budget = 32
    queue = BatchQueue(budget)
    stream_shape = NO_ATTENTION if same_model else Shape("stream", quadratic=1e12)
    queue.put(entries_of([5] * backlog, Shape("backlog", quadratic=1e12)) if backlog else [])
    queue.put(entries_of(bulk, NO_ATTENTION, "bulk"))
    for _ in range(others):
        queue.put(entries_of([short], stream_shape))
    own, left, served = sum(bulk), len(bulk), 0
    before = 5 * backlog + others * PATIENCE * short
    bound = (PATIENCE + 1) * own + before + max(budget, *bulk, short)
    while left:
        taken = queue.take()
        left -= sum(owner_of(entry) == "bulk" for entry in taken)
        served += sum(len(entry.ids) for entry in taken)
        assert served <= bound, f"{left} of bulk's {len(bulk)} texts still wait"
        for entry in taken:
            if owner_of(entry) is None and entry.shape == stream_shape:
                queue.put(entries_of([short], stream_shape))


@given(bulk=st.integers(20, 200), passes=st.integers(0, 8), short=st.integers(1, 16))
@settings(deadline=None)
def test_a_short_request_passes_bulk(bulk: int, passes: int, short: int) -> None:
    """A query that comes during bulk indexing runs in the next pass, first."""
    queue = BatchQueue(32)
    queue.put(entries_of([30] * bulk, owner="bulk"))
    for _ in range(passes):
        queue.take()
    queue.put(entries_of([short], owner="query"))
    assert owner_of(queue.take()[0]) == "query"


def test_after_enough_work_nothing_newer_passes_bulk() -> None:
    """Bulk of 10 texts of 30 passes newer texts of 10 once PATIENCE * (300 - 10) were served."""
    queue = BatchQueue(32)
    queue.put(entries_of([30] * 10, owner="bulk"))
    for _ in range(PATIENCE * 29):
        queue.put(entries_of([10], owner="early"))
        assert [owner_of(e) for e in queue.take()] == ["early"]
    queue.put(entries_of([11], owner="late"))
    owners = [owner_of(queue.take()[0]) for _ in range(11)]
    assert owners == ["bulk"] * 10 + ["late"]


@given(bulks=st.integers(1, PATIENCE - 3), size=st.integers(10, 40), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_a_query_goes_next_whatever_bulk_clients_there_are(
    bulks: int, size: int, seed: int
) -> None:
    """Bulk clients that each send again when they are done: a query is first in the next pass."""
    queue = BatchQueue(32)
    draw = np.random.default_rng(seed)
    left = dict.fromkeys(range(bulks), 0)
    for turn in range(200):
        for bulk in left:
            if left[bulk] == 0:
                left[bulk] = size
                queue.put(entries_of(draw.integers(8, 12, size).tolist(), owner=bulk))
        if turn % 10 == 9:
            queue.put(entries_of([8], owner="query"))
        owners = [owner_of(entry) for entry in queue.take()]
        assert (owners[0] == "query") == (turn % 10 == 9)
        for owner in owners:
            if isinstance(owner, int):
                left[owner] -= 1


def test_a_query_s_pass_is_not_filled_with_bulk() -> None:
    """It is as short as the query, though there are texts of its length and room for them."""
    queue = BatchQueue(256)
    queue.put(entries_of([10] * 200, owner="bulk"))
    queue.put(entries_of([10], owner="query"))
    queue.put(entries_of([11], owner="another"))
    queue.put(entries_of([40], owner="longer"))
    assert [owner_of(entry) for entry in queue.take()] == ["query", "another"]
    assert [owner_of(entry) for entry in queue.take()] == ["longer"]
    assert [owner_of(entry) for entry in queue.take()] == ["bulk"] * 17


def test_bulk_runs_in_smaller_passes_while_queries_come() -> None:
    """For AFTER_SMALL budgets of work after the last one, then in whole passes again."""
    queue = BatchQueue(250)
    queue.put(entries_of([10] * 1000, owner="bulk"))
    assert len(queue.take()) == 25
    for _ in range(2):  # each query counts anew
        queue.put(entries_of([10], owner="query"))
        assert [owner_of(entry) for entry in queue.take()] == ["query"]
        work, passes = 10, []
        while work < AFTER_SMALL * 250:
            passes.append(len(queue.take()))
            work += 10 * passes[-1]
        assert passes == [17] * len(passes)  # of 175 tokens
        assert len(queue.take()) == 25
    # What is no query changes nothing.
    queue.put(entries_of([10] * 4, owner="longer"))
    assert [owner_of(entry) for entry in queue.take()] == ["longer"] * 4
    assert len(queue.take()) == 25


def test_requests_of_equal_work_run_in_order_of_arrival() -> None:
    """First come, first served where nobody asks for less."""
    queue = BatchQueue(10)
    for number in range(20):
        queue.put(entries_of([10], owner=number))
    assert [owner_of(queue.take()[0]) for _ in range(20)] == list(range(20))


def test_a_pass_is_filled_with_near_lengths_of_other_requests() -> None:
    """100 tokens share with 80 to 125, as long as padding is a fifth and the budget is kept."""
    queue = BatchQueue(1000)
    queue.put(entries_of([100, 126, 79, 80, 125]))
    # The longest of a request goes first.
    assert [len(e.ids) for e in queue.take()] == [126, 125]
    assert [len(e.ids) for e in queue.take()] == [100, 80]
    assert [len(e.ids) for e in queue.take()] == [79]
    queue = BatchQueue(300)
    queue.put(entries_of([100] * 3 + [90] * 2))
    assert [len(e.ids) for e in queue.take()] == [100, 100, 100]
    assert [len(e.ids) for e in queue.take()] == [90, 90]


def test_short_texts_share_a_pass_though_some_are_longer() -> None:
    """What a pass costs besides is worth FREE_PADDING tokens of padding."""
    queue = BatchQueue(256)
    for length in (9, 5, 7, 6, 12):
        queue.put(entries_of([length]))
    assert [len(e.ids) for e in queue.take()] == [5, 6, 7, 9]  # padding 9; with 12 it were 21
    assert [len(e.ids) for e in queue.take()] == [12]


def test_a_text_past_the_budget_runs_alone() -> None:
    """The budget bounds sharing, not what may be asked."""
    queue = BatchQueue(8)
    queue.put(entries_of([9, 9]))
    assert [len(e.ids) for e in queue.take()] == [9]
    assert [len(e.ids) for e in queue.take()] == [9]


def test_long_texts_wait_while_no_long_pass_is_allowed() -> None:
    """With allow_long false the short ones run and the long ones keep their place."""
    queue = BatchQueue(8)
    (long,) = entries_of([8 * LONG_PASS_BUDGETS + 1], owner="long")
    (short,) = entries_of([8 * LONG_PASS_BUDGETS - 1], owner="short")
    queue.put([long])
    queue.put([short])
    assert queue.is_long(long)
    assert not queue.is_long(short)
    assert queue.take(allow_long=False) == [short]
    assert queue.take(allow_long=False) == []
    assert len(queue) == 1
    assert queue.take() == [long]


def test_a_discarded_entry_is_forgotten_and_others_are_left_alone() -> None:
    """Discard takes any entries: those that were taken, or discarded before, do not count."""
    queue = BatchQueue(4)
    first, second, third = entries_of([4, 4, 4])
    queue.put([first, second, third])
    assert queue.take() == [first]
    queue.discard([first, second])
    queue.discard([second])
    assert len(queue) == 1
    assert queue.take() == [third]


def living() -> int:
    """How many entries the process holds."""
    gc.collect()
    return sum(type(thing) is Entry for thing in gc.get_objects())


def test_entries_that_left_do_not_pile_up_behind_one_that_waits() -> None:
    """40,000 discarded entries behind a long one that may not run cost no lasting memory."""
    queue = BatchQueue(8)
    before = living()
    queue.put(entries_of([100]))
    for _ in range(80):
        leaving = entries_of([1, 2, 3, 4, 5] * 100)
        queue.put(leaving)
        queue.discard(leaving)
    del leaving
    assert len(queue) == 1
    assert living() - before < 4_000


def test_entries_that_were_taken_do_not_pile_up() -> None:
    """40,000 entries that ran, many beside a shorter request, leave nothing behind."""
    queue = BatchQueue(64)
    before = living()
    for _ in range(80):
        queue.put(entries_of([8, 9, 10, 11, 12] * 100))
        while queue.take():
            pass
    assert living() == before


@given(
    sequences=st.lists(
        st.lists(st.integers(1, 2**40), min_size=1, max_size=12), min_size=1, max_size=6
    ),
    pad_token_id=st.integers(0, 3),
    side=st.sampled_from(["right", "left"]),
)
def test_padding_can_be_taken_off_again(
    sequences: list[list[int]], pad_token_id: int, side: str
) -> None:
    """Where the mask is 1 stands the sequence, elsewhere the pad id, all on the one side."""
    batch = pad([np.array(ids, np.int64) for ids in sequences], pad_token_id, side)
    t = max(map(len, sequences))
    for array in batch:
        assert array.shape == (len(sequences), t)
        assert array.dtype == np.int64
        assert array.flags.c_contiguous
    for ids, row, mask in zip(sequences, batch.input_ids, batch.attention_mask, strict=True):
        ones, zeros = [1] * len(ids), [0] * (t - len(ids))
        assert mask.tolist() == (ones + zeros if side == "right" else zeros + ones)
        assert row[mask == 1].tolist() == ids
        assert set(row[mask == 0].tolist()) <= {pad_token_id}


def test_sequences_without_tokens_are_padded_to_one() -> None:
    """They share passes with near lengths, and cost what one token does."""
    empty, one = np.array([], np.int64), np.array([5])
    alone = pad([empty], 7, "right")
    assert (alone.input_ids.tolist(), alone.attention_mask.tolist()) == ([[7]], [[0]])
    together = pad([one, empty], 7, "left")
    assert together.attention_mask.tolist() == [[1], [0]]
    shape = Shape("m", 1000.0)
    assert shape.cost(0) == shape.cost(1)
    assert 0 in shape.near(0)
    assert 0 in shape.near(5)


def test_pad_leaves_its_sequences_alone() -> None:
    """A batch is a copy: an entry may run again after a pass failed."""
    ids: Ints = np.array([1, 2, 3], np.int64)
    batch = pad([ids], 0, "right")
    batch.input_ids[:] = 9
    assert ids.tolist() == [1, 2, 3]


def test_a_lone_request_is_shared_out_among_free_lanes() -> None:
    """Eight equal short texts and two free lanes: four in each pass; with one lane all in one."""
    shape = Shape("m", quadratic=1e9)
    for lanes, sizes in ((1, [8]), (2, [4, 4]), (3, [2, 3, 3]), (16, [1] * 8)):
        queue = BatchQueue(tokens_per_pass=256)
        queue.put([Entry(np.arange(10), shape) for row in range(8)])
        passes = []
        free = lanes
        while entries := queue.take(lanes=max(1, free)):
            passes.append(len(entries))
            free -= 1
        assert passes == sizes, lanes
