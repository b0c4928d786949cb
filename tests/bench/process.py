"""A peer's processes: start, first answer, pause, memory, processor time, end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.corpus import MODEL, QUERIES
from tests.bench.peers import SCRATCH, URL, Peer

TICKS = os.sysconf("SC_CLK_TCK")
POLL = 0.005  # seconds
# Infinity's torch engine compiles, which takes a minute on two cores.
PATIENCE = 180.0  # seconds
MEMORY = {"Rss": "rss", "Pss": "pss", "Anonymous": "anonymous"}


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@dataclass(slots=True)
class Running:
    """A started peer. It leads a session of its own, whose processes are paused and counted."""

    peer: Peer
    port: int
    process: subprocess.Popen[str]
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def start(cls, peer: Peer) -> Running:
        """Start it; its standard error goes to a file."""
        port = _free_port()
        command = [part.format(port=port) for part in peer.command]
        SCRATCH.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with (SCRATCH / f"{peer.name}.log").open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=peer.folder,
                env=peer.environment(),
                stdin=subprocess.PIPE,
                stdout=log if peer.served else subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        return cls(peer, port, process, started)

    def first_answer(self) -> float:
        """Wait for the first answer to one short text; seconds since it was started."""
        while True:
            self._check_alive()
            with suppress(OSError):
                if self.peer.served:
                    self.embed([QUERIES[0]])
                else:
                    self.ask({"do": "embed", "texts": [QUERIES[0]]})
                return time.perf_counter() - self.started
            time.sleep(POLL)

    def embed(self, texts: list[str]) -> list[list[float]]:
        """The vectors of texts."""
        if not self.peer.served:
            rows: list[list[float]] = self.ask({"do": "embed", "texts": texts})["rows"]
            return rows
        body = json.dumps({"model": MODEL, "input": texts}).encode()
        url, head = f"http://127.0.0.1:{self.port}{URL}", {"content-type": "application/json"}
        request = urllib.request.Request(url, body, head)  # this host
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            data = json.load(answer)["data"]
        return [item["embedding"] for item in data]

    def ask(self, wanted: Mapping[str, object]) -> dict[str, Any]:
        """Send a line of JSON to a peer without a port, and read its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"{self.peer.name} ended: see {SCRATCH / self.peer.name}.log")
        found: dict[str, Any] = json.loads(line)
        return found

    def pause(self) -> None:
        """Let it use no processor."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def processor(self) -> float:
        """Processor seconds of all its processes."""
        return sum(map(cpu_seconds, self._pids()))

    def memory(self) -> dict[str, float]:
        """MB of all its processes: resident, with shared pages divided, and of no file."""
        total = dict.fromkeys(MEMORY.values(), 0.0)
        for pid in self._pids():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
                    name, value = line.split(":")
                    if name in MEMORY:
                        total[MEMORY[name]] += int(value.split()[0]) / 1024
        return total

    def stop(self) -> None:
        """End it and what it started."""
        self.resume()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def _check_alive(self) -> None:
        late = time.perf_counter() - self.started > PATIENCE
        if late or self.process.poll() is not None:
            what = "does not answer" if late else f"ended with {self.process.returncode}"
            log = (SCRATCH / f"{self.peer.name}.log").read_text()[-2000:]
            raise AssertionError(f"{self.peer.name} {what}: {log}")

    def _pids(self) -> list[int]:
        """Processes of its session."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                if int(path.read_text().rpartition(")")[2].split()[3]) == self.process.pid:
                    found.append(int(path.parent.name))
        return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
