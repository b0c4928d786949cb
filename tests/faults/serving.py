"""Servers whose process a test shapes: this tree's code, in the environment that only serves."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.faults import altered

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"
# Without it each client reads all certificates there are, for 20 ms, and nothing here is encrypted.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
SECONDS = 30.0  # nothing that is waited for here takes a third of it


@dataclass(frozen=True, slots=True)
class Served:
    """A running server. `log`: what it wrote on standard error, where that is a file."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        url = httpx.URL(self.url)
        return url.host, url.port or 0

    def client(self) -> httpx.Client:
        """A client of its own connections."""
        return httpx.Client(base_url=self.url, trust_env=False, verify=NO_TLS, timeout=SECONDS)

    def embed(self, headers: Mapping[str, str] | None = None, **body: object) -> httpx.Response:
        """POST /v1/embeddings on a connection of its own."""
        with self.client() as client:
            return client.post("/v1/embeddings", json=body, headers=headers)

    def connect(self) -> socket.socket:
        """A connection on which nothing was sent."""
        return socket.create_connection(self.address, timeout=SECONDS)

    def metric(self, sample: str) -> float:
        """The value of one sample, named as in /metrics."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        return next(float(s.rpartition(" ")[2]) for s in lines if s.startswith(sample + " "))

    def hold_passes(self) -> None:
        """Let every pass wait from now on; of tests.faults.altered's "gate"."""
        self.process.send_signal(signal.SIGUSR1)
        until(lambda: altered.HELD in self.log.read_text())

    def release_passes(self) -> None:
        """Let them go on."""
        self.process.send_signal(signal.SIGUSR2)

    def stop(self, seconds: float = SECONDS) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def processor_seconds(self) -> float:
        """Processor time used so far, by all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def command(artifacts: Path, *flags: str, runner: Sequence[str] = ("embedserve",)) -> list[str]:
    """Return what starts a server of artifacts beside their models.toml; `runner`: what runs it."""
    models = artifacts.parent / "models.toml"
    paths = ("--models", str(models), "--artifacts", str(artifacts))
    return [str(PYTHON), "-m", *runner, "serve", *paths, *flags]


def environment() -> dict[str, str]:
    """Return what a server's process gets: no HOME, no TMPDIR, nothing of the tests' own."""
    return {"PATH": os.environ["PATH"]}


@contextlib.contextmanager
def serving(
    artifacts: Path, log: Path, *flags: str, runner: Sequence[str] = ("embedserve",)
) -> Iterator[Served]:
    """Start a server that logs to a file; what still runs at the end is killed."""
    words = command(artifacts, "--port", "0", *flags, runner=runner)
    with log.open("wb") as stderr:
        process = subprocess.Popen(words, stderr=stderr, env=environment(), cwd=ROOT)
    try:
        yield Served(process, address_in(log, process), log)
    finally:
        kill(process)


def address_in(log: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait until a server that logs to `log` says where it listens."""
    found: list[str] = []

    def serves() -> bool:
        assert process.poll() is None, log.read_text()
        found[:] = re.findall(r"serving .* on (http://\S+)", log.read_text())
        return bool(found)

    until(serves)
    return found[0]


def kill(process: subprocess.Popen[bytes]) -> None:
    """End it, whatever it does."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()


def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait for a state."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come to this"
        time.sleep(0.01)


def free_port() -> int:
    """Return a port that nobody has, for a server whose log cannot be read."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
