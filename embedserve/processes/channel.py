"""Messages between the parent and a serving process, over a pair of sockets: Channel, Kind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from enum import IntEnum

# Kind and length of a message.
_HEAD = struct.Struct(">BI")


class Kind(IntEnum):
    """What a message says; to the parent first, then from it."""

    READY = 1  # it has loaded its models; Ready as JSON
    ALIVE = 2  # the answer to PING
    METRICS = 3  # its metrics: the answer to SCRAPE
    MERGE = 4  # a client wants the metrics of all processes
    PING = 5  # is the event loop alive?
    SCRAPE = 6  # what are your metrics?
    MERGED = 7  # the metrics of all: the answer to MERGE
    SERVE = 8  # the answer to READY


class Channel:
    """One end. Owned by the event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, end: socket.socket) -> Channel:
        """Over one of a pair of sockets, which it takes over."""
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, kind: Kind, content: bytes = b"") -> None:
        """Send a message, or nothing when the other side is gone: `receive` tells."""
        if not self._writer.is_closing():
            self._writer.write(_HEAD.pack(kind, len(content)) + content)

    async def receive(self) -> tuple[Kind, bytes] | None:
        """The next message; None once the other side is gone."""
        try:
            kind, length = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
            return Kind(kind), await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def close(self) -> None:
        """Close; what was sent is delivered first."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
