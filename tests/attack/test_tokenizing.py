"""Tokenizing that takes long: bounded, in its turn, and only while somebody waits for it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.attack.forms import LIVEZ
from tests.attack.pauses import Span
from tests.attack.watch import asking, longest
from tests.conftest import MINILM, ROOT, Server, Start
from tests.faults.traffic import get, post
from tests.faults.watched import bound, peak, processor

# The most characters that a text of all-MiniLM-L6-v2 may have, each a token.
MARKS = ["!" * 64_000] * 130
# Words of 99 letters cost the most of English letters: WordPiece tries each of their ends.
WORDS = [" ".join(["q" * 99] * 160)] * 80  # 1.28 MB
GREEK = " ".join(["αβγδεζηθικλμν" * 7] * 800)[:64_000]
MAX_WAIT = 0.5
# The promise is a quarter of a second, on a machine that has nothing else to do. What it is for
# took 1.4 to 20 s.
ANSWERED = pytest.mark.parametrize(
    "livez",
    [
        pytest.param(1.0, id="beside other work"),
        pytest.param(0.25, id="alone", marks=pytest.mark.slow),
    ],
)


def tokenize_of(texts: list[str], **headers: str) -> bytes:
    """POST /v1/tokenize as it is on the wire."""
    whole = post({"model": MINILM, "input": texts}, **headers)
    return whole.replace(b"/v1/embeddings", b"/v1/tokenize", 1)


@contextmanager
def sent(server: Server, request: bytes) -> Iterator[socket.socket]:
    """A connection on which a request was sent whole."""
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.settimeout(60)
        connection.sendall(request)
        yield connection


def status_of(connection: socket.socket) -> int:
    """The status of the answer, read to the end of its head."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(65_536)
        assert piece, "the connection was closed without an answer"
        head += piece
    return int(head.split(maxsplit=2)[1])


@contextmanager
def asking_livez(server: Server) -> Iterator[list[Span]]:
    """Another client that asks /livez all the time, and gets it; when it waited."""
    failures: list[str] = []
    with asking(httpx.URL(server.url).port or 80, LIVEZ, 0.01, failures) as waits:
        yield waits
    assert not failures


@pytest.fixture
def fresh(start: Start) -> Iterator[Server]:
    """A server of the real model, for one test."""
    server = start(ROOT / "models.toml", ROOT / "artifacts", "--model", MINILM)
    yield server
    server.process.kill()


def gauge(client: httpx.Client, name: str) -> float:
    """A gauge without labels."""
    found = re.search(rf"^embedserve_{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


def within(seconds: float, server: Server, name: str, most: float) -> None:
    """Fail unless a gauge falls to `most` in time."""
    until = time.monotonic() + seconds
    with server.client() as client:
        while gauge(client, name) > most:
            assert time.monotonic() < until, f"{name} is {gauge(client, name)}"


@ANSWERED
def test_many_marks_stay_within_the_bound(fresh: Server, livez: float) -> None:
    """130 texts of 64,000 marks: within the printed bound, and the loop answers others."""
    with asking_livez(fresh) as waits, sent(fresh, tokenize_of(MARKS)) as connection:
        assert status_of(connection) == 200
    largest = peak(fresh.process.pid)
    print(f"\nlargest {largest / 1e6:.0f} MB, /livez {longest(waits) * 1000:.0f} ms")
    assert largest <= bound(fresh.log)
    assert longest(waits) <= livez


def test_the_deadline_is_kept(fresh: Server) -> None:
    """504 soon after it, and not when all is done."""
    with sent(fresh, tokenize_of(MARKS[:20], x_request_timeout="0.05")) as connection:
        start = time.perf_counter()
        assert status_of(connection) == 504
    assert time.perf_counter() - start < 0.3


def test_nothing_is_done_for_who_has_left(fresh: Server) -> None:
    """A query of another client waits for a slice, and not for what nobody waits for."""
    query = "a question of six hundred letters " * 18
    fresh.embed(model=MINILM, input=query)
    with sent(fresh, tokenize_of(MARKS)):
        within_use(fresh)
    start = time.perf_counter()
    assert fresh.embed(model=MINILM, input=query).status_code == 200
    print(f"\na query after {time.perf_counter() - start:.3f} s")
    assert time.perf_counter() - start < 1
    within(1, fresh, "predicted_wait_seconds", 0)
    within(1, fresh, "pending_bytes", 0)


def within_use(server: Server) -> None:
    """Return once the process works on what was sent."""
    before = processor(server.process.pid)
    until = time.monotonic() + 30
    while processor(server.process.pid) < before + 0.2:
        assert time.monotonic() < until, "it does nothing"


@pytest.mark.parametrize(
    "texts", [MARKS, [GREEK] * 60], ids=["many marks", "texts that cannot be cut"]
)
def test_the_end_waits_for_nothing(start: Start, texts: list[str]) -> None:
    """SIGTERM with drain_seconds 3 ends in about 3 s, whatever is tokenized."""
    server = start(
        ROOT / "models.toml", ROOT / "artifacts", "--model", MINILM, "--drain-seconds", "3"
    )
    with sent(server, tokenize_of(texts)), sent(server, tokenize_of(texts)):
        within_use(server)
        begun = time.perf_counter()
        assert server.stop() == 0
    print(f"\nended after {time.perf_counter() - begun:.2f} s")
    assert time.perf_counter() - begun < 4.5


def test_an_answer_that_nobody_reads_is_counted(fresh: Server) -> None:
    """What a client does not take of its tokens counts until it is sent."""
    with fresh.client() as client, sent(fresh, tokenize_of(["a b c " * 300] * 2000)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert status_of(connection) == 200
        assert gauge(client, "pending_bytes") > 5_000_000
    within(5, fresh, "pending_bytes", 0)


@ANSWERED
def test_tokenizing_that_waits_is_admitted_like_passes(start: Start, livez: float) -> None:
    """20 clients with 1.28 MB of long words: 429 for most, and queries within `max_wait`."""
    server = start(
        ROOT / "models.toml", ROOT / "artifacts", "--model", MINILM, "--max-wait", str(MAX_WAIT)
    )
    query = "a question of six hundred letters " * 18
    server.embed(model=MINILM, input=query)
    request = post({"model": MINILM, "input": WORDS})
    slowest = 0.0
    with concurrent.futures.ThreadPoolExecutor(20) as clients, asking_livez(server) as live:

        def ask(_: int) -> int:
            with sent(server, request) as connection:
                return status_of(connection)

        answers = [clients.submit(ask, i) for i in range(20)]
        statuses, waits = [], []
        with server.client() as client:
            while not all(answer.done() for answer in answers):
                waits.append(gauge(client, "predicted_wait_seconds"))
                begun = time.perf_counter()
                statuses.append(client.post("/v1/embeddings", json={"input": query}).status_code)
                slowest = max(slowest, time.perf_counter() - begun)
        bulk = [answer.result() for answer in answers]
    print(
        f"\nbulk {bulk}, {len(statuses)} queries at most {slowest:.2f} s, {set(statuses)}, "
        f"predicted {max(waits):.1f} s, /livez {longest(live) * 1000:.0f} ms"
    )
    assert set(bulk) == {200, 429}
    assert bulk.count(429) >= 15
    assert max(waits) > MAX_WAIT
    assert set(statuses) <= {200, 429}
    assert slowest <= 2 * MAX_WAIT
    assert longest(live) <= livez


def test_what_comes_is_what_the_model_sees(fresh: Server) -> None:
    """Cut into steps, an answer is the same as text by text."""
    texts = ["a b", "c d e " * 900, "f", *("g h" for _ in range(600)), "i" * 5_000]
    with fresh.client() as client:
        whole = client.post("/v1/tokenize", json={"input": texts}).json()
        for i in (0, 1, 2, 300, len(texts) - 1):
            (alone,) = client.post("/v1/tokenize", json={"input": texts[i]}).json()["data"]
            assert whole["data"][i] == {**alone, "index": i}
    assert len(whole["data"]) == len(texts)
    assert json.dumps(whole).count('"tokens"') == 2 * len(texts)


@ANSWERED
@pytest.mark.parametrize(
    "request_of",
    [
        lambda i: post({"model": MINILM, "input": f"{i} {GREEK[:480]}"}),
        lambda i: get("/metrics"),
    ],
    ids=["short texts of rare letters", "metrics"],
)
def test_many_at_once_leave_the_loop_free(
    fresh: Server, request_of: Callable[[int], bytes], livez: float
) -> None:
    """300 clients send at the same time what the loop does itself: /livez is answered."""
    address = httpx.URL(fresh.url)
    with contextlib.ExitStack() as opened:
        connections = [
            opened.enter_context(socket.create_connection((address.host, address.port or 80)))
            for _ in range(300)
        ]
        with asking_livez(fresh) as waits:
            for i, connection in enumerate(connections):
                connection.settimeout(60)
                connection.sendall(request_of(i))
            assert {status_of(connection) for connection in connections} <= {200, 429}
    print(f"\n/livez {longest(waits) * 1000:.0f} ms")
    # Beside other work it was 0.23 to 0.34 s: what is left is a millisecond of each request, in one
    # go of the loop. Before, 1.4 to 1.6 s.
    assert longest(waits) <= livez
