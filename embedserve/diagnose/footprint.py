"""The most memory that this process may use, by construction; printed at start.

CONSUMERS lists all that takes memory. Each consumer names the attributes that hold it. A test fails
if a class that serves keeps something that no consumer names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from embedserve import logs
from embedserve.artifact import Manifest
from embedserve.config.settings import Settings
from embedserve.http.body import most_values
from embedserve.http.json_structure import VALUE_BYTES
from embedserve.http.memory_budget import BODY_COPIES, answer_bytes, reserved
from embedserve.model.providers import PROVIDERS
from embedserve.model.tokenizer import (
    CHARACTERS_PER_TOKEN,
    ENCODED_BYTES,
    MOST_CHARACTERS,
    STEP_CHARACTERS,
)
from embedserve.system.host import Known

# Peak of a pass, in float32 values per token and hidden component: at its widest a layer holds the
# residual, the query, key and value, and the feed-forward's 4 + 4, with one copy of each.
_WIDTH = 24
_BAG_WIDTH = 2  # rows that were looked up, and their product with the mask
_HEAD = 32  # the narrowest head of any model, which gives the most heads
_SCORES = 2  # attention's scores and their softmax
# A head of 32 KiB in 100 fields (47 KB), what uvicorn and Python keep of a request (9 KB), 4 KB
# read ahead, and 20 KB that the client does not read: 8 KB in the transport, and one answer.
_CONNECTION = 80_000
# Freed memory that allocators keep, and growth of Python's own structures.
_SLACK = 64_000_000
_WIDEST = 4  # bytes per character, if a text has one past U+FFFF
# Stack that a thread touches. Threads besides lanes: log, tokenizer, renderer, parser, spans.
_STACK = 256_000
_OTHER_THREADS = 5
_LOG_RECORD = 3_000  # with its text and fields
# Spans in the exporter's queue (OTEL_BSP_MAX_QUEUE_SIZE), and in the batch that it sends.
_SPANS = 2_048 + 512
_SPAN = 8_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the consumers.

    `takes_ids`: a model accepts token ids. `on_device`: a device's memory holds the passes.
    `step_characters`: of one step of the tokenizer.
    """

    manifests: tuple[Manifest, ...]
    lanes: int
    tokens_per_pass: int
    settings: Settings
    takes_ids: bool = False
    on_device: bool = False
    step_characters: int = STEP_CHARACTERS


@dataclass(frozen=True, slots=True)
class Consumer:
    """Something that takes memory, at most `most(limits)` bytes.

    `what` describes it, `by` says what bounds it, and `holders` names the attributes that keep it
    as module.Class.attribute.
    """

    name: str
    what: str
    by: str
    most: Callable[[Limits], int]
    holders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes: `loaded` resident once all models are loaded, and at most `parts` by consumer."""

    loaded: int
    parts: Mapping[str, int]

    @property
    def most(self) -> int:
        """The upper bound of resident memory."""
        return self.loaded + sum(self.parts.values())

    def advice(self, memory: Known[int] | None) -> str | None:
        """Return what to lower if the bound exceeds `memory`, else None."""
        if memory is None or self.most <= memory.value:
            return None
        return (
            f"that may exceed the {memory.value / 1e6:.0f} MB available ({memory.origin}): "
            "lower max_connections, max_pending_mb, max_body_bytes or cache_mb"
        )

    def __str__(self) -> str:
        """One line for the log."""
        parts = ", ".join(f"{name} {value / 1e6:.0f}" for name, value in self.parts.items())
        return (
            f"memory: {self.loaded / 1e6:.0f} MB loaded, at most {self.most / 1e6:.0f} MB ({parts})"
        )


def estimate(
    loaded: int,
    manifests: Iterable[Manifest],
    lanes: int,
    tokens_per_pass: int,
    settings: Settings,
    *,
    takes_ids: bool = False,
    on_device: bool = False,
    step_characters: int = STEP_CHARACTERS,
) -> Footprint:
    """Add up what the settings allow. `loaded`: resident bytes now. See Limits for the rest."""
    limits = Limits(
        tuple(manifests),
        lanes,
        tokens_per_pass,
        settings,
        takes_ids,
        on_device,
        step_characters,
    )
    return Footprint(loaded, {consumer.name: consumer.most(limits) for consumer in CONSUMERS})


def _passes(limits: Limits) -> int:
    return limits.lanes * max(_pass(manifest, limits) for manifest in limits.manifests)


def _pass(manifest: Manifest, limits: Limits) -> int:
    """Bytes of the largest pass: one of `tokens_per_pass`, or the longest text alone."""
    longest = min(manifest.max_tokens, limits.settings.max_request_tokens)
    tokens = max(limits.tokens_per_pass, longest)
    if limits.on_device:  # copied to and from it: three inputs of int64, rows of float32
        return (3 * 8 + 4 * manifest.dimension) * tokens
    if manifest.is_bag:
        return 4 * _BAG_WIDTH * manifest.hidden_size * tokens
    linear = 4 * _WIDTH * manifest.hidden_size * tokens
    # Passes of short texts need less, because attention scores stay within each text.
    square = min(longest, manifest.masked_up_to or longest)
    rows = max(1, limits.tokens_per_pass // square)
    heads = max(1, manifest.hidden_size // _HEAD)
    return linear + 4 * _SCORES * heads * rows * square * square


def _requests(limits: Limits) -> int:
    """What all requests may hold: the limit, or the largest and the share of small ones."""
    limit = limits.settings.max_pending_mb * 1_000_000
    largest = max(_largest(manifest, limits) for manifest in limits.manifests)
    return max(limit, largest + reserved(limit))


def _largest(manifest: Manifest, limits: Limits) -> int:
    """Bytes of the largest request: while its body is parsed, or while it is answered."""
    settings = limits.settings
    size = settings.max_body_bytes
    values = min(size, most_values(settings, takes_ids=limits.takes_ids))
    parsing = (BODY_COPIES + _WIDEST) * size + VALUE_BYTES * values
    # The texts, and the UTF-8 that the tokenizer makes of them.
    answering = (_WIDEST + 1) * size + settings.max_inputs * answer_bytes(manifest.dimension)
    return max(parsing, answering)


def _tokenizing(limits: Limits) -> int:
    """Bytes of one slice per thread; a slice ends with the text that fills it."""
    longest = max(manifest.max_tokens for manifest in limits.manifests)
    text = min(longest * CHARACTERS_PER_TOKEN, MOST_CHARACTERS, limits.settings.max_body_bytes)
    threads = PROVIDERS[limits.settings.provider].tokenizers
    return threads * ENCODED_BYTES * (limits.step_characters + text)


CONSUMERS: tuple[Consumer, ...] = (
    Consumer(
        "passes",
        "activations of the largest pass, on every lane",
        "`lanes`, `tokens_per_pass`, the model",
        _passes,
        ("engine.scheduler.Scheduler._running",),
    ),
    Consumer(
        "requests in flight",
        "bodies, memory to parse them, texts (1 to 4 bytes per character), queue entries, answers",
        "`max_pending_mb`, or the largest request: `max_body_bytes`, `max_inputs`",
        _requests,
        (
            "engine.batch_queue.BatchQueue._by_length",
            "engine.batch_queue.BatchQueue._long",
            "engine.batch_queue.BatchQueue._places",
            "engine.batch_queue.BatchQueue._short",
            "engine.batch_queue.Entry.readers",
            "http.body._Incoming.body",
            "engine.jobs.InFlight._entries",
            "engine.jobs.Job.entries",
            "http.memory_budget.MemoryBudget._arrivals",
            "engine.offload.Slicer._started",
            "engine.turns.Turns._heap",
            "engine.turns.Turns._places",
            "engine.scheduler.Scheduler._again",
        ),
    ),
    Consumer(
        "tokenizing",
        "what the tokenizer's library allocates for the slices in its threads",
        "the model's limit, `max_body_bytes`",
        _tokenizing,
    ),
    Consumer(
        "cache",
        "computed vectors",
        "`cache_mb`",
        lambda limits: limits.settings.cache_mb * 1_000_000,
        ("engine.cache.VectorCache._rows",),
    ),
    Consumer(
        "connections",
        "80 KB for each that may be open; an idle one holds 4 KB",
        "`max_connections`",
        lambda limits: limits.settings.max_connections * _CONNECTION,
        (
            "http.departures.Departures._watched",
            "http.loop_turns.LoopTurns._waiting",
            "http.transport.Buffers.large",
        ),
    ),
    Consumer(
        "threads",
        "stacks",
        "`lanes`",
        lambda limits: (limits.lanes + _OTHER_THREADS) * _STACK,
        (
            "api.request_body.RequestBodies._parser",
            "engine.lanes.Lanes._threads",
            "logs.Lines._thread",
        ),
    ),
    Consumer(
        "logs",
        f"{logs.MOST_WAITING:,} lines that wait to be written",
        "",
        lambda limits: logs.MOST_WAITING * _LOG_RECORD,
        ("logs.Lines._records", "logs.Limit._kinds"),
    ),
    Consumer(
        "tracing",
        "spans that wait for the collector",
        "`tracing`",
        lambda limits: _SPANS * _SPAN if limits.settings.tracing else 0,
    ),
    Consumer(
        "allocators",
        "freed memory that they keep",
        "",
        lambda limits: _SLACK,
    ),
)
