"""Spans as a collector gets them, and what tracing costs those who do not want it: nothing."""

from __future__ import annotations

import json
import re
import secrets
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from embedserve import __version__
from embedserve.api.middleware import PROBES
from embedserve.api.tracing import ATTRIBUTES, STAGES
from embedserve.config.settings import Settings
from embedserve.errors import Exit
from tests import programs
from tests.conftest import ROOT, Server, Start, environment
from tests.faults.serving import until
from tests.otel.conftest import PROGRAM, Collector, children, part, run

PARENT = "00f067aa0ba902b7"
LONG = "a b c d a b c d"  # two words and its special tokens are past the tiny model's limit


def fresh() -> str:
    """A trace id of its own."""
    return secrets.token_hex(16)


def traceparent(trace_id: str, flags: str = "01") -> dict[str, str]:
    """W3C Trace Context's header, level 1."""
    return {"traceparent": f"00-{trace_id}-{PARENT}-{flags}"}


def post(trace_id: str, body: bytes, headers: bytes = b"", query: bytes = b"") -> bytes:
    """A request as bytes."""
    parent = traceparent(trace_id)["traceparent"].encode()
    return (
        b"POST /v1/embeddings%b HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        b"traceparent: %b\r\ncontent-length: %d\r\n%b\r\n%b"
    ) % (query, parent, len(body), headers, body)


def connect(server: Server) -> socket.socket:
    """A connection on which nothing was sent."""
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port or 0), timeout=30)


def answers(connection: socket.socket, count: int) -> list[bytes]:
    """The status lines of so many answers."""
    said = b""
    while len(found := re.findall(rb"HTTP/1\.1 \d+", said)) < count:
        said += connection.recv(65536)
    return found


def interrupt(server: Server) -> None:
    """End it without the quiet that SIGTERM waits for; its log is whole then."""
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=30) == 0
    server.copier.join()


class TestRequest:
    """POST embeddings."""

    def test_stages(self, traced: Server, collector: Collector) -> None:
        """A traceparent becomes the parent; stages follow one another within the server's span,
        and take what Server-Timing says.
        """
        trace_id = fresh()
        body = {"model": "tiny", "input": ["a b", LONG] * 200}
        with traced.client() as client:
            answer = client.post("/v1/embeddings", json=body, headers=traceparent(trace_id))
        server, stages = children(collector.trace(trace_id, 1 + len(STAGES)))
        assert (server["parent"], server["name"]) == (PARENT, "POST /v1/embeddings")
        assert [stage["name"] for stage in stages] == list(STAGES)
        assert {stage["kind"] for stage in stages} == {"SPAN_KIND_INTERNAL"}
        moments = [t for stage in stages for t in (stage["start"], stage["end"])]
        assert moments == sorted(moments)
        assert server["start"] <= moments[0] and moments[-1] <= server["end"]
        timing = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
        for stage in stages[:3]:
            ms = (stage["end"] - stage["start"]) / 1e6
            assert ms == pytest.approx(float(timing[stage["name"]]), abs=0.006)  # it has two digits

    def test_attributes(self, traced: Server, collector: Collector) -> None:
        """What was asked for stands on the server's span and on each stage."""
        trace_id = fresh()
        body = {"model": "tiny", "input": ["a b", LONG]}
        headers = {**traceparent(trace_id), "user-agent": "me"}
        with traced.client() as client:
            answer = client.post("/v1/embeddings?a=b", json=body, headers=headers)
        server, stages = children(collector.trace(trace_id, 1 + len(STAGES)))
        expected = {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.request.model": "tiny",
            "gen_ai.usage.input_tokens": 4 + 8,
            "embedserve.texts": 2,
            "embedserve.truncated_texts": 1,
        }
        assert set(expected) == set(ATTRIBUTES)
        for span in (server, *stages):
            assert part(span, ATTRIBUTES) == expected
        url = httpx.URL(traced.url)
        http = {
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "http.route": "/v1/embeddings",
            "url.path": "/v1/embeddings",
            "url.scheme": "http",
            "server.address": url.host,
            "server.port": url.port,
            "client.address": "127.0.0.1",
            "network.protocol.version": "1.1",
            "user_agent.original": "me",
            "embedserve.http.request_id": answer.headers["x-request-id"],
        }
        assert part(server, http) == http
        assert set(server["attributes"]) == {*http, *expected, "client.port"}
        assert (server["status"], server["events"]) == ("STATUS_CODE_UNSET", [])

    def test_without_a_parent(self, traced: Server, collector: Collector) -> None:
        """A request that brings no trace begins one, which the access log names."""
        request_id = secrets.token_hex(8)
        with traced.client() as client:
            body = {"model": "tiny", "input": "a"}
            client.post("/v1/embeddings", json=body, headers={"x-request-id": request_id})
        until(lambda: request_id in traced.log.read_text())
        (line,) = [s for s in traced.log.read_text().splitlines() if request_id in s]
        server, _ = children(collector.trace(json.loads(line)["trace_id"], 1 + len(STAGES)))
        assert (server["parent"], server["attributes"]["embedserve.http.request_id"]) == (
            "",
            request_id,
        )

    @pytest.mark.parametrize("size", [1, 100_000], ids=["small", "past flow control"])
    def test_pipelined(self, traced: Server, collector: Collector, size: int) -> None:
        """Requests on one connection are in the traces they came with, whatever was before."""
        ids = [fresh() for _ in range(3)]
        body = json.dumps({"model": "tiny", "input": "a"}).encode() + b" " * size
        with closing(connect(traced)) as connection:
            connection.sendall(b"".join(post(trace_id, body) for trace_id in ids))
            assert answers(connection, len(ids)) == [b"HTTP/1.1 200"] * len(ids)
        for trace_id in ids:
            server, stages = children(collector.trace(trace_id, 1 + len(STAGES)))
            assert (server["parent"], len(stages)) == (PARENT, len(STAGES))

    def test_sampled_out(self, traced: Server, collector: Collector) -> None:
        """A caller that does not record its trace has nothing of it recorded here."""
        out, kept = fresh(), fresh()
        with traced.client() as client:
            for trace_id, flags in ((out, "00"), (kept, "01")):
                headers = traceparent(trace_id, flags)
                body = {"model": "tiny", "input": "a"}
                assert client.post("/v1/embeddings", json=body, headers=headers).is_success
        collector.trace(kept, 1 + len(STAGES))
        assert out not in collector.file.read_text()
        assert out in traced.log.read_text()  # it can be found by its trace all the same


class TestOthers:
    """Every other route, and requests that fail."""

    def test_small_routes(self, traced: Server, collector: Collector) -> None:
        """The span is named after the route; probes and /metrics have none."""
        named, unnamed = fresh(), fresh()
        with traced.client() as client:
            for path in (*PROBES, "/metrics"):
                assert client.get(path, headers=traceparent(unnamed)).is_success
            for path in ("/v1/models/tiny", "/docs"):
                assert client.get(path, headers=traceparent(named)).is_success
        spans = collector.trace(named, 2)
        assert [span["name"] for span in spans] == ["GET /v1/models/{name}", "GET /docs"]
        assert unnamed not in collector.file.read_text()

    @pytest.mark.parametrize(
        ("method", "path", "content", "status", "code"),
        [
            ("POST", "/v1/embeddings", "{", 400, "invalid_json"),
            ("POST", "/v1/embeddings", '{"model": "x", "input": "a"}', 404, "model_not_found"),
            ("POST", "/nothing/like/it", "", 404, "unknown_url"),
            ("PUT", "/v1/models", "", 405, "method_not_allowed"),
        ],
    )
    def test_refused(
        self,
        traced: Server,
        collector: Collector,
        method: str,
        path: str,
        content: str,
        status: int,
        code: str,
    ) -> None:
        """A client's error has its code, and is no error of the server's."""
        trace_id = fresh()
        headers = {"content-type": "application/json", **traceparent(trace_id)}
        with traced.client() as client:
            answer = client.request(method, path, content=content, headers=headers)
        assert answer.status_code == status
        server, stages = children(collector.trace(trace_id, 1))
        assert server["name"] == (method if code == "unknown_url" else f"{method} {path}")
        assert server["attributes"]["http.response.status_code"] == status
        assert server["attributes"]["embedserve.error_code"] == code
        assert (server["status"], stages) == ("STATUS_CODE_UNSET", [])

    def test_queue_full(self, traced: Server, collector: Collector) -> None:
        """429 beside a body that holds what requests may hold in all."""
        trace_id = fresh()
        body = json.dumps({"model": "tiny", "input": "a"}).encode() + b" " * 300_000
        with closing(connect(traced)) as held, traced.client() as client:
            held.sendall(post(fresh(), body)[:-100])
            until(lambda: _pending(client) > 800_000)
            headers = {"content-type": "application/json", **traceparent(trace_id)}
            answer = client.post("/v1/embeddings", content=body, headers=headers)
            assert answer.status_code == 429
        server, _ = children(collector.trace(trace_id, 1))
        assert server["attributes"]["embedserve.error_code"] == "queue_full"

    def test_failed(self, traced: Server, collector: Collector) -> None:
        """An answer of the 500s is an error of the server's span."""
        trace_id = fresh()
        headers = {"x-request-timeout": "1e-9", **traceparent(trace_id)}
        with traced.client() as client:
            body = {"model": "tiny", "input": "a"}
            assert client.post("/v1/embeddings", json=body, headers=headers).status_code == 504
        server, _ = children(collector.trace(trace_id, 1))
        assert server["status"] == "STATUS_CODE_ERROR"
        assert server["attributes"]["error.type"] == "504"
        assert server["attributes"]["embedserve.error_code"] == "deadline_exceeded"

    def test_client_left(self, traced: Server, collector: Collector) -> None:
        """A client that closes its connection is said to have left."""
        trace_id = fresh()
        body = json.dumps({"model": "tiny", "input": [LONG] * 2000}).encode()
        with closing(connect(traced)) as connection:
            connection.sendall(post(trace_id, body))
        server, _ = children(collector.trace(trace_id, 1))
        assert server["attributes"]["embedserve.error_code"] == "cancelled"
        assert server["status"] == "STATUS_CODE_UNSET"


def _pending(client: httpx.Client) -> float:
    found = re.search(
        r"^embedserve_pending_bytes (\S+)$", client.get("/metrics").text, re.MULTILINE
    )
    assert found
    return float(found[1])


class TestSecrets:
    """What is sent to the collector."""

    def test_no_input_key_or_query(
        self, start_otel: Start, tiny_artifacts: Path, collector: Collector
    ) -> None:
        """Even where the environment asks for every header; and no byte that a client can send
        brings the instrumentation down.
        """
        trace_id, key = fresh(), "sk-" + secrets.token_hex(16)
        capture = {
            f"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_{which}": ".*"
            for which in ("REQUEST", "RESPONSE")
        }
        models = tiny_artifacts.parent / "models.toml"
        server = start_otel(
            models,
            tiny_artifacts,
            "--tracing",
            **collector.environment(EMBEDSERVE_API_KEYS=key, **capture),
        )
        headers = (
            b"authorization: Bearer %b\r\nx-request-id: seen-1\r\nuser-agent: \xff\\x\r\n"
            b"cookie: crumbs\r\ntracestate: \xff\\N\r\n"
        ) % key.encode()
        body = json.dumps({"model": "tiny", "input": "wordofmine"}).encode()
        with closing(connect(server)) as connection:
            connection.sendall(post(trace_id, body, headers, b"?asked=%ff\\x"))
            assert answers(connection, 1) == [b"HTTP/1.1 200"]
        _, stages = children(collector.trace(trace_id, 1 + len(STAGES)))
        assert len(stages) == len(STAGES)
        sent = collector.file.with_suffix(".raw").read_bytes()
        assert b"seen-1" in sent
        for secret in (key.encode(), b"wordofmine", b"asked", b"crumbs"):
            assert secret not in sent


class TestCollector:
    """A collector may be away or stall; nothing else waits for it."""

    @pytest.fixture(params=["away", "stalled"])
    def endpoint(self, request: pytest.FixtureRequest) -> Iterator[str]:
        """Nobody listens there, or somebody who never answers."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            if request.param == "away":
                listener.close()
            yield f"http://127.0.0.1:{port}"

    def test_nobody_waits(
        self, start_otel: Start, tiny_artifacts: Path, traced: Server, endpoint: str
    ) -> None:
        """Requests take what they take with a collector that is there, though the queue of spans
        runs over; a line of a kind is logged; SIGTERM ends in time with status 0.
        """
        lost = start_otel(
            tiny_artifacts.parent / "models.toml",
            tiny_artifacts,
            "--tracing",
            "--drain-seconds",
            "1",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_BSP_SCHEDULE_DELAY="20",
            OTEL_BSP_MAX_QUEUE_SIZE="32",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="16",
        )
        seconds: dict[str, list[float]] = {lost.url: [], traced.url: []}
        with lost.client() as one, traced.client() as other:
            for client in (one, other) * 200:
                began = time.perf_counter()
                body = {"model": "tiny", "input": "a"}
                assert client.post("/v1/embeddings", json=body).is_success
                seconds[str(client.base_url).rstrip("/")].append(time.perf_counter() - began)
        assert max(seconds[lost.url]) < 5  # a batch is given up after 10
        assert statistics.median(seconds[lost.url]) < 1.5 * statistics.median(seconds[traced.url])
        until(lambda: "Queue full" in lost.log.read_text())
        began = time.monotonic()
        lost.process.send_signal(signal.SIGTERM)
        assert lost.process.wait(timeout=30) == 0
        assert time.monotonic() - began < 1 + 1 + 5  # to drain, to send what waits, and slack
        lost.copier.join()
        log = lost.log.read_text()
        kinds = re.findall(r" opentelemetry\S+: (\w+ \w+)", log)
        assert len(kinds) <= 4 and len(set(kinds)) == len(kinds), kinds
        assert "were not sent within" in log

    def test_what_waits_is_sent_at_the_end(
        self, start_otel: Start, tiny_artifacts: Path, collector: Collector
    ) -> None:
        """SIGTERM sends what would have been sent later; whose spans they are is said by the
        standard variables.
        """
        trace_id = fresh()
        server = start_otel(
            tiny_artifacts.parent / "models.toml",
            tiny_artifacts,
            **collector.environment(
                EMBEDSERVE_TRACING="true",
                OTEL_BSP_SCHEDULE_DELAY="3600000",
                OTEL_SERVICE_NAME="vectors",
                OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
            ),
        )
        with server.client() as client:
            body = {"model": "tiny", "input": "a"}
            client.post("/v1/embeddings", json=body, headers=traceparent(trace_id))
        assert trace_id not in collector.file.read_text()
        assert server.stop() == 0
        span, _ = children(collector.trace(trace_id, 1 + len(STAGES)))
        resource = {
            "service.name": "vectors",
            "service.version": __version__,
            "deployment.environment.name": "test",
        }
        assert resource.items() <= span["resource"].items()

    def test_the_service_has_a_name(self, traced: Server, collector: Collector) -> None:
        """Without a word it is embedserve."""
        trace_id = fresh()
        with traced.client() as client:
            client.get("/v1/models", headers=traceparent(trace_id))
        (span,) = collector.trace(trace_id, 1)
        assert span["resource"]["service.name"] == "embedserve"

    def test_it_talks_to_nobody_else(
        self, tiny_artifacts: Path, collector: Collector, tmp_path: Path
    ) -> None:
        """Its connections, from exec to exit, are to the collector."""
        programs.need("strace", package="strace")
        trace, log, trace_id = tmp_path / "trace", tmp_path / "log", fresh()
        paths = ("--models", tiny_artifacts.parent / "models.toml", "--artifacts", tiny_artifacts)
        # -D: the process that is started is the server, and strace watches from beside.
        watch = ("strace", "-D", "-f", "-e", "trace=connect,sendto", "-o", trace)
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [*watch, PROGRAM, "serve", "--port", "0", "--tracing", *paths],
                stderr=stderr,
                env=environment(**collector.environment()),
            )
        try:
            until(lambda: process.poll() is not None or b"serving " in log.read_bytes())
            if process.poll() is not None and "strace:" in log.read_text():
                pytest.skip(f"strace is forbidden here: {log.read_text().strip()}")
            (url,) = re.findall(r"serving .* on (http://\S+)", log.read_text())
            httpx.get(f"{url}/v1/models", headers=traceparent(trace_id), trust_env=False)
            collector.trace(trace_id, 1)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
            until(
                lambda: bool(
                    re.search(rf"^{process.pid} +\+\+\+ exited", trace.read_text(), re.MULTILINE)
                )
            )
        finally:
            process.kill()
            process.wait()
        ports = re.findall(r"sin6?_port=htons\((\d+)\)", trace.read_text())
        assert set(ports) == {str(httpx.URL(collector.url).port)}


class TestOff:
    """Tracing is asked for, and possible, or it is not there."""

    @pytest.mark.parametrize("flags", [(), ("--tracing",)], ids=["off", "on"])
    def test_nothing_is_imported(
        self,
        start_otel: Start,
        tiny_artifacts: Path,
        collector: Collector,
        flags: tuple[str, ...],
    ) -> None:
        """Off, a server that has answered has imported no module of it, though it is installed."""
        server = start_otel(
            tiny_artifacts.parent / "models.toml",
            tiny_artifacts,
            *flags,
            **collector.environment(PYTHONPROFILEIMPORTTIME="1"),
        )
        assert server.embed(model="tiny", input="a").is_success
        interrupt(server)
        imported = set(
            re.findall(r"^import time:.*\| +(\w+)", server.log.read_text(), re.MULTILINE)
        )
        assert "onnxruntime" in imported
        wanted = {"opentelemetry", "requests", "asgiref"}
        assert imported & wanted == (wanted if flags else set())

    def test_default(self) -> None:
        """It is off unless asked for."""
        assert Settings().tracing is False

    def test_switched_off_by_its_own_variable(
        self, start_otel: Start, tiny_artifacts: Path, collector: Collector
    ) -> None:
        """OTEL_SDK_DISABLED: answers, and no spans."""
        trace_id = fresh()
        models = tiny_artifacts.parent / "models.toml"
        off = collector.environment(OTEL_SDK_DISABLED="true")
        server = start_otel(models, tiny_artifacts, "--tracing", **off)
        with server.client() as client:
            body = {"model": "tiny", "input": "a"}
            headers = traceparent(trace_id)
            assert client.post("/v1/embeddings", json=body, headers=headers).is_success
        interrupt(server)
        assert trace_id not in collector.file.read_text()

    @pytest.mark.parametrize("command", ["serve", "doctor"])
    @pytest.mark.parametrize(
        ("variable", "value"),
        [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_TRACES_EXPORTER", "zipkin")],
    )
    def test_another_exporter(
        self, tiny_artifacts: Path, command: str, variable: str, value: str
    ) -> None:
        """What is not built in is refused at start, and not found out by missing spans."""
        models = tiny_artifacts.parent / "models.toml"
        paths = ("--models", models, "--artifacts", tiny_artifacts)
        done = run(command, "--tracing", *paths, **{variable: value})
        assert done.returncode == Exit.CONFIG
        assert f'{variable} = "{value}"' in done.stderr + done.stdout

    def test_a_number_that_is_none(self, tiny_artifacts: Path) -> None:
        """A value that the SDK refuses ends the start in one line."""
        models = tiny_artifacts.parent / "models.toml"
        paths = ("--models", models, "--artifacts", tiny_artifacts, "--port", "0")
        env = {"OTEL_BSP_MAX_QUEUE_SIZE": "0"}
        done = run("serve", "--tracing", *paths, **env)
        assert (done.returncode, done.stderr.count("\n")) == (Exit.CONFIG, 1)
        assert "OTEL_" in done.stderr and "Traceback" not in done.stderr


def test_lock() -> None:
    """The lock is the serve lock, with more."""
    locks = {
        name: set(
            re.findall(r"^\S+==\S+", (ROOT / "requirements" / name).read_text(), re.MULTILINE)
        )
        for name in ("serve.txt", "serve-otel.txt")
    }
    assert locks["serve.txt"] < locks["serve-otel.txt"]
