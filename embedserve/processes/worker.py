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
from typing import Protocol

from embedserve.errors import Exit, StartupError
from embedserve.http import listener
from embedserve.processes.channel import Channel, Kind
from embedserve.processes.member import Member, Ready

log = logging.getLogger(__name__)

# A process that serves is pinged this often, and killed when it has missed MOST_UNANSWERED pings.
# Pings are counted, not seconds: this process may have been stopped meanwhile.
PING_SECONDS = 5.0
MOST_UNANSWERED = 6
# Time to return its metrics: what does not come is left out.
SCRAPE_SECONDS = 2.0
# The first restart is at once. Others come after 1, 2, 4, ... seconds, unless the process has
# served for LONG_SECONDS before it ended.
MOST_DELAY = 30.0
LONG_SECONDS = 30.0


class Others(Protocol):
    """What a worker needs of the parent."""

    def bind(self, *, listens: bool) -> socket.socket:
        """A socket on the port that all share. StartupError when there is none."""

    def accepts(self, fingerprints: Mapping[str, str]) -> bool:
        """Whether a process that serves these models may serve beside the others."""

    def merged(self) -> Awaitable[bytes]:
        """The metrics of all processes."""


class Worker:
    """Starts a serving process, and starts it again when it ends. Owned by the event loop.

    The listening socket outlives the process: what connects while a new one loads is served late,
    and not refused. It is closed while the process cannot be started, so that no connection waits
    for it. `keys` is the environment that hands the process the API keys; `restarted` is called at
    each new start.
    """

    def __init__(
        self,
        number: int,
        count: int,
        others: Others,
        keys: Mapping[str, str],
        restarted: Callable[[], None],
    ) -> None:
        self.number = number
        self.memory_bound = 0  # in bytes; 0: it has never served
        self.serves = asyncio.Event()
        self._count, self._others, self._keys = count, others, keys
        self._restarted = restarted
        self._listener: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._scrape: asyncio.Future[bytes | None] | None = None
        self._unanswered = 0
        self._served_since = 0.0
        self._reloads = False
        self._ends = asyncio.Event()
        self._merging: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Keep a process running until `end`; return its status if it ends before it has served."""
        restarts = 0  # since one that served for long
        while True:
            try:
                status = await self._run_once()
            except (StartupError, OSError) as error:
                log.error("process %s cannot be started: %s", self.number + 1, error)
                status = int(Exit.UNAVAILABLE)
            if self._ends.is_set():
                return 0
            if not self.memory_bound:
                return status if status >= 0 else 128 - status  # as a shell says it
            has_served = self.serves.is_set()
            self.serves.clear()
            if has_served and time.monotonic() - self._served_since > LONG_SECONDS:
                restarts = 0
            at_once = has_served and restarts == 0
            delay = 0.0 if at_once else min(MOST_DELAY, 2.0 ** max(0, restarts - 1))
            restarts += 1
            log.error(
                "process %s of %s ended with %s; starting it again%s",
                self.number + 1,
                self._count,
                f"signal {-status}" if status < 0 else f"status {status}",
                f" in {delay:g} s" if delay else "",
            )
            if delay:
                self._close_listener()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ends.wait(), delay)
                    return 0
            self._restarted()

    def end(self, number: int) -> None:
        """Let the process end by a signal, and start no other."""
        self._ends.set()
        self._send_signal(number)

    def reload(self) -> None:
        """Let the process read its keys again; one that loads does so once it serves."""
        if self.serves.is_set():
            self._send_signal(signal.SIGHUP)
        else:
            self._reloads = True

    async def metrics(self) -> bytes | None:
        """Its metrics; None when it does not serve, or does not return them in time."""
        if not self.serves.is_set() or self._channel is None:
            return None
        if self._scrape is None:
            self._scrape = asyncio.get_running_loop().create_future()
            self._channel.send(Kind.SCRAPE)
        try:
            return await asyncio.wait_for(asyncio.shield(self._scrape), SCRAPE_SECONDS)
        except TimeoutError:
            return None

    async def _run_once(self) -> int:
        """Run one process from its start to its end; return its status."""
        if self._listener is None:
            # Clients may wait for the first process to load; else for those that serve.
            self._listener = self._others.bind(listens=self.number == 0 and not self.memory_bound)
        listener.accept_handshakes(self._listener)
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as closing:
            closing.enter_context(ours)
            member = Member(self._listener, theirs, self.number, self._count)
            environment = {**os.environ, **self._keys, **member.environment()}
            descriptors = [self._listener.fileno(), theirs.fileno(), *map(int, self._keys.values())]
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *sys.orig_argv[1:],  # this very program again
                env=environment,
                pass_fds=descriptors,
                process_group=0,  # a terminal's signals come through the parent, once
            )
            closing.pop_all()
        if self._ends.is_set():  # meanwhile
            self._send_signal(signal.SIGTERM)
        self._channel = await Channel.of(ours)
        self._unanswered = 0
        ping = asyncio.create_task(self._ping())
        try:
            while (message := await self._channel.receive()) is not None:
                self._take(*message)
            return await self._process.wait()
        finally:
            ping.cancel()
            await self._channel.close()
            self._has_scraped(None)
            if self._ends.is_set():  # clients go to the others, or are refused
                self._close_listener()

    def _take(self, kind: Kind, content: bytes) -> None:
        self._unanswered = 0
        if kind is Kind.READY:
            self._ready(Ready.loaded(content))
        elif kind is Kind.METRICS:
            self._has_scraped(content)
        elif kind is Kind.MERGE:
            self._merging = asyncio.create_task(self._merge())

    def _ready(self, ready: Ready) -> None:
        if not self._others.accepts(ready.fingerprints):
            assert self._listener is not None
            listener.refuse_handshakes(self._listener)  # clients try again, and reach the others
            log.error(
                "process %s has loaded other models than the others serve: restart all to serve "
                "them; ending it",
                self.number + 1,
            )
            self._send_signal(signal.SIGKILL)
            return
        if self._channel is not None:
            self._channel.send(Kind.SERVE)
        self.memory_bound = ready.memory_bound
        self._served_since = time.monotonic()
        self.serves.set()
        if self._reloads:
            self._reloads = False
            self._send_signal(signal.SIGHUP)

    def _has_scraped(self, content: bytes | None) -> None:
        if self._scrape is not None:
            self._scrape.set_result(content)
            self._scrape = None

    async def _merge(self) -> None:
        try:
            merged = await self._others.merged()
        except Exception:  # the process answers its client without them
            log.exception("the processes' metrics cannot be merged")
            return
        if self._channel is not None:
            self._channel.send(Kind.MERGED, merged)

    async def _ping(self) -> None:
        """Kill a process whose event loop does not come back."""
        await self.serves.wait()
        while self._unanswered < MOST_UNANSWERED:
            if self._channel is not None:
                self._channel.send(Kind.PING)
            self._unanswered += 1
            await asyncio.sleep(PING_SECONDS)
        seconds = MOST_UNANSWERED * PING_SECONDS
        log.error("process %s has not answered for %g s", self.number + 1, seconds)
        self._send_signal(signal.SIGKILL)

    def _send_signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
