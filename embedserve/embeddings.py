"""POST embeddings: one request from its first byte to its last."""

from __future__ import annotations

import asyncio
import functools
import time

from starlette.types import Receive, Scope, Send

from embedserve import __version__, body, schemas
from embedserve.body import Headers
from embedserve.errors import ClientLeftError, RequestError
from embedserve.intake import Intake
from embedserve.metrics import Metrics
from embedserve.models import Embedded, Model
from embedserve.pending import Pending, Share, answer_bytes
from embedserve.registry import ModelRegistry
from embedserve.schemas import EmbeddingsRequest
from embedserve.settings import Settings
from embedserve.worker import Worker

HELD_BYTES = 16_384  # what may wait in the transport and not be counted: footprint._CONNECTION
# Rendering more floats than this takes over a millisecond: then it is done in a thread.
RENDER_ON_LOOP = 24 * 384
# At most this many bytes of indexes in X-Truncated-Inputs; usage.truncated has them all.
MAX_HEADER = 512

RawHeaders = list[tuple[bytes, bytes]]


class Embeddings:
    """The endpoint, as an ASGI application: the one route where microseconds count.

    Owned by the event loop.
    """

    def __init__(
        self,
        settings: Settings,
        registry: ModelRegistry,
        worker: Worker,
        metrics: Metrics,
        pending: Pending,
        intake: Intake,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._worker = worker
        self._metrics = metrics
        self._pending = pending
        self._intake = intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        headers = body.headers(scope)
        outcome, series = "draining", None  # what a cancelled request ends as
        share = Share(self._pending)
        try:
            self._worker.check_door()
            wanted = await self._intake.take(receive, headers, share, schemas.parse_embeddings)
            model, wanted = self._registry.resolve(wanted)
            series = self._metrics.of(model.name)
            series.requests_in_flight.inc()
            share.add(wanted.count * answer_bytes(model.manifest.dimension))
            embedded = await self._embed(receive, headers, model, wanted)
            _note(scope, model, embedded)
            series.texts.inc(len(embedded.rows))
            if embedded.truncated:
                series.truncated_texts.inc(len(embedded.truncated))
            series.tokenization_duration.observe(embedded.tokenize)
            await self._answer(send, headers, model, wanted, embedded)
            outcome = "ok"
        except (RequestError, ClientLeftError) as error:
            outcome = error.code if isinstance(error, RequestError) else "cancelled"
            raise
        except Exception as error:
            outcome = "out_of_memory" if isinstance(error, MemoryError) else "internal_error"
            raise
        finally:
            share.release()
            if series is None:
                self._metrics.nameless[outcome].inc()
            else:
                series.requests[outcome].inc()
                series.requests_in_flight.dec()
                series.request_duration.observe(time.perf_counter() - start)

    async def _embed(
        self, receive: Receive, headers: Headers, model: Model, wanted: EmbeddingsRequest
    ) -> Embedded:
        _check_fingerprint(headers, model)
        timeout = body.deadline(headers, self._settings.request_timeout)
        return await model.embed(
            wanted,
            self._worker,
            self._settings.max_request_tokens,
            functools.partial(_disconnect, receive),
            asyncio.get_running_loop().time() + timeout,
        )

    async def _answer(
        self,
        send: Send,
        headers: Headers,
        model: Model,
        wanted: EmbeddingsRequest,
        embedded: Embedded,
    ) -> None:
        timed = self._settings.server_timing
        answer = _headers(embedded, model.manifest.fingerprint, timed=timed)
        content: bytes | memoryview
        if headers.get(b"accept", b"").strip().lower() == schemas.OCTET_STREAM:
            n, dim = embedded.rows.shape
            answer.append((b"content-type", schemas.OCTET_STREAM))
            answer.append((b"x-embedding-shape", b"%d,%d" % (n, dim)))
            answer.append((b"x-embedding-dtype", b"float32"))
            content = schemas.render_octets(embedded.rows)
        else:
            answer.append((b"content-type", b"application/json"))
            render = functools.partial(
                schemas.render_embeddings,
                wanted.model or model.name,
                embedded.rows,
                embedded.tokens,
                embedded.truncated,
                wanted.encoding_format,
            )
            on_loop = embedded.rows.size <= RENDER_ON_LOOP
            content = render() if on_loop else await self._worker.render(render)
        answer.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": 200, "headers": answer})
        if len(content) > HELD_BYTES:
            # What a client does not take is held: the next call waits until it is nearly gone.
            await send({"type": "http.response.body", "body": content, "more_body": True})
            content = b""
        await send({"type": "http.response.body", "body": content})


def _check_fingerprint(headers: Headers, model: Model) -> None:
    expected = headers.get(b"x-expect-fingerprint")
    found = model.manifest.fingerprint
    if expected is not None and expected != found.encode():
        text = expected[:64].decode("latin-1")
        raise RequestError(
            "fingerprint_mismatch",
            f"X-Expect-Fingerprint is {text!r}; {model.name} has {found}",
            "x-expect-fingerprint",
        )


async def _disconnect(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _note(scope: Scope, model: Model, embedded: Embedded) -> None:
    """What the access log and the request's trace say besides."""
    access = {"model": model.name, "texts": len(embedded.rows), "tokens": embedded.tokens}
    state = scope.setdefault("state", {})
    state["access"] = access
    if (trace := state.get("trace")) is not None:
        trace.embedded(model.name, embedded)


def _headers(embedded: Embedded, fingerprint: str, *, timed: bool) -> RawHeaders:
    headers = [(b"x-embedding-fingerprint", fingerprint.encode()), (b"server", _SERVER)]
    if timed:
        timing = b"tokenize;dur=%.2f, queue;dur=%.2f, inference;dur=%.2f" % (
            embedded.tokenize * 1000,
            embedded.queue * 1000,
            embedded.inference * 1000,
        )
        headers.append((b"server-timing", timing))
    if embedded.truncated:
        headers.append((b"x-truncated-inputs", _indexes(embedded.truncated).encode()))
    return headers


_SERVER = f"embedserve/{__version__}".encode()


def _indexes(indexes: list[int]) -> str:
    """0,3,17 shortened to what a header may hold."""
    text = ",".join(map(str, indexes))
    return text if len(text) <= MAX_HEADER else text[:MAX_HEADER].rpartition(",")[0] + ",..."
