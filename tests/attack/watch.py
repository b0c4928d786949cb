"""What others notice of an attack: a server's memory, and how long two good clients wait."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.attack.forms import KEY, LIVEZ, QUERY, Form, post
from tests.attack.pauses import Span, without
from tests.conftest import MINILM, ROOT
from tests.faults import watched
from tests.faults.serving import Served, serving

SECONDS_AFTER = 10.0  # in which memory must be back
MB = 1_000_000
KEPT = 30 * MB  # of which so much may stay


@dataclass(slots=True)
class Seen:
    """Of one attack: bytes of memory, and the longest waits in seconds."""

    before: int
    bound: int
    peak: int = 0
    after: int = 0
    livez: float = 0.0
    query: float = 0.0
    failures: list[str] = field(default_factory=list)
    attackers: str = ""

    def __str__(self) -> str:
        memory = "/".join(f"{n / MB:.0f}" for n in (self.before, self.peak, self.after, self.bound))
        waits = f"livez {self.livez * 1e3:.0f} ms, query {self.query * 1e3:.0f} ms"
        return f"{memory} MB before/peak/after/bound, {waits} {self.attackers} {self.failures}"


@contextlib.contextmanager
def attacked(folder: Path, *flags: str) -> Iterator[Served]:
    """A server of the real model, with a key that good clients have."""
    keys = folder / "keys"
    keys.write_text(KEY + "\n")
    more = ("--model", MINILM, "--max-connections", "500", "--api-keys-file", str(keys), *flags)
    with serving(ROOT / "artifacts", folder / "log", *more) as server:
        yield server


def attack(server: Served, form: Form, connections: int, seconds: float) -> Seen:
    """Let so many connections do a form for a while, and watch."""
    pid, port = server.process.pid, server.address[1]
    seen = Seen(before=watched.resident(pid), bound=watched.bound(server.log))
    watched.forget_peak(pid)
    with (
        asking(port, LIVEZ, 0.02, seen.failures) as livez,
        asking(port, post(QUERY), 0.05, seen.failures) as query,
    ):
        words = ("-m", "tests.attack.attackers", str(port), str(connections), str(seconds))
        done = subprocess.run(
            [sys.executable, *words],
            input=form.dumped(),
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=seconds + 60,
        )
        assert done.returncode == 0, done.stderr
        seen.attackers = done.stdout.strip()
    seen.livez, seen.query = longest(livez), longest(query)
    end = time.monotonic() + SECONDS_AFTER
    while (now := watched.resident(pid)) > seen.before + KEPT and time.monotonic() < end:
        time.sleep(0.1)
    seen.after = now
    seen.peak = watched.peak(pid)
    return seen


@contextlib.contextmanager
def asking(port: int, request: bytes, pause: float, failures: list[str]) -> Iterator[list[Span]]:
    """A client that asks again and again on kept connections and new ones; when it waited."""
    waits: list[Span] = []
    over = threading.Event()

    def ask() -> None:
        kept = _connect(port)
        number = 0
        while not over.wait(pause):
            number += 1
            start = time.monotonic()
            try:
                one = kept if number % 2 else _connect(port)
                answer = _one(one, request)
            except OSError as error:
                answer = repr(error).encode()
            waits.append(Span(start, time.monotonic()))
            if one is not kept:
                one.close()
            if not answer.startswith(b"HTTP/1.1 200"):
                failures.append(answer[:200].decode("latin-1"))
                return
        kept.close()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waits
    finally:
        over.set()
        thread.join()


def longest(waits: Iterable[Span], pauses: Iterable[Span] = ()) -> float:
    """The longest wait in seconds, less the time in which the machine stood still."""
    stood = list(pauses)
    return max((without(wait, stood) for wait in list(waits)), default=0.0)


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def _one(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(request)
    answer = b""
    while (end := answer.find(b"\r\n\r\n")) < 0 or len(answer) < end + 4 + _length(answer):
        part = connection.recv(65_536)
        if not part:
            break
        answer += part
    return answer


def _length(answer: bytes) -> int:
    return int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
