"""Raw sockets against the real server: what is no proper HTTP gets a proper answer and no more."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from embedserve.http.connection import HEAD_SECONDS, LINGER_BYTES
from tests.conftest import Server, Start
from tests.faults.serving import serving, until

BODY = b'{"model":"tiny","input":"a"}'
HEAD = (
    b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n" % len(BODY)
)
GOOD = HEAD + b"\r\n" + BODY


def connect(server: Server) -> socket.socket:
    """A connection to the server, with a time limit on every call."""
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port or 0), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def read_one(connection: socket.socket) -> tuple[int, Any]:
    """Status and JSON of one answer, the connection left open."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65_536)
        assert part, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65_536)
    return int(head.split()[1]), json.loads(body[:length])


def refused(server: Server, sent: bytes) -> tuple[int, str]:
    """Status and code of the one answer to `sent`, after which the connection is closed."""
    with connect(server) as connection:
        connection.sendall(sent)
        answer = read_all(connection)
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


INVALID: dict[str, bytes] = {
    "not HTTP": b"hello\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two lengths": b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
    b"Content-Length: 2\r\n\r\n{}",
    "length and chunks": b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown transfer coding": b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"
    b"Transfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n",
    "folded field": b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    "space before the colon": b"GET /livez HTTP/1.1\r\nHost : x\r\n\r\n",
    "NUL in a field": b"GET /livez HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
    "negative length": HEAD.replace(b"Length: ", b"Length: -") + b"\r\n" + BODY,
    "no Host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "CONNECT": b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "bad chunk": b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_http(server: Server, case: str) -> None:
    """Framing tricks and other protocols: 400 in the error body, then the connection ends."""
    assert refused(server, INVALID[case]) == (400, "invalid_http")
    assert server.embed(model="tiny", input="a").status_code == 200


def test_a_refusal_has_an_id_and_is_counted(server: Server) -> None:
    """Also what is no HTTP gets X-Request-Id, another one each time, and shows in the metrics."""
    seen = set()
    for _ in range(2):
        with connect(server) as connection:
            connection.sendall(INVALID["no Host"])
            head = connection.makefile("rb").read().partition(b"\r\n\r\n")[0].decode()
        seen.add(next(s for s in head.splitlines() if s.startswith("x-request-id: req_")))
    assert len(seen) == 2
    with server.client() as client:
        text = client.get("/metrics").text
    count = re.search(r'embedserve_refusals_total\{code="invalid_http"\} (\d+)', text)
    assert count is not None
    assert int(count[1]) >= 2
    assert 'embedserve_refusals_total{code="too_many_connections"} 0.0' in text


def test_tls_hello(server: Server) -> None:
    """A client that speaks TLS is told off, not left waiting."""
    context = ssl.create_default_context()
    with connect(server) as connection, pytest.raises(ssl.SSLError):
        context.wrap_socket(connection, server_hostname="localhost")


LARGE: dict[str, tuple[bytes, int, str]] = {
    "URL": (b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 9_000), 414, "uri_too_long"),
    "field": (
        b"GET / HTTP/1.1\r\nHost: x\r\nA: %s\r\n\r\n" % (b"a" * 40_000),
        431,
        "headers_too_large",
    ),
    "fields": (
        b"GET / HTTP/1.1\r\nHost: x\r\n%s\r\n" % (b"A: b\r\n" * 101),
        431,
        "headers_too_large",
    ),
    "endless URL": (b"GET /" + b"a" * 3_000_000, 414, "uri_too_long"),
    "endless field": (b"GET / HTTP/1.1\r\nA: " + b"a" * 3_000_000, 431, "headers_too_large"),
}


@pytest.mark.parametrize("case", LARGE)
def test_too_large_a_head(server: Server, case: str) -> None:
    """A head past its limits is refused while it comes, whatever is still to come."""
    sent, status, code = LARGE[case]
    with connect(server) as connection:
        try:
            connection.sendall(sent)
        except OSError:
            return  # it was cut off past what is read on: no answer can be owed
        answer = read_all(connection)
    assert int(answer.split()[1]) == status
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == code


@pytest.mark.parametrize("form", ["http://other.example/livez", "/livez?x=%00", "//livez/../livez"])
def test_odd_targets(server: Server, form: str) -> None:
    """An absolute or odd target is a target: answered, never an internal error."""
    with connect(server) as connection:
        connection.sendall(f"GET {form} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        status = int(read_all(connection).split()[1])
    assert status in (200, 404)


def test_keep_alive_and_pipelining(server: Server) -> None:
    """Requests on one connection are answered in order, also when sent at once."""
    with connect(server) as connection:
        for _ in range(3):
            connection.sendall(GOOD)
            assert read_one(connection)[0] == 200
        connection.sendall(GOOD + GOOD + GOOD.replace(b"tiny", b"none"))
        data = b""
        while data.count(b'"index"') < 2 or b"model_not_found" not in data:
            data += connection.recv(65_536)
    assert data.count(b"HTTP/1.1 200") == 2


def test_bytes_one_by_one(server: Server) -> None:
    """A request in many pieces is one request."""
    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(GOOD)):
            connection.sendall(GOOD[i : i + 1])
        assert read_one(connection)[0] == 200


def test_refusal_can_be_read_while_sending(start: Start, tiny_artifacts: Path) -> None:
    """A 413 reaches a client that is still sending its body."""
    models = tiny_artifacts.parent / "models.toml"
    server = start(models, tiny_artifacts, "--max-body-bytes", "1000")
    head = HEAD.replace(b"%d" % len(BODY), b"500000")
    with connect(server) as connection:
        connection.sendall(head + b"\r\n" + b"x" * 500_000)
        answer = read_all(connection)
    assert b"request_too_large" in answer


def test_expect_continue(server: Server) -> None:
    """A client that waits for 100 gets it, or the refusal at once."""
    with connect(server) as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 100")
        connection.sendall(BODY)
        assert read_one(connection)[0] == 200
    with connect(server) as connection:
        unwanted = HEAD.replace(b"application/json", b"text/plain")
        connection.sendall(unwanted + b"Expect: 100-continue\r\n\r\n")
        assert read_one(connection)[0] == 415


def test_upgrade_is_not_taken(server: Server) -> None:
    """An offer of another protocol is ignored: Java's client offers HTTP/2 with every request."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n"
    with connect(server) as connection:
        connection.sendall(HEAD + offer + b"\r\n" + BODY)
        assert read_one(connection)[0] == 200


def test_connection_cap(start: Start, tiny_artifacts: Path) -> None:
    """Connections past the cap get 503 with Retry-After; others are not disturbed."""
    models = tiny_artifacts.parent / "models.toml"
    server = start(models, tiny_artifacts, "--max-connections", "2")
    with connect(server) as first, connect(server) as second:
        for one in (first, second):
            one.sendall(GOOD)
            assert read_one(one)[0] == 200
        with connect(server) as third:
            answer = read_all(third)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"too_many_connections" in answer
        assert b"retry-after" in answer.lower()
        first.sendall(GOOD)
        assert read_one(first)[0] == 200


def test_slow_clients_are_cut_off(server: Server) -> None:
    """One that sends nothing, and one that never ends its header, are gone after the deadline."""
    with connect(server) as silent, connect(server) as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        silent.settimeout(HEAD_SECONDS + 10)
        slow.settimeout(HEAD_SECONDS + 10)
        answer = read_all(slow)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"request_timeout" in answer
        with contextlib.suppress(ConnectionResetError):  # it was aborted: nothing was owed
            assert read_all(silent) == b""


def test_late_body(start: Start, tiny_artifacts: Path) -> None:
    """A body that does not arrive in its time gets 408."""
    models = tiny_artifacts.parent / "models.toml"
    server = start(models, tiny_artifacts, "--max-body-seconds", "0.2")
    with connect(server) as connection:
        connection.sendall(HEAD + b"\r\n" + BODY[:5])
        assert read_one(connection)[1]["error"]["code"] == "request_timeout"
    assert server.embed(model="tiny", input="a").status_code == 200


def test_refusal_is_not_forgotten_for_the_next_request(server: Server) -> None:
    """A refused request and a good one in one segment: the refusal, and no answer out of turn."""
    good = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    assert refused(server, b"GET /readyz HTTP/1.1\r\n\r\n" + good) == (400, "invalid_http")


def test_refusal_waits_for_its_turn(server: Server) -> None:
    """A good request, then a bad one behind it: the answers come in that order."""
    with connect(server) as connection:
        connection.sendall(GOOD + INVALID["bad chunk"])
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1 ") <= 2
    assert "Traceback" not in server.log.read_text()


CHUNKED = HEAD.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked")
CHUNKS = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)

CODINGS = {
    "before chunked": b"Transfer-Encoding: gzip, chunked\r\n",
    "in a field before": b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
    "empty before chunked": b"Transfer-Encoding: ,chunked\r\n",
    "alone": b"Transfer-Encoding: gzip\r\n",
    "with an offer": b"Transfer-Encoding: gzip, chunked\r\nConnection: upgrade\r\nUpgrade: x\r\n",
}


@pytest.mark.parametrize("case", CODINGS)
def test_transfer_coding(server: Server, case: str) -> None:
    """A coding that is not served is no plain body: 501, and the connection ends."""
    head = HEAD.replace(b"Content-Length: %d\r\n" % len(BODY), CODINGS[case])
    sent = head + b"\r\n" + CHUNKS + b"\r\n"
    assert refused(server, sent) == (501, "unsupported_transfer_coding")


def test_transfer_coding_of_http_1_0(server: Server) -> None:
    """HTTP/1.0 has no chunks: a proxy in front may have taken the body for something else."""
    sent = CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n" + CHUNKS + b"\r\n"
    with connect(server) as connection:
        connection.sendall(sent)
        assert b"invalid_http" in read_all(connection)


@pytest.mark.parametrize("options", [b"upgrade, close", b"Close,Upgrade", b"UPGRADE ,x, close"])
def test_an_offer_that_closes(server: Server, options: bytes) -> None:
    """What else Connection says counts where an offer of another protocol is not taken."""
    offer = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: %b\r\nUpgrade: h2c\r\n\r\n" % options
    with connect(server) as connection:
        connection.sendall(offer)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.lower()


def test_an_offer_in_http_1_0_closes(server: Server) -> None:
    """An offer does not make HTTP/1.1 of HTTP/1.0."""
    with connect(server) as connection:
        connection.sendall(b"GET /livez HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200")


GATE = ("tests.faults.altered", "gate")
OTHER = GOOD.replace(b'"a"', b'"b"')


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 4095, 4096, 4097, 100_000])
def test_pipelines_in_pieces(server: Server, size: int) -> None:
    """Requests of every kind behind each other, cut anywhere: each has its answer, in order."""
    chunked = CHUNKED + b"\r\n" + CHUNKS + b"A: b\r\n\r\n"
    padded = b'{"model":"tiny","input":"a"' + b"\r\n" * 3000 + b"}"
    large = HEAD.replace(b"%d" % len(BODY), b"%d" % len(padded)) + b"\r\n" + padded
    in_chunks = CHUNKED + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(padded), padded)
    get = b"\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    missing = HEAD.replace(b"/v1/", b"/no/") + b"\r\n" + BODY
    sent = [GOOD, get, chunked, large, missing, in_chunks, get, GOOD]
    if size < 64:
        sent = [GOOD, get, chunked, missing, get]
    statuses = [b"404" if one is missing else b"200" for one in sent]
    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces(b"".join(sent), size):
            connection.sendall(piece)
        data = b""
        while data.count(b"HTTP/1.1 ") < len(sent) or not data.endswith(b"}"):
            part = connection.recv(65_536)
            assert part, data
            data += part
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == statuses


@pytest.mark.parametrize("behind", [GOOD, GOOD * 1000], ids=["one", "more than is read"])
@pytest.mark.parametrize("how", ["closes", "half-closes", "resets"])
def test_leaving_ends_what_was_sent(
    start: Start, tiny_artifacts: Path, tmp_path: Path, how: str, behind: bytes
) -> None:
    """Nothing is computed for a client that leaves with requests behind the one that waits."""
    with serving(tiny_artifacts, tmp_path / "log", "--lanes", "1", runner=GATE) as server:
        server.hold_passes()
        label = '{model="tiny"}'
        with server.connect() as held, server.connect() as leaving:
            held.sendall(GOOD)
            leaving.sendall(OTHER + behind)
            in_flight = f"embedserve_requests_in_flight{label}"
            until(lambda: server.metric(in_flight) == 2)
            if how == "half-closes":
                leaving.shutdown(socket.SHUT_WR)
            else:
                if how == "resets":
                    leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                leaving.close()
            until(lambda: server.metric(in_flight) == 1)
            server.release_passes()
            assert read_one(held)[0] == 200
        assert server.metric(f"embedserve_batch_size_sum{label}") == 1


def test_trailers_are_no_headers(server: Server) -> None:
    """What follows the last chunk cannot change what the header said."""
    with connect(server) as connection:
        trailer = b"X-Expect-Fingerprint: 0\r\n\r\n"
        connection.sendall(CHUNKED + b"\r\n" + CHUNKS + trailer)
        assert read_one(connection)[0] == 200


def test_endless_trailers(server: Server) -> None:
    """Trailers have the bounds of a header; what comes after the answer is dropped, bounded."""
    with connect(server) as connection, contextlib.suppress(OSError):
        connection.sendall(CHUNKED + b"\r\n" + CHUNKS)
        for _ in range(100):
            connection.sendall(b"A: b\r\n" * 1000)
        assert b" 431 " in connection.recv(65_536)
        for _ in range(LINGER_BYTES // 600_000 + 20):
            connection.sendall(b"A: b\r\n" * 100_000)
        raise AssertionError("trailers were taken without end")


def test_many_offers_of_another_protocol(server: Server) -> None:
    """Each of many upgrade offers in one segment is answered or the connection ends in order."""
    offer = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(offer * 800)  # as many as come in one piece
        data = b""
        while data.count(b"HTTP/1.1 200") < 800:
            part = connection.recv(65_536)
            assert part, data
            data += part
