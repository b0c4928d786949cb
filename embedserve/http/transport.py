"""Wraps uvloop's transport for uvicorn's protocol: shared read buffers, and a delayed close."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

SMALL = 4_096  # bytes read at once, but of a body whose length is known
LARGE = 65_536


class Buffers:
    """Where everything is read into: one for all connections, as uvloop reads one at a time."""

    def __init__(self) -> None:
        self.large = memoryview(bytearray(LARGE))
        self.small = self.large[:SMALL]


class Buffered:
    """Lets uvloop read into the protocol's own buffers.

    uvloop takes an asyncio.Protocol, which uvicorn's is, for one that is handed 256,000 bytes at
    once.
    """

    __slots__ = ("_protocol",)

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)


class Closing(Protocol):
    """What a connection does when its last answer is written."""

    @property
    def lingering(self) -> bool:
        """Whether the last answer is sent and the rest is only read to be dropped."""

    def unfinished(self) -> bool:
        """Whether the client has still to send what it has begun."""

    def linger(self) -> None:
        """Close what is sent; read on for a while."""

    def flush(self) -> None:
        """Watch a closing connection until everything is sent."""


class Lingering:
    """A transport whose close lets a client that still sends read its answer first."""

    def __init__(self, transport: asyncio.Transport, protocol: Closing) -> None:
        self._transport = transport
        self._protocol = protocol
        self.write = transport.write  # the busiest method, without a detour

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing more may be written."""
        return self._protocol.lingering or self._transport.is_closing()

    def close(self) -> None:
        """Close at once, or once the client had time to read."""
        if self._transport.is_closing() or self._protocol.lingering:
            self._transport.close()
        elif self._protocol.unfinished():
            self._protocol.linger()
        else:
            self.drop()

    def drop(self) -> None:
        """Close once all is written; a client that still sends may lose the answer."""
        self._transport.close()
        self._protocol.flush()
