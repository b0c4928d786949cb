"""`embedserve serve --processes N`: real processes that are killed, stopped, and cannot start."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve import artifact
from embedserve.processes.member import share
from tests import tiny
from tests.conftest import Server, Start, run
from tests.faults.serving import until
from tests.faults.traffic import ask_until_refused, connected, post

REQUEST = post({"model": "tiny", "input": "a b c"})
CLIENTS = 40
DRAIN = "5"


@given(total=st.integers(0, 10_000), count=st.integers(1, 300))
def test_shares_sum_up(total: int, count: int) -> None:
    """No core is given twice or left out, and no share is two smaller than another."""
    shares = [share(total, number, count) for number in range(count)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


@pytest.fixture
def two(start: Start, tiny_artifacts: Path) -> Server:
    """Two processes that both serve."""
    return started(start, tiny_artifacts)


def started(start: Start, artifacts: Path, *flags: str, **env: str) -> Server:
    """Start two processes, and wait until both serve."""
    models = artifacts.parent / "models.toml"
    more = ("--processes", "2", "--drain-seconds", DRAIN, "--no-access-log", *flags)
    server = start(models, artifacts, *more, **env)
    until(lambda: "2 processes serve" in server.log.read_text())
    return server


def children(server: Server) -> list[int]:
    """The serving processes."""
    pid = server.process.pid
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def samples(server: Server, name: str) -> dict[str, float]:
    """A metric's value by process, summed over its other labels."""
    found: Counter[str] = Counter()
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    for line in lines:
        if line.startswith(name + "{"):
            process = line.partition('process="')[2].partition('"')[0]
            found[process] += float(line.rpartition(" ")[2])  # type: ignore[assignment]
    return dict(found)


def test_both_serve(two: Server) -> None:
    """New connections reach both, and whichever is asked has the metrics of all."""
    for _ in range(64):
        assert two.embed(model="tiny", input="a b").status_code == 200
    texts = samples(two, "embedserve_texts_total")
    assert texts.keys() == {"1", "2"}
    assert sum(texts.values()) == 64
    assert min(texts.values()) > 0
    assert samples(two, "embedserve_lanes").keys() == {"1", "2"}
    assert samples(two, "embedserve_processes") == {"parent": 2.0}
    assert samples(two, "embedserve_process_restarts_total") == {"parent": 0.0}
    assert samples(two, "process_resident_memory_bytes").keys() == {"1", "2", "parent"}
    assert two.stop() == 0
    assert "Traceback" not in two.log.read_text()


async def ask_on(port: int, seen: Counter[str], over: asyncio.Event) -> int:
    """Ask on a connection until it is lost, then on another one, until it is over; losses."""
    lost = 0
    while not over.is_set():
        try:
            async with connected(port) as connection:
                seen["connections"] += 1
                while connection.open and not over.is_set():
                    answer = await connection.ask(REQUEST)
                    seen[f"{answer.status}"] += 1
        except (OSError, EOFError):
            seen["lost"] += 1
            lost += 1
    return lost


@pytest.mark.anyio
async def test_a_killed_process_is_replaced(two: Server) -> None:
    """Only requests on its connections fail, one of each at most; and it is back."""
    seen: Counter[str] = Counter()
    over = asyncio.Event()
    clients = [asyncio.create_task(ask_on(port_of(two), seen, over)) for _ in range(CLIENTS)]
    await asyncio.to_thread(until, lambda: seen["200"] > CLIENTS)
    before = children(two)
    connections = seen["connections"]
    os.kill(before[1], signal.SIGKILL)
    await asyncio.to_thread(until, lambda: two.log.read_text().count("serving tiny") == 3)
    over.set()
    losses = await asyncio.gather(*clients)
    print(dict(seen))
    assert max(losses) == 1
    assert connections == CLIENTS
    assert 0 < seen["lost"] < CLIENTS
    assert seen.keys() == {"connections", "200", "lost"}
    after = await asyncio.to_thread(children, two)
    assert after[0] == before[0]
    assert len(after) == 2
    assert "process 2 of 2 ended with signal 9; starting it again" in two.log.read_text()
    restarts = await asyncio.to_thread(samples, two, "embedserve_process_restarts_total")
    assert restarts == {"parent": 1.0}


@pytest.mark.anyio
async def test_sigterm_loses_nothing(two: Server) -> None:
    """Under clients that come back until none is let in: each request has its answer; exit 0."""
    seen: Counter[str] = Counter()

    draw = random.Random(0)  # noqa: S311  # how long each waits between two requests
    asking = (ask_until_refused(port_of(two), draw, seen, REQUEST) for _ in range(CLIENTS))
    clients = [asyncio.create_task(one) for one in asking]
    await asyncio.to_thread(until, lambda: seen["200"] > 3 * CLIENTS)
    two.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*clients)
    print(dict(seen))
    assert seen["lost"] == 0
    assert seen["sent"] == seen["200"] > 3 * CLIENTS
    assert seen["refused"] == CLIENTS
    assert await asyncio.to_thread(two.process.wait, 10) == 0


def test_one_that_drains_by_itself(two: Server) -> None:
    """SIGTERM to one process alone: its place is taken, and new connections reach it again."""
    os.kill(children(two)[1], signal.SIGTERM)
    until(lambda: two.log.read_text().count("serving tiny") == 3)
    for _ in range(64):
        assert two.embed(model="tiny", input="a").status_code == 200
    assert samples(two, "embedserve_texts_total")["2"] > 0


def test_the_parent_is_killed(two: Server) -> None:
    """Its processes drain and end: nobody would start them again."""
    left = children(two)
    two.process.kill()
    two.process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


def test_one_that_cannot_start_again(start: Start, tmp_path: Path, tiny_artifacts: Path) -> None:
    """The other one serves every new connection meanwhile."""
    shutil.copytree(tiny_artifacts.parent, tmp_path / "own")
    two = started(start, tmp_path / "own" / "artifacts")
    (tmp_path / "own" / "artifacts").rename(tmp_path / "gone")
    os.kill(children(two)[1], signal.SIGKILL)
    until(lambda: "starting it again in 1 s" in two.log.read_text())
    for _ in range(20):
        assert two.embed(model="tiny", input="a").status_code == 200
    (tmp_path / "gone").rename(tmp_path / "own" / "artifacts")
    until(lambda: len(samples(two, "embedserve_lanes")) == 2)
    assert two.stop() == 0


def test_other_models_after_a_restart(start: Start, tmp_path: Path, tiny_artifacts: Path) -> None:
    """A new artifact is not served beside the old one: all must be started again."""
    shutil.copytree(tiny_artifacts.parent, tmp_path / "own")
    two = started(start, tmp_path / "own" / "artifacts", "--model", "tiny")
    fingerprint = artifact.read(tmp_path / "own" / "artifacts" / "tiny").fingerprint
    shutil.rmtree(tmp_path / "own" / "artifacts" / "tiny")
    tiny.write(tmp_path / "own" / "artifacts" / "tiny", max_tokens=7)
    os.kill(children(two)[1], signal.SIGKILL)
    until(lambda: "has loaded other models than the others serve" in two.log.read_text())
    for _ in range(16):
        answer = two.embed(model="tiny", input="a")
        assert answer.headers["x-embedding-fingerprint"] == fingerprint
    assert two.stop() == 0


def test_it_ends_while_one_cannot_start(start: Start, tmp_path: Path, tiny_artifacts: Path) -> None:
    """SIGTERM does not wait for the next try, and starts nothing any more."""
    shutil.copytree(tiny_artifacts.parent, tmp_path / "own")
    two = started(start, tmp_path / "own" / "artifacts")
    shutil.rmtree(tmp_path / "own" / "artifacts")
    os.kill(children(two)[1], signal.SIGKILL)
    until(lambda: "starting it again in 4 s" in two.log.read_text())
    begun = time.monotonic()
    assert two.stop() == 0
    assert time.monotonic() - begun < 3.5


@pytest.mark.slow
def test_one_that_hangs(two: Server) -> None:
    """A process that answers nothing for half a minute is replaced."""
    os.kill(children(two)[1], signal.SIGSTOP)
    until(lambda: "has not answered" in two.log.read_text(), 60)
    until(lambda: two.log.read_text().count("serving tiny") == 3)


def test_keys_reach_all(start: Start, tiny_artifacts: Path, tmp_path: Path) -> None:
    """From the environment, which shows them nowhere; and from a file, read again on SIGHUP."""
    file = tmp_path / "keys"
    file.write_text("first-key\n")
    flags = ("--api-keys-file", str(file))
    two = started(start, tiny_artifacts, *flags, EMBEDSERVE_API_KEYS="secret-key")
    for pid in (two.process.pid, *children(two)):
        assert b"secret-key" not in Path(f"/proc/{pid}/environ").read_bytes()

    def statuses(key: str) -> set[int]:
        with two.client() as client:
            fields = {"authorization": f"Bearer {key}", "connection": "close"}
            return {client.get("/v1/models", headers=fields).status_code for _ in range(16)}

    assert statuses("secret-key") == statuses("first-key") == {200}
    assert statuses("no-such-key") == {401}
    file.write_text("other-key\n")
    two.process.send_signal(signal.SIGHUP)
    until(lambda: two.log.read_text().count("API keys reloaded") == 2)
    assert statuses("other-key") == statuses("secret-key") == {200}
    assert statuses("first-key") == {401}


def test_what_keeps_them_from_serving_is_said_once(tiny_artifacts: Path, tmp_path: Path) -> None:
    """An artifact that is not there, an address that is taken, more processes than cores."""
    models = ("--models", str(tiny_artifacts.parent / "models.toml"))
    flags = ("--processes", "2", "--port", "0", "--artifacts")
    missing = run("serve", *models, *flags, str(tmp_path))
    assert missing.returncode == 66
    assert missing.stderr.count("no such file") == 1
    assert "Traceback" not in missing.stderr
    many = run("serve", *models, "--processes", "256")
    assert many.returncode == 78
    assert many.stderr.count("\n") == 1
    assert "processes = 256: more than the" in many.stderr


def test_the_address_is_taken(two: Server, tiny_artifacts: Path) -> None:
    """Also by processes of another server that share it."""
    models = str(tiny_artifacts.parent / "models.toml")
    paths = ("--models", models, "--artifacts", str(tiny_artifacts))
    taken = run("serve", *paths, "--processes", "2", "--port", str(port_of(two)))
    assert taken.returncode == 69
    assert "cannot listen on" in taken.stderr


def test_a_variable_that_is_not_the_parents(tiny_artifacts: Path) -> None:
    """A handed-over variable that is not from a parent is refused, in one line."""
    paths = ("--models", str(tiny_artifacts.parent / "models.toml"))
    wrong = run("serve", *paths, "--processes", "2", _EMBEDSERVE_MEMBER="7,8,9")
    assert wrong.returncode == 78
    assert wrong.stderr == "embedserve: environment: _EMBEDSERVE_MEMBER must not be set\n"
