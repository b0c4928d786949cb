"""Real servers for the tests: the process of .venv, on tiny artifacts and on the exported ones."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import httpx
import pytest

from tests import tiny

# They run in environments of their own (Makefile).
collect_ignore = ["clients", "export", "image", "ray", "faults/test_export_faults.py"]

ROOT = Path(__file__).parent.parent
# The environment that only serves: the tests' own has more in it.
SERVE = ROOT / ".venv" / "bin" / "embedserve"
EXPORT_PYTHON = ROOT / ".venv-export" / "bin" / "python"
MINILM = "all-MiniLM-L6-v2"


@dataclass(frozen=True, slots=True)
class Server:
    """A running `embedserve serve`."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    copier: threading.Thread

    def client(self, **options: float) -> httpx.Client:
        """A client of its own connections."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=60, **options)  # type: ignore[arg-type]  # only numbers are passed

    def embed(self, **body: object) -> httpx.Response:
        """POST /v1/embeddings on a connection of its own."""
        with self.client() as client:
            return client.post("/v1/embeddings", json=body)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


Start = Callable[..., Server]


def environment(**more: str) -> dict[str, str]:
    """What a server's process gets: no HOME, no proxy, nothing of the tests' own."""
    return {"PATH": os.environ["PATH"], **more}


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Where asynchronous tests run: the server's own kind of loop."""
    return "asyncio"


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start servers; those still running at the end are killed."""
    yield from starting(SERVE, tmp_path_factory)


def starting(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """What `start` does, with the `embedserve` of any environment."""
    servers: list[Server] = []

    def start_server(models: Path, artifacts: Path, *flags: str, **env: str) -> Server:
        paths = ("--models", models, "--artifacts", artifacts)
        process = subprocess.Popen(
            [program, "serve", "--port", "0", *paths, *flags],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**env),
        )
        servers.append(_until_serving(process, tmp_path_factory.mktemp("server") / "log"))
        return servers[-1]

    yield start_server
    for server in servers:
        server.process.kill()
        server.process.wait()
        server.copier.join()


def _until_serving(process: subprocess.Popen[str], log: Path) -> Server:
    """Read the log until the server says where it listens; keep the rest in a file."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        found = re.search(r"serving .* on (http://\S+)", line)
        if found:
            log.write_text(seen)
            copier = threading.Thread(target=_copy, args=(process.stderr, log))
            copier.start()
            return Server(process, found[1], log, copier)
    raise AssertionError(f"the server ended with {process.wait()}: {seen}")


def _copy(lines: TextIO, log: Path) -> None:
    with lines, log.open("a") as file:
        for line in lines:
            file.write(line)
            file.flush()


@pytest.fixture(scope="session")
def tiny_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """artifacts/ of three tiny models beside their models.toml."""
    root = tmp_path_factory.mktemp("tiny")
    tiny.write(root / "artifacts" / "tiny")
    tiny.write(
        root / "artifacts" / "matryoshka",
        "matryoshka",
        matryoshka=(4, 2),
        prompts={"query": "a ", "document": "b "},
    )
    tiny.models_toml(root / "models.toml", {"tiny": "", "matryoshka": "accept_token_ids = true"})
    return root / "artifacts"


@pytest.fixture(scope="session")
def server(start: Start, tiny_artifacts: Path) -> Server:
    """One server of tiny models, shared by tests that leave it as it was."""
    return start(tiny_artifacts.parent / "models.toml", tiny_artifacts)


@pytest.fixture(scope="session")
def minilm(start: Start) -> Server:
    """One server of the real all-MiniLM-L6-v2, as exported by `make export`."""
    return start(ROOT / "models.toml", ROOT / "artifacts", "--model", MINILM)


def run(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `embedserve` of .venv to its end."""
    return subprocess.run(
        [SERVE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(**env),
    )


def run_python(code: str) -> str:
    """Run code in the serve environment; its standard output."""
    python = SERVE.with_name("python")
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    return done.stdout
