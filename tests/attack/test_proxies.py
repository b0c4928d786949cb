"""Behind haproxy and nginx: no request reaches the server that the proxy has not seen.

Each proxy gives every request that it forwards an id. A request that was hidden in another one's
body has none of these.
"""

from __future__ import annotations

import itertools
import json
import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests import programs, tiny
from tests.faults.serving import Served, free_port, serving, until

MARK = "via-"  # ids of the proxy begin with it
HIDDEN = b"GET /livez?hidden HTTP/1.1\r\nHost: x\r\n\r\n"
SIZES = (
    b"",
    b"Content-Length: %d\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length : %d\r\n",
    b"Content-Length: +%d\r\n",
    b"Content-Length: %d, 5\r\n",
    b"Content-Length: 5\r\nContent-Length: %d\r\n",
    b"Content-Length:\x0b%d\r\n",
    b"Content-Length: 0x5\r\n",
    b"Content-Length: 0\r\n",
    b"Content_Length: %d\r\n",
)
ENCODINGS = (
    b"",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: CHUNKED\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n",
    b"X: y\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
)
BODIES = (
    HIDDEN,
    b"0\r\n\r\n" + HIDDEN,
    b"5\r\nhello\r\n0\r\n\r\n" + HIDDEN,
    b"0\n\n" + HIDDEN,
    b"5;a=\nhello\r\n0\r\n\r\n" + HIDDEN,
    b"0\r\nX: y\r\n" + HIDDEN + b"\r\n",
    b"-1\r\n" + HIDDEN,
)
QUICK = 120  # of all shapes, drawn


def shapes() -> list[bytes]:
    """Every way to say how long a body is, with every body."""
    made = []
    for size, encoding, body in itertools.product(SIZES, ENCODINGS, BODIES):
        length = size % len(body) if b"%d" in size else size
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"
        made.append(head + length + encoding + b"\r\n" + body)
    return made


def haproxy(folder: Path, port: int, server: int) -> list[str]:
    """As docs/operating.md has it, with an id for each request."""
    path = folder / "haproxy.cfg"
    path.write_text(
        "defaults\n mode http\n timeout connect 2s\n timeout client 5s\n timeout server 5s\n"
        f"frontend f\n bind 127.0.0.1:{port}\n default_backend b\n"
        f" http-request set-header X-Request-Id {MARK}%[rand(1000000000)]\n"
        f"backend b\n http-reuse always\n server one 127.0.0.1:{server}\n",
        encoding="utf-8",
    )
    return ["haproxy", "-db", "-f", str(path)]


def nginx(folder: Path, port: int, server: int) -> list[str]:
    """With connections to the server that are kept, so that what is hidden could follow on one."""
    path = folder / "nginx.conf"
    paths = "".join(
        f"{name}_temp_path {folder};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path.write_text(
        "daemon off;\nmaster_process off;\nevents {}\n"
        f"pid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n"
        f"http {{\n access_log off;\n{paths}"
        f" upstream u {{ server 127.0.0.1:{server}; keepalive 8; }}\n"
        f" server {{\n listen 127.0.0.1:{port};\n proxy_read_timeout 5s;\n"
        ' location / {\n proxy_http_version 1.1;\n proxy_set_header Connection "";\n'
        f" proxy_set_header X-Request-Id {MARK}$request_id;\n"
        " proxy_request_buffering off;\n proxy_pass http://u;\n } } }\n",
        encoding="utf-8",
    )
    return ["nginx", "-p", str(folder), "-c", str(path), "-e", str(folder / "error.log")]


PROXIES: dict[str, Callable[[Path, int, int], list[str]]] = {"haproxy": haproxy, "nginx": nginx}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of a tiny model, which logs each request with its id."""
    folder = tmp_path_factory.mktemp("behind")
    tiny.write(folder / "artifacts" / "tiny")
    tiny.models_toml(folder / "models.toml", {"tiny": ""})
    with serving(folder / "artifacts", folder / "log", "--log-format", "json") as served:
        yield served


@pytest.fixture(scope="module", params=sorted(PROXIES))
def port(
    request: pytest.FixtureRequest, server: Served, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The port of a proxy in front of the server."""
    program = programs.need(request.param, package=request.param)
    folder, listening = tmp_path_factory.mktemp(request.param), free_port()
    words = PROXIES[request.param](folder, listening, server.address[1])
    process = subprocess.Popen([program, *words[1:]], stderr=subprocess.DEVNULL)
    try:
        until(lambda: _is_open(listening))
        yield listening
    finally:
        process.kill()
        process.wait()


def _is_open(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def exchange(port: int, sent: bytes, seconds: float = 0.05) -> bytes:
    """Send bytes, and read what comes until nothing does for a moment."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as one:
        one.sendall(sent)
        try:
            while part := one.recv(65_536):
                answer += part
        except (TimeoutError, ConnectionError):
            pass
    return answer


def ids(server: Served) -> list[tuple[str, str]]:
    """Path and id of each request that the server has answered."""
    lines = (json.loads(line) for line in server.log.read_text().splitlines()[1:] if line[0] == "{")
    return [(line["path"], line["request_id"]) for line in lines if "path" in line]


def test_others_requests_have_ids(server: Served, port: int) -> None:
    """What the law rests on: the proxy's id reaches the log, and without a proxy there is none."""
    assert exchange(port, b"GET /v1/models?seen HTTP/1.1\r\nHost: x\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )
    exchange(server.address[1], b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    until(lambda: len(ids(server)) >= 2)
    assert any(name.startswith(MARK) for _, name in ids(server))
    assert any(not name.startswith(MARK) for _, name in ids(server))


@pytest.mark.parametrize(
    "count", [QUICK, pytest.param(len(shapes()), marks=pytest.mark.slow, id="all")]
)
def test_nothing_is_hidden_in_a_body(server: Served, port: int, count: int) -> None:
    """Whatever says how long a body is: the proxy and the server agree on where it ends."""
    drawn = random.Random(count).sample(shapes(), count)  # noqa: S311  # the same every time
    known = len(ids(server))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as other:
        for shape in drawn:
            exchange(port, shape, 0.02)
            answer = other.get("/v1/models")
            assert (answer.status_code, answer.json()["data"]) == (200, ["tiny"]), shape
    until(lambda: len(ids(server)) >= known + count)
    seen = ids(server)[known:]
    assert any(path == "/v1/embeddings" for path, _ in seen), "the proxy passed none of them on"
    assert [found for found in seen if not found[1].startswith(MARK)] == []
