"""POST embeddings: one request from its first byte to its last."""

from __future__ import annotations

import time
from collections.abc import Iterator

from starlette.types import Receive, Scope, Send

from embedserve import __version__
from embedserve.api import parse, render
from embedserve.api.parse import WireRequest
from embedserve.api.shared import Shared
from embedserve.engine.cancellation import Cancellation
from embedserve.engine.embed import Embedded, embed
from embedserve.errors import ClientLeftError, RequestError
from embedserve.http import body, large_answers
from embedserve.http.body import Headers
from embedserve.http.large_answers import Parts, RawHeaders
from embedserve.http.memory_budget import Reservation, answer_bytes
from embedserve.model.model import Model
from embedserve.model.steps import Step, Steps, Task

# Rendering more floats than this takes over a millisecond: then it is done in a thread.
RENDER_ON_LOOP = 24 * 384
# At most this many bytes of indexes in X-Truncated-Inputs; usage.truncated has them all.
MAX_HEADER = 512


class Embeddings:
    """The endpoint, as an ASGI application: the one route where microseconds count.

    Owned by the event loop.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        shared, headers = self._shared, body.headers(scope)
        outcome, series = "draining", None  # what a cancelled request ends as
        reservation = Reservation(shared.budget)
        try:
            shared.scheduler.check_door()
            wanted = await shared.bodies.take(receive, headers, reservation, parse.parse_embeddings)
            model, wanted = shared.registry.resolve(wanted)
            series = shared.metrics.of(model.name)
            series.requests_in_flight.inc()
            reservation.add(wanted.count * answer_bytes(model.manifest.dimension))
            _check_fingerprint(headers, model)
            cancellation = shared.cancellation(scope, receive, headers)
            try:
                embedded = await embed(shared.call(model, wanted, cancellation, reservation))
                _note(scope, model, embedded)
                series.texts.inc(len(embedded.rows))
                if embedded.truncated:
                    series.truncated_texts.inc(len(embedded.truncated))
                series.tokenization_duration.observe(embedded.tokenize)
                answer, parts = await self._render(headers, model, wanted, embedded, cancellation)
            finally:
                cancellation.end()
            await large_answers.send(send, answer, parts)
            outcome = "ok"
        except (RequestError, ClientLeftError) as error:
            outcome = error.code if isinstance(error, RequestError) else "cancelled"
            raise
        except Exception as error:
            outcome = "out_of_memory" if isinstance(error, MemoryError) else "internal_error"
            raise
        finally:
            reservation.release()
            if series is None:
                shared.metrics.nameless[outcome].inc()
            else:
                series.requests[outcome].inc()
                series.requests_in_flight.dec()
                series.request_duration.observe(time.perf_counter() - start)

    async def _render(
        self,
        headers: Headers,
        model: Model,
        wanted: WireRequest,
        embedded: Embedded,
        cancellation: Cancellation,
    ) -> tuple[RawHeaders, Parts]:
        timed = self._shared.settings.server_timing
        answer = _headers(embedded, model.manifest.fingerprint, timed=timed)
        if headers.get(b"accept", b"").strip().lower() == render.OCTET_STREAM:
            n, dim = embedded.rows.shape
            answer.append((b"content-type", render.OCTET_STREAM))
            answer.append((b"x-embedding-shape", b"%d,%d" % (n, dim)))
            answer.append((b"x-embedding-dtype", b"float32"))
            return answer, [render.render_octets(embedded.rows)]
        answer.append((b"content-type", b"application/json"))
        rows = embedded.rows
        parts = render.embeddings_parts(
            wanted.model or model.name,
            rows,
            embedded.tokens,
            embedded.truncated,
            wanted.encoding_format,
        )
        if rows.size <= RENDER_ON_LOOP:
            return answer, list(parts)
        task = Task(None, rows.size, _steps(parts))
        return answer, await cancellation.wait(self._shared.scheduler.offload.render(task))


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


def _steps(parts: Iterator[bytes]) -> Steps[list[bytes]]:
    """Render an answer's parts; their bytes were counted before."""
    rendered = []
    for part in parts:
        rendered.append(part)
        yield Step(render.STEP_COMPONENTS)
    return rendered


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
