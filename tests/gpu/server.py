"""A server process on the provider under test: start, requests, memory, threads, end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu.place import Place

PATIENCE = 60.0  # seconds
REFUSAL = 15.0  # seconds, by which a server that refuses has ended
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Server:
    """One that answers."""

    place: Place
    model: str
    process: subprocess.Popen[str]
    port: int
    ready_after: float  # seconds

    def ask(self, path: str, body: object = None, patience: float = PATIENCE) -> tuple[int, Any]:
        """The status and what its JSON says."""
        data = None if body is None else json.dumps(body).encode()
        head = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, head)
        try:
            with urllib.request.urlopen(request, timeout=patience) as answer:  # noqa: S310
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def embed(self, texts: Sequence[str]) -> tuple[int, Any]:
        """Ask for vectors."""
        return self.ask("/v1/embeddings", {"model": self.model, "input": list(texts)})

    def threads(self) -> dict[int, float]:
        """Processor seconds of each thread so far; the event loop's is the process' own id."""
        found = {}
        for path in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(OSError):
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                found[int(path.name)] = (int(fields[11]) + int(fields[12])) / TICKS
        return found

    def resident_mb(self) -> float:
        """Memory of the host."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no VmRSS")


@contextmanager
def serving(
    place: Place, model: str, *flags: str, log: Path, module: str = "embedserve"
) -> Iterator[Server]:
    """A server of one model; its log is appended to `log`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = place.command("serve", "--model", model, "--port", str(port), *flags, module=module)
    command += ["--provider", place.provider, "--no-access-log", "--max-wait", "60"]
    began = time.perf_counter()
    with log.open("a") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, text=True, env=place.environment()
        )
    try:
        wait_ready(process, port)
        yield Server(place, model, process, port, time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(process: subprocess.Popen[str], port: int) -> None:
    """Return once it answers; RuntimeError when it ends or takes too long."""
    until = time.perf_counter() + PATIENCE
    while time.perf_counter() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz"):
            return
        time.sleep(0.02)
    raise RuntimeError("the server was not ready in time")


def refused(place: Place, model: str, **variables: str) -> dict[str, object]:
    """Start a server that should refuse: its status and what it says on standard error."""
    command = place.command("serve", "--model", model, "--port", "0", "--provider", place.provider)
    try:
        done = subprocess.run(
            command,
            env=place.environment(**variables),
            capture_output=True,
            text=True,
            timeout=REFUSAL,
        )
    except subprocess.TimeoutExpired as late:
        return {"status": "it serves", "said": str(late.stderr)[-500:]}
    return {"status": done.returncode, "said": (done.stdout + done.stderr)[-1000:]}
