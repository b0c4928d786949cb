"""Flow control of one connection: why reading is paused, and whether writing is."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl

# Why nothing is read, as bits.
BODY = 1  # the application has not taken what came of the body
REST = 2  # what was read of the next request waits for the answer to this one
TURN = 4  # it read as much as it may in one turn of the loop


class Flow(FlowControl):
    """uvicorn's flow control with reasons, and an event made only when somebody has to wait.

    Owned by the event loop.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.paused = 0
        self.write_paused = False

    def pause(self, reason: int) -> None:
        """Read nothing for one more reason."""
        if not self.paused:
            self._transport.pause_reading()
        self.paused |= reason

    def resume(self, reason: int) -> None:
        """Read again unless there are other reasons."""
        if self.paused:
            self.paused &= ~reason
            if not self.paused:
                self._transport.resume_reading()

    def pause_reading(self) -> None:
        """Called by uvicorn while a body waits for the application."""
        self.pause(BODY)

    def resume_reading(self) -> None:
        """Called by uvicorn when the application reads, and after each answer."""
        self.resume(BODY)

    async def drain(self) -> None:
        """Wait until the client has taken what was written."""
        if self.write_paused:
            await self._is_writable_event.wait()

    def pause_writing(self) -> None:
        """Called when the client does not take what is written."""
        if not self.write_paused:
            self.write_paused = True
            self._is_writable_event = asyncio.Event()

    def resume_writing(self) -> None:
        """Called when it has taken most of it."""
        if self.write_paused:
            self.write_paused = False
            self._is_writable_event.set()
