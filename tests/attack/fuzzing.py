"""The fuzzer's process: drawn inputs on several connections at once; answers are checked.

python -m tests.attack.fuzzing PORT SECONDS SEED FOLDER prints what it did as JSON. FOLDER gets the
inputs whose answers are new (kept/), each that failed, and the last ones when it is terminated.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import itertools
import json
import os
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.attack.answers import Answer, MalformedError, answers
from tests.attack.attackers import HOST, NICE
from tests.attack.forms import Form
from tests.attack.mutate import CORPUS, Entry, corpus, drawn

CONNECTIONS = 48
SEND_SECONDS = 2.0  # after which an input that the server does not take is given up
QUIET_SECONDS = 0.15  # without an answer, after which a client leaves
MOST_READ = 8_000_000  # bytes of answers that a connection looks at
MOST_KEPT = 1_000  # entries that inputs are drawn from, of this run and earlier ones
KEPT_BYTES = 4_096  # of one
LAST = 200  # inputs that are written when the server fails: one of them did it
MOST_FAILURES = 10


@dataclass(slots=True)
class Done:
    """Counts of a run. `statuses`: of answers; "nothing": connections that read none."""

    inputs: int = 0
    sent: int = 0
    kept: int = 0
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[str] = field(default_factory=list)

    def dumped(self) -> str:
        """The counts as JSON, for who watches."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields, sort_keys=True)


class Fuzzer:
    """Owned by its event loop."""

    def __init__(self, port: int, seed: str, folder: Path) -> None:
        self.done = Done()
        self._port, self._seed, self._folder = port, seed, folder
        self._kept = folder / "kept"
        self._kept.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("last-*.json"):
            path.unlink()
        self._entries = corpus(CORPUS, self._kept)
        self._numbers = itertools.count()
        self._seen: set[tuple[Answer, ...]] = set()
        self._last: collections.deque[tuple[int, Form]] = collections.deque(maxlen=LAST)

    async def fuzz(self, seconds: float) -> None:
        """Go on for so long, or until there are MOST_FAILURES."""
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._connect(end) for _ in range(CONNECTIONS)))

    def write_last(self) -> None:
        """Write the inputs last sent."""
        for number, form in self._last:
            self._write(f"last-{number}", form)

    async def _connect(self, end: float) -> None:
        while time.monotonic() < end and len(self.done.failures) < MOST_FAILURES:
            number = next(self._numbers)
            form = drawn(Random(f"{self._seed}/{number}"), self._entries)  # noqa: S311
            self._last.append((number, form))
            self.done.inputs += 1
            self.done.sent += sum(len(step.data) for step in form.steps)
            received, has_ended = await self._send(form)
            if form.reads:
                self._check(number, form, received, has_ended)
            await asyncio.sleep(0)

    async def _send(self, form: Form) -> tuple[bytes, bool]:
        """Do it; what came, and whether the server ended the connection in order."""
        loop = asyncio.get_running_loop()
        received = bytearray()
        with socket.socket() as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, (HOST, self._port))
            reading = asyncio.create_task(_read(connection, received if form.reads else None))
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(SEND_SECONDS):
                    for step in form.steps:
                        await loop.sock_sendall(connection, step.data)
                        await asyncio.sleep(step.pause)
            with contextlib.suppress(OSError):
                if form.leaves == "half-closes":
                    connection.shutdown(socket.SHUT_WR)
            if form.leaves in ("stays", "half-closes"):
                size = -1
                while not reading.done() and size < len(received):
                    size = len(received)
                    await asyncio.wait([reading], timeout=QUIET_SECONDS)
            has_ended = reading.done() and reading.result()
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
            if form.leaves == "resets":
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return bytes(received), has_ended

    def _check(self, number: int, form: Form, received: bytes, has_ended: bool) -> None:
        data = b"".join(step.data for step in form.steps)
        try:
            found, rest = answers(received, has_head=b"HEAD" in data)
            if has_ended and rest:
                raise MalformedError(f"the connection ends within an answer: {rest[-200:]!r}")
        except MalformedError as error:
            path = self._write(f"failed-{number}", form)
            self.done.failures.append(f"{path}: {error}")
            return
        self.done.statuses.update([str(answer.status) for answer in found] or ["nothing"])
        kinds = tuple(dict.fromkeys(found))
        is_small = len(data) <= KEPT_BYTES
        if kinds not in self._seen and is_small and len(self._entries) < MOST_KEPT:
            self._seen.add(kinds)
            self.done.kept += 1
            self._entries.append(Entry(data, is_body=False))
            name = hashlib.sha256(data).hexdigest()[:16]
            (self._kept / f"{name}.http").write_bytes(data)

    def _write(self, name: str, form: Form) -> Path:
        path = self._folder / f"{name}-seed-{self._seed}.json"
        path.write_text(form.dumped())
        return path


async def _read(connection: socket.socket, received: bytearray | None) -> bool:
    """Read to the end, where `received` is one; whether it ended in order (False: a reset)."""
    if received is None:
        await asyncio.Event().wait()
    assert received is not None
    loop = asyncio.get_running_loop()
    while len(received) < MOST_READ:
        try:
            part = await loop.sock_recv(connection, 65_536)
        except OSError:
            return False
        if not part:
            return True
        received += part
    return False


def main() -> None:
    """Fuzz."""
    port, seconds, seed, folder = sys.argv[1:5]
    os.nice(NICE)
    fuzzer = Fuzzer(int(port), seed, Path(folder))

    def stop(*_: object) -> None:
        fuzzer.write_last()
        print(fuzzer.done.dumped(), flush=True)
        os._exit(1)  # whatever the loop is doing

    signal.signal(signal.SIGTERM, stop)
    asyncio.run(fuzzer.fuzz(float(seconds)))
    print(fuzzer.done.dumped())


if __name__ == "__main__":
    main()
