"""`embedserve health`: the status that a container's health check needs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from pathlib import Path

import httpx
import pytest

from embedserve.errors import Exit
from tests.conftest import Server, Start, run
from tests.faults.traffic import connected, get


def port_of(server: Server) -> str:
    """Where it listens."""
    return str(httpx.URL(server.url).port)


@pytest.fixture
def models(tiny_artifacts: Path) -> Path:
    """The models.toml of the tiny models."""
    return tiny_artifacts.parent / "models.toml"


class TestReady:
    """A server that is there and ready: 0."""

    def test_by_flag(self, server: Server, models: Path) -> None:
        """It says what is served."""
        done = run("health", "--models", models, "--port", port_of(server))
        assert (done.returncode, done.stderr) == (0, "")
        assert '"tiny"' in done.stdout

    def test_by_environment(self, server: Server, models: Path) -> None:
        """Where the server listens is read as the server reads it."""
        env = {"EMBEDSERVE_MODELS": str(models), "EMBEDSERVE_PORT": port_of(server)}
        assert run("health", **env).returncode == 0

    def test_no_proxy_and_no_key(self, start: Start, models: Path, tiny_artifacts: Path) -> None:
        """Neither a proxy of the environment nor an API key has a part in it."""
        keyed = start(models, tiny_artifacts, EMBEDSERVE_API_KEYS="a-key-of-some-length")
        env = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        done = run("health", "--models", models, "--port", port_of(keyed), **env)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104  # what is tested
    def test_every_address(
        self, start: Start, models: Path, tiny_artifacts: Path, host: str
    ) -> None:
        """Who listens on every address is asked on loopback."""
        if host == "::" and not _has_ipv6():
            pytest.skip("no IPv6 here")
        everywhere = start(models, tiny_artifacts, "--host", host)
        port = everywhere.url.rpartition(":")[2]
        done = run("health", "--models", models, "--host", host, "--port", port)
        assert (done.returncode, done.stderr) == (0, "")


class TestNotReady:
    """Anything else: 1, and the reason on standard error."""

    def test_nobody_listens(self, models: Path) -> None:
        """A closed port is said with its address."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
        done = run("health", "--models", models, "--port", port)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"127.0.0.1:{port}: " in done.stderr
        assert "Traceback" not in done.stderr

    def test_no_answer_in_time(self, models: Path) -> None:
        """A server that hangs is not waited for."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = str(silent.getsockname()[1])
            done = run("health", "--models", models, "--port", port, "--seconds", "0.2")
        assert (done.returncode, done.stdout) == (1, "")
        assert "timed out" in done.stderr

    def test_draining(self, start: Start, models: Path, tiny_artifacts: Path) -> None:
        """After SIGTERM the server still answers, and is not ready."""
        server = start(models, tiny_artifacts, "--drain-seconds", "60")

        async def draining() -> tuple[int, str]:
            # A client that asks again and again keeps the drain from ending.
            async with connected(int(port_of(server))) as first:
                await first.ask(get("/readyz"))
                asking = asyncio.create_task(_ask_on(int(port_of(server))))
                server.process.send_signal(signal.SIGTERM)
                while True:
                    done = await asyncio.to_thread(
                        run, "health", "--models", models, "--port", port_of(server)
                    )
                    if done.returncode:
                        asking.cancel()
                        return done.returncode, done.stderr

        status, said = asyncio.run(draining())
        assert status == 1
        assert "shutting down" in said


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--port", "0"], Exit.USAGE, "any free port"),
        (["--port", "65536"], Exit.CONFIG, "--port"),
        (["--seconds", "0"], Exit.USAGE, "--seconds"),
        (["--seconds", "nan"], Exit.USAGE, "--seconds"),
        (["--lanes", "1"], Exit.USAGE, "--lanes"),
    ],
    ids=["any port", "no port", "no time", "no number", "no flag of it"],
)
def test_wrong_flag(models: Path, flags: list[str], status: Exit, said: str) -> None:
    """What cannot be asked is said as by every command: one line, sysexits' status."""
    done = run("health", "--models", models, *flags)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


async def _ask_on(port: int) -> None:
    """New connections, one after the other, until none can be had."""
    with contextlib.suppress(OSError, EOFError):
        while True:
            async with connected(port) as connection:
                await connection.ask(get("/livez"))


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True
