"""Every metric: name, help, labels, buckets, on one injected registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from embedserve.errors import ERRORS

# A creation time for every series would double the scrape, and Prometheus' text format does not use
# it.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Codes of refusals before there is a whole request: of a connection, or of a request's head.
REFUSALS = (
    *("invalid_http", "request_timeout", "uri_too_long", "headers_too_large"),
    *("unsupported_transfer_coding", "out_of_memory", "too_many_connections", "invalid_api_key"),
)
OUTCOMES = ("ok", "cancelled", *ERRORS)
NO_MODEL = ""  # the label of a request that names no model we serve

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_RATIOS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Row:
    """One metric; docs/observing.md's table is made from METRICS."""

    kind: type[Counter] | type[Gauge] | type[Histogram]
    name: str
    help: str
    labels: tuple[str, ...] = ("model",)
    buckets: tuple[float, ...] = ()


METRICS: tuple[Row, ...] = (
    Row(Counter, "requests_total", "Embedding requests by outcome.", ("model", "outcome")),
    Row(Counter, "refusals_total", "Refusals before a whole request arrived.", ("code",)),
    Row(Counter, "texts_total", "Texts embedded."),
    Row(Counter, "tokens_total", "Tokens run in passes, including special tokens and prompts."),
    Row(Counter, "padding_tokens_total", "Padding tokens run in passes."),
    Row(Counter, "truncated_texts_total", "Texts cut to the model's limit."),
    Row(Counter, "failed_passes_total", "Forward passes that raised an error."),
    Row(Counter, "cache_hits_total", "Texts whose vector was in the cache."),
    Row(Counter, "cache_misses_total", "Texts whose vector was not in the cache."),
    Row(Histogram, "request_duration_seconds", "Time of a whole request.", ("model",), _SECONDS),
    Row(Histogram, "tokenization_duration_seconds", "Tokenizing a request.", ("model",), _SECONDS),
    Row(Histogram, "queue_wait_seconds", "Time queued until the first pass.", ("model",), _SECONDS),
    Row(Histogram, "inference_duration_seconds", "Time of one forward pass.", ("model",), _SECONDS),
    Row(Histogram, "batch_size", "Sequences in a forward pass.", ("model",), _SIZES),
    Row(Histogram, "batch_tokens", "Tokens in a pass, including padding.", ("model",), _TOKENS),
    Row(Histogram, "padding_ratio", "Share of padding in a pass.", ("model",), _RATIOS),
    Row(Gauge, "queue_depth", "Waiting sequences."),
    Row(Gauge, "requests_in_flight", "Embedding requests being answered."),
    Row(Gauge, "predicted_wait_seconds", "Time until all waiting work is tokenized and run.", ()),
    Row(Gauge, "max_wait_seconds", "Predicted wait past which requests get 429.", ()),
    Row(Gauge, "pending_bytes", "Bytes that requests in flight hold.", ()),
    Row(Gauge, "max_pending_bytes", "Limit of pending_bytes, past which requests get 429.", ()),
    Row(Gauge, "connections", "Open connections.", ()),
    Row(Gauge, "max_connections", "Connections past which a new one gets 503.", ()),
    Row(Gauge, "cache_bytes", "Size of the cache of vectors.", ()),
    Row(Gauge, "memory_bound_bytes", "Upper bound of resident memory, by construction.", ()),
    Row(Gauge, "memory_limit_bytes", "Memory this process may use; +Inf if no limit is known.", ()),
    Row(Gauge, "lanes", "Inference threads.", ()),
    Row(Gauge, "ready", "1 while the server wants new traffic, as /readyz says.", ()),
    Row(Gauge, "live", "1 until an inference thread is lost, as /livez says.", ()),
    Row(
        Gauge,
        "model_info",
        "1 for each model served.",
        ("model", "fingerprint", "dimension", "max_tokens", "precision", "provider"),
    ),
)


# Of the parent of several serving processes.
PARENT_METRICS: tuple[Row, ...] = (
    Row(Gauge, "processes", "Processes that serve.", ()),
    Row(Counter, "process_restarts_total", "Starts of a process in the place of another.", ()),
)


class ModelMetrics:
    """The series of one model, looked up once because a look-up costs as much as a count."""

    def __init__(self, made: Mapping[str, Any], name: str) -> None:
        def child(metric: str) -> Any:
            return made[metric].labels(name)

        self.requests: Mapping[str, Counter] = {
            outcome: made["requests_total"].labels(name, outcome) for outcome in OUTCOMES
        }
        self.texts: Counter = child("texts_total")
        self.tokens: Counter = child("tokens_total")
        self.padding_tokens: Counter = child("padding_tokens_total")
        self.truncated_texts: Counter = child("truncated_texts_total")
        self.failed_passes: Counter = child("failed_passes_total")
        self.cache_hits: Counter = child("cache_hits_total")
        self.cache_misses: Counter = child("cache_misses_total")
        self.request_duration: Histogram = child("request_duration_seconds")
        self.tokenization_duration: Histogram = child("tokenization_duration_seconds")
        self.queue_wait: Histogram = child("queue_wait_seconds")
        self.inference_duration: Histogram = child("inference_duration_seconds")
        self.batch_size: Histogram = child("batch_size")
        self.batch_tokens: Histogram = child("batch_tokens")
        self.padding_ratio: Histogram = child("padding_ratio")
        self.queue_depth: Gauge = child("queue_depth")
        self.requests_in_flight: Gauge = child("requests_in_flight")


class Metrics:
    """All metrics of one process, every series present from the first scrape on.

    A gauge without labels appears only after `fix` or `watch`: a 0 before that would mean that this
    process is not ready, or may hold nothing.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._made = {row.name: _make(row, self.registry) for row in METRICS}
        self._shown: set[str] = set()  # gauges without labels
        self._models: dict[str, ModelMetrics] = {}
        # Requests that name no model we serve.
        requests: Counter = self._made["requests_total"]
        self._refusals = {c: self._made["refusals_total"].labels(c) for c in REFUSALS}
        self.nameless = {outcome: requests.labels(NO_MODEL, outcome) for outcome in OUTCOMES}

    def of(self, name: str) -> ModelMetrics:
        """Return the series of a model, made at the first call."""
        if name not in self._models:
            self._models[name] = ModelMetrics(self._made, name)
        return self._models[name]

    def refused(self, code: str) -> None:
        """Count one refusal; `code` is one of REFUSALS."""
        self._refusals[code].inc()

    def add_model(self, name: str, depth: Callable[[], float], **info: str) -> None:
        """Make every series of a model; `depth` is called at each scrape."""
        self.of(name).queue_depth.set_function(depth)
        self._made["model_info"].labels(model=name, **info).set(1)

    def fix(self, name: str, value: float) -> None:
        """Set a gauge whose value does not change."""
        self._gauge(name).set(value)

    def watch(self, name: str, value: Callable[[], float]) -> None:
        """Call `value` for a gauge's value at each scrape."""
        self._gauge(name).set_function(value)

    def value(self, name: str) -> float:
        """Return the current value of a gauge without labels."""
        (family,) = self._made[name].collect()
        return float(family.samples[0].value)

    def render(self) -> bytes:
        """Return the Prometheus text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str) -> Gauge:
        gauge: Gauge = self._made[name]
        if name not in self._shown:
            self._shown.add(name)
            self.registry.register(gauge)
        return gauge


class ParentMetrics:
    """What the parent of several serving processes counts, on a registry of its own.

    `serving` is called at each scrape for how many serve.
    """

    def __init__(self, serving: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        made = {row.name: _make(row, self._registry) for row in PARENT_METRICS}
        self.restarts: Counter = made["process_restarts_total"]
        self._registry.register(made["processes"])
        made["processes"].set_function(serving)

    def render(self) -> bytes:
        """Return the Prometheus text format."""
        return generate_latest(self._registry)


def _make(row: Row, registry: CollectorRegistry) -> Any:
    name = f"embedserve_{row.name}"
    if row.kind is Gauge and not row.labels:
        return Gauge(name, row.help, registry=None)
    if row.kind is Histogram:
        return Histogram(name, row.help, row.labels, registry=registry, buckets=row.buckets)
    return row.kind(name, row.help, row.labels, registry=registry)
