"""POST tokenize: what a model sees of each text, in the same queue as embeddings."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from embedserve.api import parse, render
from embedserve.api.shared import Shared
from embedserve.engine.embed import show_tokens
from embedserve.http import body, large_answers
from embedserve.http.memory_budget import Reservation


class Tokenize:
    """The endpoint, as an ASGI application. Owned by the event loop."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = body.headers(scope)
        shared = self._shared
        reservation = Reservation(shared.budget)
        try:
            wanted = await shared.bodies.take(receive, headers, reservation, parse.parse_tokenize)
            model, wanted = shared.registry.resolve(wanted)
            cancellation = shared.cancellation(scope, receive, headers)
            try:
                call = shared.call(model, wanted, cancellation, reservation)
                parts = await show_tokens(call, render.render_tokens)
            finally:
                cancellation.end()
            answer = render.tokens_answer(wanted.model or model.name, parts)
            await large_answers.send(send, [(b"content-type", b"application/json")], answer)
        finally:
            reservation.release()
