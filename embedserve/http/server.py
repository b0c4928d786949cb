"""The uvicorn server of this service: its settings, its signals, its drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from embedserve.config.settings import Settings
from embedserve.http.connection import protocol_class
from embedserve.http.listener import refuse_handshakes
from embedserve.http.readiness import Readiness
from embedserve.metrics import Metrics
from embedserve.system import process

# Longer than the 60 s after which common load balancers drop an idle connection: the side that
# closes first must not be the one that may still be sent a request.
KEEP_ALIVE_SECONDS = 75
# During the drain, a connection idle for this long is closed. A busy one is not: its next request
# may be on its way.
IDLE_SECONDS = 1.0
# Load balancers need time to notice that readiness fails.
QUIET_SECONDS = 1.0
# Time to take up the connections that the kernel has accepted.
QUEUE_SECONDS = 0.1
# Under traffic that never pauses, new connections end this long before the drain does. What was
# accepted needs the rest for its answer. At most half of the drain.
ANSWER_SECONDS = 5.0
ACCEPTED = 16  # connections taken up in each turn of the loop

log = logging.getLogger(__name__)


def run(
    app: ASGIApp,
    settings: Settings,
    listener: socket.socket,
    readiness: Readiness,
    metrics: Metrics,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    config = uvicorn.Config(
        app,
        loop="uvloop",  # plain asyncio spins when descriptors run out
        http=protocol_class(settings.max_connections, readiness, metrics),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    process.settle()
    server = Server(config, listener, readiness, settings.drain_seconds)
    metrics.fix("max_connections", settings.max_connections)
    metrics.watch("connections", lambda: len(server.server_state.connections))
    # libuv accepts one connection of a socket in each turn of the loop.
    more = [listener.dup() for _ in range(ACCEPTED - 1)]
    server.run(sockets=[listener, *more])


class Server(uvicorn.Server):
    """uvicorn's server with a drain that loses nothing, ending with status 0 after SIGTERM.

    Readiness fails at once, and every answer closes its connection. New connections are served
    until none was open for QUIET_SECONDS, or until ANSWER_SECONDS before `drain_seconds` are over.
    SIGINT, from a keyboard, does not wait for the quiet; a second signal waits for nothing.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        readiness: Readiness,
        drain_seconds: float,
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._readiness = readiness
        self._drain_seconds = drain_seconds
        self._quiet_seconds = QUIET_SECONDS

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hand SIGTERM and SIGINT to handle_exit; uvicorn's own raises them again at the end."""
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; at the second signal, now."""
        if self.should_exit:
            self._drain_seconds = 0.0
        if sig == signal.SIGINT:
            self._quiet_seconds = 0.0
        self._readiness.drain()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on for the time to drain, then end what is left with 503."""
        start = time.monotonic()
        log.info(
            "draining for at most %g s: %s requests in flight on %s connections",
            self._drain_seconds,
            len(self.server_state.tasks),
            len(self.server_state.connections),
        )
        await self._serve_on(lambda: start + self._accept_seconds(), self._quiet_seconds)
        refuse_handshakes(self._listener)
        # Connections that the kernel has accepted are still in its queue.
        await asyncio.sleep(QUEUE_SECONDS)
        await self._serve_on(lambda: start + self._drain_seconds, 0.0)
        left = max(0.0, start + self._drain_seconds - time.monotonic())
        self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]  # seconds
        await super().shutdown(sockets)

    def _accept_seconds(self) -> float:
        """How long after the signal new connections are served at most."""
        return self._drain_seconds - min(ANSWER_SECONDS, self._drain_seconds / 2)

    async def _serve_on(self, end: Callable[[], float], quiet: float) -> None:
        """Serve until no connection was open for `quiet` seconds, or until `end()`.

        A second signal moves the end.
        """
        busy = time.monotonic()
        while (now := time.monotonic()) < end():
            if self.server_state.connections or self.server_state.tasks:
                busy = now
            elif now - busy >= quiet:
                return
            for connection in list(self.server_state.connections):
                connection.wind_up(IDLE_SECONDS)  # type: ignore[union-attr]  # connection.Protocol
            await self.on_tick(0)  # the Date header goes on
            await asyncio.sleep(0.02)
