"""What the endpoints share, and the start of a request's way through the engine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import Receive, Scope

from embedserve.api.request_body import RequestBodies
from embedserve.config.settings import Settings
from embedserve.engine.cancellation import Cancellation
from embedserve.engine.embed import Call
from embedserve.engine.scheduler import Scheduler
from embedserve.http import deadline
from embedserve.http.body import Headers
from embedserve.http.client_left import client_left
from embedserve.http.memory_budget import MemoryBudget, Reservation
from embedserve.metrics import Metrics
from embedserve.model.model import Model
from embedserve.model.registry import ModelRegistry
from embedserve.model.request import EmbeddingsRequest


@dataclass(frozen=True, slots=True)
class Shared:
    """One of each for the whole application. Owned by the event loop."""

    settings: Settings
    registry: ModelRegistry
    scheduler: Scheduler
    metrics: Metrics
    budget: MemoryBudget
    bodies: RequestBodies

    def cancellation(self, scope: Scope, receive: Receive, headers: Headers) -> Cancellation:
        """Watch a client whose body was read, within the deadline that it asks for."""
        timeout = deadline.deadline(headers, self.settings.request_timeout)
        end = asyncio.get_running_loop().time() + timeout
        return Cancellation(client_left(scope, receive), end)

    def call(
        self,
        model: Model,
        request: EmbeddingsRequest,
        cancellation: Cancellation,
        reservation: Reservation,
    ) -> Call:
        """A request for the engine; what it keeps is charged to `reservation`."""
        most = self.settings.max_request_tokens
        return Call(model, request, self.scheduler, most, cancellation, reservation.add)
