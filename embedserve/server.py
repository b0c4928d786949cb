"""The uvicorn server of this service: its settings, and the socket it listens on."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from embedserve.errors import Exit, StartupError
from embedserve.protocol import protocol_class
from embedserve.settings import Settings

# Longer than the 60 s after which common load balancers drop an idle connection: the side that
# closes first must not be the one that may still be sent a request.
KEEP_ALIVE_SECONDS = 75


def bind(settings: Settings) -> socket.socket:
    """Bind before models load, so that an address in use costs no time. StartupError otherwise."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(1)  # two processes may bind one address until one of them listens
    except OSError as error:
        listener.close()
        raise StartupError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another "
            "with --host and --port",
            Exit.UNAVAILABLE,
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: it may be any address
        return False


def run(app: ASGIApp, settings: Settings, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is in flight."""
    config = uvicorn.Config(
        app,
        loop="uvloop",  # plain asyncio spins when descriptors run out
        http=protocol_class(settings.max_connections),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
    )
    # What is loaded stays: collections in between requests need not walk over it each time.
    gc.collect()
    gc.freeze()
    Server(config).run(sockets=[listener])
    if any(thread.daemon for thread in threading.enumerate()):
        # A lane that did not come back: onnxruntime's destructors would abort under it.
        logging.shutdown()
        os._exit(0)


class Server(uvicorn.Server):
    """uvicorn's server, ending with status 0 after SIGTERM: asked to end, it has done its work."""

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
