"""A serving process that has a parent: its part of what all share, and its channel."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from embedserve.errors import Exit, RequestError, StartupError
from embedserve.http.readiness import Readiness
from embedserve.metrics import Metrics
from embedserve.processes import VARIABLE
from embedserve.processes.channel import Channel, Kind

log = logging.getLogger(__name__)

# The parent gives a process that does not return its metrics less than this: Worker.
_ANSWER_SECONDS = 5.0


def share(total: int, number: int, count: int) -> int:
    """The part of `total` that process `number` (from 0) of `count` has; all parts sum up to it.

    >>> [share(5, number, 2) for number in range(2)]
    [2, 3]
    """
    return total * (number + 1) // count - total * number // count


@dataclass(frozen=True, slots=True)
class Ready:
    """What a process says before it serves: its memory bound (bytes), each model's fingerprint."""

    memory_bound: int
    fingerprints: Mapping[str, str]

    def dumped(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def loaded(cls, content: bytes) -> Ready:
        return cls(**json.loads(content))


class Member:
    """One process of several. Owned by the event loop once it serves."""

    def __init__(self, listener: socket.socket, channel: socket.socket, number: int, count: int):
        self.listener = listener
        self._end = channel
        self._number, self._count = number, count
        self._asked: asyncio.Future[bytes] | None = None
        self._channel: Channel | None = None

    def share(self, total: int) -> int:
        """Its part of what all have; at least 1."""
        return max(1, share(total, self._number, self._count))

    def environment(self) -> Mapping[str, str]:
        """The variable that makes a new process this member: listener, channel, number, count."""
        words = (self.listener.fileno(), self._end.fileno(), self._number, self._count)
        return {VARIABLE: ",".join(map(str, words))}

    async def begin(self, metrics: Metrics, fingerprints: Mapping[str, str]) -> None:
        """Tell the parent what this process has loaded, and wait until it may serve that."""
        self._channel = await Channel.of(self._end)
        ready = Ready(int(metrics.value("memory_bound_bytes")), fingerprints)
        self._channel.send(Kind.READY, ready.dumped())
        await self._channel.receive()  # SERVE; or the parent is gone, which `serve` notices

    async def serve(self, metrics: Metrics, readiness: Readiness) -> None:
        """Answer the parent until it is gone; then drain."""
        assert self._channel is not None
        while (message := await self._channel.receive()) is not None:
            kind, content = message
            if kind is Kind.PING:
                _check_live(readiness)
                self._channel.send(Kind.ALIVE)
            elif kind is Kind.SCRAPE:
                self._channel.send(Kind.METRICS, metrics.render())
            elif kind is Kind.MERGED and self._asked is not None:
                self._asked.set_result(content)
                self._asked = None
        os.kill(os.getpid(), signal.SIGTERM)

    async def merged_metrics(self) -> bytes:
        """The metrics of all processes; RequestError when they do not come."""
        assert self._channel is not None  # nothing is served before `begin`
        if self._asked is None:  # else they are on their way to another request
            self._asked = asyncio.get_running_loop().create_future()
            self._channel.send(Kind.MERGE)
        asked = self._asked
        try:
            return await asyncio.wait_for(asyncio.shield(asked), _ANSWER_SECONDS)
        except TimeoutError:
            if self._asked is asked:
                self._asked = None  # the next one asks again
            message = "the metrics of the other processes did not come"
            raise RequestError("not_ready", message, headers={"Retry-After": "1"}) from None


def _check_live(readiness: Readiness) -> None:
    """End a process that only a new one can replace: the parent starts that."""
    try:
        readiness.check_live()
    except RequestError as error:
        log.critical("this process ends, and another takes its place: %s", error.message)
        logging.shutdown()
        os._exit(Exit.SOFTWARE)


def take_from_environment() -> Member | None:
    """What the parent handed over when it started this process; None: nobody did."""
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return None
    try:
        listener, channel, number, count = map(int, text.split(","))
        return Member(socket.socket(fileno=listener), socket.socket(fileno=channel), number, count)
    except (ValueError, OSError) as error:
        raise StartupError(f"environment: {VARIABLE} must not be set") from error
