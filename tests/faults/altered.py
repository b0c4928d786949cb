"""`embedserve serve` with one thing altered: python -m tests.faults.altered NAME serve …

What a test cannot bring about from outside: a wall clock that jumps, a pass that is held or never
ends, and a server that does what it must not do.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from embedserve import cli
from embedserve.api import app
from embedserve.arrays.batch import Batch
from embedserve.arrays.types import Floats
from embedserve.http import body, connection, readiness
from embedserve.model import onnx_backend
from embedserve.model.stop import Stop

HELD = "passes are held"  # said in the log by "gate"
HOURS = (5, -10)  # one jump after the other, at each SIGUSR1
# In place of embedserve.http.readiness's and embedserve.api.app's, for "endless".
LOST_SECONDS, LANES_GRACE = 1.5, 1.0
HASTE = 2.0  # in place of embedserve.http.connection's seconds, for "hasty"
ENDLESS = 8  # a pass of one text of so many tokens does not come back
LEAK = 4096  # bytes of each request, for "leaking"
AWAY = ("192.0.2.1", 9)  # an address of nobody (RFC 5737)


def clock() -> None:
    """SIGUSR1 moves the wall clock; the monotonic one goes on."""
    now, now_ns, moved = time.time, time.time_ns, 0.0
    jumps = iter(HOURS)

    def jump(*_: object) -> None:
        nonlocal moved
        moved += 3600 * next(jumps)

    time.time = lambda: now() + moved
    time.time_ns = lambda: now_ns() + int(moved) * 10**9
    signal.signal(signal.SIGUSR1, jump)


def hasty() -> None:
    """A head, and a client that reads, have HASTE seconds."""
    connection.HEAD_SECONDS = connection.WRITE_SECONDS = HASTE


def gate() -> None:
    """Every pass waits from SIGUSR1 until SIGUSR2."""
    opened = threading.Event()
    opened.set()

    def close(*_: object) -> None:
        opened.clear()
        logging.getLogger(__name__).info(HELD)

    signal.signal(signal.SIGUSR1, close)
    signal.signal(signal.SIGUSR2, lambda *_: opened.set())
    _before_each_pass(lambda batch: opened.wait())


def endless() -> None:
    """A pass of one text of ENDLESS tokens does not come back, whoever asks it to end."""
    readiness.LOST_SECONDS, app.LANES_GRACE = LOST_SECONDS, LANES_GRACE
    never = threading.Event()
    _before_each_pass(lambda batch: batch.input_ids.shape == (1, ENDLESS) and never.wait())


def udp() -> None:
    """It says something to a host far away."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"here I am", AWAY)


def tcp() -> None:
    """It connects to a host far away."""
    with socket.socket() as one:
        one.settimeout(0.1)
        try:
            one.connect(AWAY)
        except TimeoutError:  # nobody is there
            return


def file() -> None:
    """It leaves a file."""
    artifacts = Path(sys.argv[sys.argv.index("--artifacts") + 1])
    (artifacts.parent / "left").write_text("here I was")


def leaking() -> None:
    """It keeps what it was sent."""
    read, kept = body.read, []

    async def keeping(*arguments: Any) -> bytes | bytearray:
        content = await read(*arguments)
        kept.append(content + bytes(LEAK))
        return content

    body.read = keeping  # type: ignore[assignment]  # what this module is for


def executed() -> None:
    """It runs another program."""
    subprocess.run([sys.executable, "-c", ""], check=True)


ALTERATIONS: Mapping[str, Callable[[], None]] = {
    alter.__name__: alter
    for alter in (clock, hasty, gate, endless, udp, tcp, file, leaking, executed)
}


def _before_each_pass(wait: Callable[[Batch], object]) -> None:
    embed = onnx_backend.OnnxBackend.embed

    def held(
        self: onnx_backend.OnnxBackend, batch: Batch, alone: bool = False, stop: Stop | None = None
    ) -> Floats:
        wait(batch)
        return embed(self, batch, alone, stop)

    onnx_backend.OnnxBackend.embed = held  # type: ignore[method-assign]  # what this module is for


if __name__ == "__main__":
    ALTERATIONS[sys.argv.pop(1)]()
    cli.main()
