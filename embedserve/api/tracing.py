"""Spans of requests and their stages, by OpenTelemetry; loaded only where tracing is on."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedserve import __version__
from embedserve.api.middleware import CLIENT_LEFT, PROBES
from embedserve.api.routes import EMBEDDINGS
from embedserve.engine.embed import Embedded
from embedserve.errors import Exit, StartupError
from embedserve.logs import Limit

try:  # the extra otel
    from opentelemetry import context, trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware, get_default_span_details
    from opentelemetry.metrics import NoOpMeterProvider
    from opentelemetry.propagate import get_global_textmap
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ImportError as error:
    _MISSING = str(error)
else:
    _MISSING = ""

# The children of the server's span, in this order; docs/tracing.md is checked against both tables.
STAGES: Mapping[str, str] = {
    "tokenize": "texts to token ids",
    "queue": "until the first of its texts is in a pass",
    "inference": "until the last of its rows is there",
    "render": "vectors to the first byte of the answer",
}
ATTRIBUTES: Mapping[str, str] = {
    "gen_ai.operation.name": "`embeddings`",
    "gen_ai.request.model": "the model's name, also where an alias was asked for",
    "gen_ai.usage.input_tokens": "tokens run, special tokens and prompt included",
    "embedserve.texts": "texts of the request",
    "embedserve.truncated_texts": "how many of them were cut",
}
# Beside these it has what the instrumentation gives by the conventions for HTTP servers.
SERVER_ATTRIBUTES: Mapping[str, str] = {
    "http.route": "the path, with `{name}` for a model's; none for a path that is not served",
    "embedserve.http.request_id": "`X-Request-Id` of the answer",
    "embedserve.error_code": "the error's code, or `cancelled` where the client left",
}
UNTRACED = frozenset((*PROBES, "/metrics"))
FLUSH_SECONDS = 3.0  # for what is not sent at the end
# What waits for the exporter is bounded in number; this bounds each.
MOST_HEADER, MOST_PATH = 512, 200
# Standard variables whose other values ask for what is not installed: the first that is set counts.
_ACCEPTED = (
    (("OTEL_TRACES_EXPORTER",), "otlp"),
    (
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
        "http/protobuf",
    ),
)
# Loggers that report an unreachable collector; each kind of line is logged once in _SAID_EACH
# seconds.
_SENDERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)
_SAID_EACH = 300.0

log = logging.getLogger(__name__)


def check() -> None:
    """StartupError where the extra is missing, or the environment asks for another exporter."""
    if _MISSING:
        raise StartupError(
            f"tracing needs the extra otel, which is not installed ({_MISSING}): "
            "pip install 'embedserve[otel]', or -r requirements/serve-otel.txt",
            Exit.UNAVAILABLE,
        )
    for variables, accepted in _ACCEPTED:
        for variable in filter(os.environ.get, variables):
            if (found := os.environ[variable]) != accepted:
                raise StartupError(f'environment: {variable} = "{found}"; {accepted} is accepted')
            break


def provider() -> TracerProvider:
    """What makes spans and sends them from a thread of its own, set up by OTEL_ variables.

    StartupError where they are wrong. A collector that is slow or away costs the spans that do not
    fit into the queue (OTEL_BSP_MAX_QUEUE_SIZE), and keeps nobody waiting.
    """
    check()
    # Else the instrumentation gives attributes the names they had before conventions were stable.
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    for sender in _SENDERS:
        logging.getLogger(sender).addFilter(Limit(burst=1, window=_SAID_EACH))
    named = OTELResourceDetector().detect().attributes
    service = {"service.name": "embedserve", "service.version": __version__, **named}
    try:
        made = TracerProvider(resource=Resource.create(service), shutdown_on_exit=False)
        made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except (ImportError, RuntimeError, ValueError) as error:
        raise StartupError(f"environment: OTEL_ variables: {error}") from error
    return made


@dataclass(slots=True)
class Trace:
    """What is told of one request on its way, in its scope's state. Owned by the event loop."""

    id: str
    code: str | None = None
    attributes: dict[str, str | int] = field(default_factory=dict)
    times: tuple[float, ...] = ()  # of time.perf_counter: began and ended, for each of STAGES

    def embedded(self, model: str, embedded: Embedded) -> None:
        """The vectors are there: what is left is to render them."""
        values = ("embeddings", model, embedded.tokens, len(embedded.rows), len(embedded.truncated))
        self.attributes = dict(zip(ATTRIBUTES, values, strict=True))
        tokenized = embedded.began + embedded.tokenize
        started = embedded.submitted + embedded.queue
        ended = started + embedded.inference
        now = time.perf_counter()
        self.times = (embedded.began, tokenized, embedded.submitted, started, started, ended, now)


class Traced:
    """ASGI middleware around everything: OpenTelemetry's own, and spans of the stages within.

    Owned by the event loop.
    """

    def __init__(self, made: TracerProvider, flush_seconds: float, app: ASGIApp) -> None:
        self._provider = made
        self._flush_seconds = min(FLUSH_SECONDS, flush_seconds)
        self._app = app
        self._tracer = made.get_tracer("embedserve", __version__)
        self._headers = {b"user-agent", *(f.lower().encode() for f in get_global_textmap().fields)}
        self._instrumented = OpenTelemetryMiddleware(
            self._answer,
            default_span_details=_details,
            tracer_provider=made,
            meter_provider=NoOpMeterProvider(),  # /metrics has them
            exclude_spans=["receive", "send"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._flush_before_the_end(send))
            return
        if scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        # What runs on a connection after a request may inherit its context: a pipelined request
        # begins in the task of the one before.
        token = context.attach(context.Context())
        try:
            await self._instrumented(self._shown(scope), receive, send)
        finally:
            context.detach(token)

    def _shown(self, scope: Scope) -> dict[str, Any]:
        """What the instrumentation sees: no query, no key, no bytes that it cannot decode."""
        headers = [
            (name, value.decode("latin-1").encode())
            for name, value in scope["headers"]
            if name in self._headers and len(value) <= MOST_HEADER
        ]
        kept = ("type", "http_version", "scheme", "server", "client", "method")
        return {
            **{key: scope[key] for key in kept},
            "path": scope["path"][:MOST_PATH],
            "query_string": b"",
            "headers": headers,
            "whole": scope,
        }

    async def _answer(self, shown: Scope, receive: Receive, send: Send) -> None:
        """The application, within the server's span."""
        scope, span = shown["whole"], trace.get_current_span()
        if not (identity := span.get_span_context()).is_valid:  # OTEL_SDK_DISABLED
            await self._app(scope, receive, send)
            return
        noted = Trace(trace.format_trace_id(identity.trace_id))
        scope.setdefault("state", {})["trace"] = noted
        if not span.is_recording():  # not sampled
            await self._app(scope, receive, send)
            return
        to_wall = time.time_ns() - time.perf_counter_ns()

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                noted.times = noted.times and (*noted.times, time.perf_counter())
                _describe(span, noted, scope, message)
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            # Once the answer is on its way.
            self._add_stages(span, noted, to_wall)

    def _add_stages(self, span: trace.Span, noted: Trace, to_wall: int) -> None:
        parent = trace.set_span_in_context(span)
        wall = [int(seconds * 1e9) + to_wall for seconds in noted.times]
        for name, began, ended in zip(STAGES, wall[::2], wall[1::2], strict=False):
            stage = self._tracer.start_span(
                name, parent, attributes=noted.attributes, start_time=began
            )
            stage.end(ended)

    def _flush_before_the_end(self, send: Send) -> Send:
        async def flush_and_send(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                self._flush()
            await send(message)

        return flush_and_send

    def _flush(self) -> None:
        """Send what waits, for a bounded time: nothing else is done any more."""
        last = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        last.start()
        last.join(self._flush_seconds)
        if last.is_alive():
            log.warning("spans that were not sent within %g s are lost", self._flush_seconds)


def _details(shown: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Name and attributes at the start: the path's part of the name is known once it is routed."""
    name, _ = get_default_span_details({"method": shown["method"]})
    return name, {"server.address": shown["server"][0]}  # without the port


def _describe(
    span: trace.Span, noted: Trace, scope: Scope, message: MutableMapping[str, Any]
) -> None:
    """What is known of a request when its answer begins."""
    attributes = dict(noted.attributes)
    route = scope["path"] if scope["path"] in EMBEDDINGS else _path(scope.get("route"))
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
        attributes["http.route"] = route
    for name, value in message["headers"]:
        if name == b"x-request-id":
            attributes["embedserve.http.request_id"] = value.decode("ascii")
    code = "cancelled" if message["status"] == CLIENT_LEFT else noted.code
    if code is not None:
        attributes["embedserve.error_code"] = code
    span.set_attributes(attributes)


def _path(route: object) -> str | None:
    found: str | None = getattr(route, "path", None)
    return found
