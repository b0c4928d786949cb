"""One serving process as its parent sees it: Worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping

from embedserve.processes.channel import Channel, Kind
from embedserve.processes.member import Member

log = logging.getLogger(__name__)

# A process that serves is asked this often whether its event loop runs, and killed when it has not
# answered for LOST_SECONDS.
PING_SECONDS = 5.0
LOST_SECONDS = 30.0
# Time to return its metrics: what does not come is left out.
SCRAPE_SECONDS = 2.0
# Between two starts, where a process ends before it serves: twice as long each time.
LEAST_DELAY, MOST_DELAY = 1.0, 30.0


class Worker:
    """Starts a serving process, and starts it again when it ends. Owned by the event loop.

    `bind` makes its listening socket, `keys` is the environment that hands it the API keys,
    `restarted` is called at each new start, and `merged` returns the metrics of all processes.
    The listening socket outlives the process: what connects while a new one loads is served late,
    and not refused. It is closed only while the process cannot be started.
    """

    def __init__(
        self,
        number: int,
        count: int,
        bind: Callable[[], socket.socket],
        keys: Mapping[str, str],
        restarted: Callable[[], None],
        merged: Callable[[], Awaitable[bytes]],
    ) -> None:
        self.number = number
        self.bound = 0  # of its memory, in bytes
        self.serves = asyncio.Event()
        self._count, self._bind, self._keys = count, bind, keys
        self._restarted, self._merged = restarted, merged
        self._listener: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._scrape: asyncio.Future[bytes] | None = None
        self._answered = 0.0
        self._ending = False
        self._answering: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Keep a process running until `end`; return its status if it ends before it has served."""
        delay = 0.0
        while True:
            status = await self._one()
            if self._ending:
                return 0
            if not self.bound:
                return status if status >= 0 else 128 - status  # as a shell says it
            what = f"signal {-status}" if status < 0 else f"status {status}"
            delay = 0.0 if self.serves.is_set() else min(MOST_DELAY, max(LEAST_DELAY, 2 * delay))
            self.serves.clear()
            log.error(
                "process %s of %s ended with %s; starting it again%s",
                self.number + 1,
                self._count,
                what,
                f" in {delay:g} s" if delay else "",
            )
            if delay:
                self._close_listener()
                await asyncio.sleep(delay)
            self._restarted()

    def end(self, number: int) -> None:
        """Let the process end by a signal, and start no other."""
        self._ending = True
        self.send_signal(number)

    def send_signal(self, number: int) -> None:
        """Pass a signal on."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def metrics(self) -> bytes | None:
        """Its metrics; None when it does not serve, or does not return them in time."""
        if not self.serves.is_set() or self._channel is None:
            return None
        if self._scrape is None:
            self._scrape = asyncio.get_running_loop().create_future()
            self._channel.send(Kind.LOOK)
        try:
            return await asyncio.wait_for(asyncio.shield(self._scrape), SCRAPE_SECONDS)
        except TimeoutError:
            return None

    async def _one(self) -> int:
        """Run one process from its start to its end; return its status."""
        self._listener = self._listener or self._bind()
        ours, theirs = socket.socketpair()
        with theirs:
            member = Member(self._listener, theirs, self.number, self._count)
            environment = {**os.environ, **self._keys, **member.environment()}
            descriptors = [self._listener.fileno(), theirs.fileno(), *_descriptors(self._keys)]
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *sys.orig_argv[1:],  # this very program again
                env=environment,
                pass_fds=descriptors,
                process_group=0,  # a terminal's signals come through the parent, once
            )
        self._channel = await Channel.of(ours)
        watch = asyncio.create_task(self._ping())
        try:
            while (message := await self._channel.receive()) is not None:
                self._take(*message)
            return await self._process.wait()
        finally:
            watch.cancel()
            await self._channel.close()
            if self._scrape is not None:
                self._scrape.cancel()
                self._scrape = None
            if self._ending:  # clients go to the others, or are refused
                self._close_listener()

    def _take(self, kind: Kind, content: bytes) -> None:
        self._answered = time.monotonic()
        if kind is Kind.READY:
            self.bound = int(content)
            self.serves.set()
        elif kind is Kind.SCRAPE and self._scrape is not None:
            if not self._scrape.done():
                self._scrape.set_result(content)
            self._scrape = None
        elif kind is Kind.ASK:
            self._answering = asyncio.create_task(self._answer())

    async def _answer(self) -> None:
        merged = await self._merged()
        if self._channel is not None:
            self._channel.send(Kind.MERGED, merged)

    async def _ping(self) -> None:
        """Kill a process whose event loop does not come back."""
        await self.serves.wait()
        while time.monotonic() - self._answered < LOST_SECONDS:
            if self._channel is not None:
                self._channel.send(Kind.PING)
            await asyncio.sleep(PING_SECONDS)
        log.error("process %s has not answered for %g s", self.number + 1, LOST_SECONDS)
        self.send_signal(signal.SIGKILL)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def _descriptors(keys: Mapping[str, str]) -> list[int]:
    return [int(text) for text in keys.values()]
