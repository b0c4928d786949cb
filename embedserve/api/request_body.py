"""A request's body -> what it asks for: read within its limits, a large one parsed off the loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.types import Receive

from embedserve.api.parse import Body
from embedserve.config.settings import Settings
from embedserve.http import body
from embedserve.http.body import Headers
from embedserve.http.memory_budget import Reservation
from embedserve.model.request import EmbeddingsRequest

# Parsing a larger body takes over a millisecond; 32 MiB of texts take 0.1 to 0.2 s.
PARSE_ON_LOOP = 262_144

Request = TypeVar("Request", bound=EmbeddingsRequest)


class RequestBodies:
    """Reads and parses bodies, one large one at a time. Owned by the event loop.

    `takes_ids`: whether token ids are accepted, and with them bodies of very many values.
    """

    def __init__(self, settings: Settings, *, takes_ids: bool) -> None:
        self._settings = settings
        self._takes_ids = takes_ids
        self._parser = ThreadPoolExecutor(1, "parser")
        # Its thread starts with the first work it gets: now, while there is memory for it.
        self._parser.submit(int).result()

    async def take(
        self,
        receive: Receive,
        headers: Headers,
        reservation: Reservation,
        parse: Callable[[Body, int], Request],
    ) -> Request:
        """Return what a request asks for; RequestError past a limit, or of `parse`.

        Afterwards `reservation` holds what was parsed, and nothing of the body, which is let go of.
        """
        content = await body.read(receive, headers, self._settings, reservation, self._takes_ids)
        size = len(content)
        work = functools.partial(parse, content, self._settings.max_inputs)
        del content
        if size <= PARSE_ON_LOOP:
            wanted = work()
        else:
            loop = asyncio.get_running_loop()
            wanted = await loop.run_in_executor(self._parser, work)
        reservation.hold(wanted.held_bytes(size))
        return wanted

    def close(self) -> None:
        """Let the thread end."""
        self._parser.shutdown(wait=False, cancel_futures=True)
