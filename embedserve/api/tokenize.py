"""POST tokenize: what a model sees of each text, on the same way as embeddings."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from embedserve.api import parse, render
from embedserve.api.embeddings import cancellation_of
from embedserve.api.request_body import Intake
from embedserve.config.settings import Settings
from embedserve.engine.embed import show_tokens
from embedserve.engine.scheduler import Scheduler
from embedserve.http import body, large_answers
from embedserve.http.memory_budget import MemoryBudget, Reservation
from embedserve.model.registry import ModelRegistry


class Tokenize:
    """The endpoint, as an ASGI application. Owned by the event loop."""

    def __init__(
        self,
        settings: Settings,
        registry: ModelRegistry,
        scheduler: Scheduler,
        budget: MemoryBudget,
        intake: Intake,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._scheduler = scheduler
        self._budget = budget
        self._intake = intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = body.headers(scope)
        reservation = Reservation(self._budget)
        try:
            wanted = await self._intake.take(receive, headers, reservation, parse.parse_tokenize)
            model, wanted = self._registry.resolve(wanted)
            cancellation = cancellation_of(scope, receive, headers, self._settings)
            try:
                most = self._settings.max_request_tokens
                parts = await show_tokens(
                    model,
                    wanted,
                    self._scheduler,
                    most,
                    cancellation,
                    reservation.add,
                    render.render_tokens,
                )
            finally:
                cancellation.end()
            answer = render.tokens_answer(wanted.model or model.name, parts)
            await large_answers.send(send, [(b"content-type", b"application/json")], answer)
        finally:
            reservation.release()
