"""The parts of embedserve.cluster that need no Ray: faked pools around the real application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedserve import merged_metrics
from embedserve.api.app import create_app
from embedserve.cluster import exchange, front, proxy
from embedserve.cluster.exchange import Answer, Request
from embedserve.cluster.front import Directory, LostError
from embedserve.cluster.scaling import QueueWait
from embedserve.config.api_keys import Keys
from embedserve.config.models_toml import Alias, ModelSpec
from embedserve.config.settings import Settings
from embedserve.errors import RequestError
from embedserve.metrics import Metrics
from embedserve.model.loading import load_model
from embedserve.model.registry import ModelRegistry
from tests.conftest import run_python

pytestmark = pytest.mark.anyio

JSON = [(b"content-type", b"application/json")]
NAMES = ["tiny", "matryoshka", "query-2"]
ALIAS = Alias("query-2", "matryoshka", "query", 2)


@dataclass(slots=True)
class Here:
    """A pool of one replica, in this process."""

    app: ASGIApp
    asked: list[Request] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)  # raised first, one a request

    async def ask(self, request: Request) -> Answer:
        self.asked.append(request)
        if self.errors:
            raise self.errors.pop(0)
        return await exchange.answer(self.app, request)

    async def metrics(self) -> Mapping[str, bytes]:
        return {}


@dataclass(slots=True)
class Cluster:
    """A front over two pools, and one server with the same models to compare with."""

    pools: dict[str, Here]
    app: ASGIApp
    whole: ASGIApp
    metrics: Metrics

    def __call__(
        self, both: bool, use: Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]
    ) -> Any:
        """Let a client use the front; or both, which must answer the same."""

        async def run(app: ASGIApp) -> Any:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await use(client)

        answered = asyncio.run(run(self.app))
        if both:
            assert asyncio.run(run(self.whole)) == answered
        return answered


@pytest.fixture
def cluster(tiny_artifacts: Path) -> Cluster:
    return made(tiny_artifacts)


def made(artifacts: Path, keys: Keys | None = None) -> Cluster:
    """A cluster of the tiny models."""
    settings = Settings(access_log=False)
    models = {n: load_model(ModelSpec(n), artifacts / n, "cpu")[0] for n in NAMES[:2]}
    pools = {}
    for name, model in models.items():
        registry = ModelRegistry([model], [ALIAS] if name == ALIAS.model else [], NAMES)
        pools[name] = Here(create_app(settings, registry, lanes=1))
    directory = Directory(
        NAMES,
        NAMES[:2],
        dict.fromkeys(NAMES, "owner"),
        {**pools, "query-2": pools["matryoshka"]},
        [],
    )
    metrics = Metrics()
    return Cluster(
        pools,
        front.create_app(settings, directory, keys or Keys(None), metrics),
        create_app(settings, ModelRegistry(models.values(), [ALIAS]), lanes=1),
        metrics,
    )


BODIES: Mapping[str, Any] = {
    "first model": {"model": "tiny", "input": ["a b", "c"]},
    "second model": {"model": "matryoshka", "input": "b", "dimensions": 2},
    "alias": {"model": "query-2", "input": "b"},
    "no such model": {"model": "x", "input": "a"},
    "no model named": {"input": "a"},
    "two errors": {"model": "x", "input": []},
    "model of another type": {"model": 1, "input": "a"},
    "no object": [1],
}


class TestFront:
    """A client cannot tell it from one server with all the models."""

    @pytest.mark.parametrize("case", BODIES)
    def test_embeddings(self, cluster: Cluster, case: str) -> None:
        """The same answers and errors, with the names of all models."""

        async def ask(client: httpx.AsyncClient) -> tuple[int, bytes]:
            answer = await client.post("/v1/embeddings", json=BODIES[case])
            return answer.status_code, answer.content

        cluster(True, ask)

    @pytest.mark.parametrize("content", [b"{", b"\xff", b""], ids=["cut", "no UTF-8", "empty"])
    def test_no_json(self, cluster: Cluster, content: bytes) -> None:
        """A body that is no JSON is refused with the same words."""

        async def ask(client: httpx.AsyncClient) -> tuple[int, bytes]:
            head = {"content-type": "application/json"}
            answer = await client.post("/v1/embeddings", content=content, headers=head)
            return answer.status_code, answer.content

        assert cluster(True, ask)[0] == 400

    @pytest.mark.parametrize(
        "path",
        [
            *("/v1/models", "/v1/models/tiny", "/v1/models/query-2", "/v1/models/none"),
            *("/livez", "/readyz", "/health", "/", "/docs", "/openapi.json", "/nowhere"),
        ],
    )
    def test_get(self, cluster: Cluster, path: str) -> None:
        """Every other route, too; only the time at which a model was made is each process's own."""

        async def ask(client: httpx.AsyncClient) -> tuple[int, object]:
            answer = await client.get(path)
            if answer.headers["content-type"] != "application/json":
                return answer.status_code, answer.content
            found = answer.json()
            found.pop("created", None)
            return answer.status_code, found

        cluster(True, ask)

    def test_openai_models(self, cluster: Cluster) -> None:
        """As the plain server lists them."""

        async def ask(client: httpx.AsyncClient) -> list[tuple[object, ...]]:
            data = (await client.get("/openai/v1/models")).json()["data"]
            return [(m["id"], m["object"], m["owned_by"]) for m in data]

        assert cluster(True, ask)[0] == ("tiny", "model", "owner")

    def test_needs_no_onnxruntime(self) -> None:
        """The front of a cluster loads no model, and none of the libraries that do."""
        code = "import sys, embedserve.cluster.front; print(*sys.modules)"
        loaded = {name.partition(".")[0] for name in run_python(code).split()}
        assert "starlette" in loaded
        assert loaded & {"onnxruntime", "tokenizers"} == set()

    def test_route_prefix(self, cluster: Cluster) -> None:
        """An application below a prefix answers as one at the root."""

        root = cluster.app

        async def below(scope: Scope, receive: Receive, send: Send) -> None:
            await root({**scope, "root_path": "/app1"}, receive, send)

        cluster.app = below

        async def ask(client: httpx.AsyncClient) -> tuple[int, ...]:
            paths = ("/app1/v1/models", "/app1/livez", "/app1", "/app1/nowhere")
            return tuple([(await client.get(path)).status_code for path in paths])

        assert cluster(False, ask) == (200, 200, 200, 404)

    def test_keys(self, tiny_artifacts: Path) -> None:
        """The front asks for a key before anything else, and tells it to no replica."""
        cluster = made(tiny_artifacts, Keys(None, ["sk-0123456789"]))

        async def ask(client: httpx.AsyncClient) -> tuple[int, int]:
            body = {"model": "tiny", "input": "a"}
            without = await client.post("/v1/embeddings", json=body)
            head = {"authorization": "Bearer sk-0123456789"}
            return without.status_code, (
                await client.post("/v1/embeddings", json=body, headers=head)
            ).status_code

        assert cluster(False, ask) == (401, 200)
        (request,) = cluster.pools["tiny"].asked
        assert b"authorization" not in dict(request.headers)

    def test_one_request_id(self, cluster: Cluster) -> None:
        """The replica's own does not stand beside the front's."""

        async def ask(client: httpx.AsyncClient) -> list[str]:
            body, head = {"model": "tiny", "input": "a"}, {"x-request-id": "abc"}
            answer = await client.post("/v1/embeddings", json=body, headers=head)
            return answer.headers.get_list("x-request-id")

        assert cluster(False, ask) == ["abc"]

    @pytest.mark.parametrize(
        ("errors", "status", "asked"),
        [
            ([LostError()], 200, 2),
            ([LostError(), LostError()], 503, 2),
            ([RequestError("not_ready", "none", headers={"Retry-After": "5"})], 503, 1),
        ],
        ids=["one lost", "two lost", "none there"],
    )
    def test_lost_replica(
        self, cluster: Cluster, errors: list[Exception], status: int, asked: int
    ) -> None:
        """Another replica is asked once; a request that ends whoever has it ends two, not all."""
        cluster.pools["tiny"].errors = errors

        async def ask(client: httpx.AsyncClient) -> httpx.Response:
            return await client.post("/v1/embeddings", json={"model": "tiny", "input": "a"})

        answer = cluster(False, ask)
        assert answer.status_code == status
        assert len(cluster.pools["tiny"].asked) == asked
        assert status == 200 or answer.headers["retry-after"]
        counted = cluster.metrics.nameless["not_ready"]._value.get()
        assert counted == (status == 503), "a replica counts what it answers, the front the rest"

    def test_refused_body(self, cluster: Cluster) -> None:
        """What the front refuses it counts, and no replica is asked."""

        async def ask(client: httpx.AsyncClient) -> int:
            return (await client.post("/v1/embeddings", content=b"x")).status_code

        assert cluster(True, ask) == 415
        assert cluster.metrics.nameless["unsupported_media_type"]._value.get() == 1
        assert not any(pool.asked for pool in cluster.pools.values())

    def test_cancelled(self, cluster: Cluster) -> None:
        """Ray cancels a request whose client has left: nobody hears of a server that ends."""

        async def hang(scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        cluster.pools["tiny"].app = hang

        async def ask(client: httpx.AsyncClient) -> int:
            path = "/v1/models/tiny"
            request = asyncio.ensure_future(client.get(path))
            while not cluster.pools["tiny"].asked:  # noqa: ASYNC110
                await asyncio.sleep(0)
            request.cancel()
            return (await request).status_code

        assert cluster(False, ask) == 499

    def test_late_replica(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        """504 when a replica does not even say that it is late, and the request is cancelled."""
        monkeypatch.setattr(front, "LATE_SECONDS", 0.0)
        cancelled = []

        async def hang(scope: Scope, receive: Receive, send: Send) -> None:
            assert (await receive())["type"] == "http.request"
            cancelled.append((await receive())["type"])

        cluster.pools["tiny"].app = hang

        async def ask(client: httpx.AsyncClient) -> httpx.Response:
            head = {"x-request-timeout": "0.01"}
            body = {"model": "tiny", "input": "a"}
            return await client.post("/v1/embeddings", json=body, headers=head)

        answer = cluster(False, ask)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert cancelled == ["http.disconnect"]

    def test_not_ready(self, cluster: Cluster) -> None:
        """/readyz names the model that has no replica."""
        cluster.pools["matryoshka"].errors = [LostError()]

        async def ask(client: httpx.AsyncClient) -> httpx.Response:
            return await client.get("/readyz")

        answer = cluster(False, ask)
        assert answer.status_code == 503
        assert "matryoshka" in answer.json()["error"]["message"]


async def test_cancelled_is_a_client_that_left(tiny_artifacts: Path) -> None:
    """A cancelled request ends in the engine as one whose client has closed its connection."""
    metrics = Metrics()
    model = load_model(ModelSpec("tiny"), tiny_artifacts / "tiny", "cpu")[0]
    registry = ModelRegistry([model])
    app = create_app(Settings(access_log=False), registry, lanes=1, metrics=metrics)
    body = json.dumps({"input": ["a b c d"] * 2000, "truncate": "end"}).encode()

    task = asyncio.ensure_future(
        exchange.answer(app, Request("POST", "/v1/embeddings", JSON, body))
    )
    while not metrics.of("tiny").requests_in_flight._value.get():  # noqa: ASYNC110  # a gauge has no event
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert metrics.of("tiny").requests["cancelled"]._value.get() == 1
    assert metrics.of("tiny").requests_in_flight._value.get() == 0


class TestProxy:
    """What Ray's proxy says itself is an answer of this service."""

    @staticmethod
    def answer(app: ASGIApp, path: str = "/v1/models", **headers: str) -> httpx.Response:
        """What a client gets of an application behind the proxy."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(proxy.Translated(app))
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.get(path, headers=headers)

        return asyncio.run(ask())

    @pytest.mark.parametrize("status", sorted(proxy.ERRORS))
    def test_text(self, status: int) -> None:
        """Text of Ray's becomes the error body, with the status of its code."""
        answer = self.answer(_plain(status, b"text/plain; charset=utf-8"))
        error = answer.json()["error"]
        assert error["code"] == proxy.ERRORS[status][0]
        assert answer.headers["x-request-id"].startswith("req_")
        assert ("retry-after-ms" in answer.headers) is (status in (429, 503))

    def test_nothing(self) -> None:
        """Where Ray gives no answer at all, because the replica died: 503, and when to retry."""

        async def dead(scope: Scope, receive: Receive, send: Send) -> None:
            return

        answer = self.answer(dead, **{"x-request-id": "abc"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert answer.headers["retry-after-ms"] == "1000"
        assert answer.headers["x-request-id"] == "abc"

    @pytest.mark.parametrize(
        ("status", "media_type"),
        [
            (200, b"text/plain; version=0.0.4"),
            (503, b"application/json"),
            (404, b"application/json"),
        ],
        ids=["metrics", "503", "404"],
    )
    def test_the_application(self, status: int, media_type: bytes) -> None:
        """The application's own answers pass."""
        answer = self.answer(_plain(status, media_type))
        assert (answer.status_code, answer.content) == (status, b"text")

    def test_of_ray(self) -> None:
        """Ray's health and routes stay Ray's."""
        assert self.answer(_plain(503, b"text/plain"), "/-/healthz").text == "text"

    @pytest.mark.parametrize("given", ["abc-1", "no spaces", None])
    def test_request_id(self, given: str | None) -> None:
        """The application gets the id that the client gets, once: a well-formed one is kept."""
        seen: list[bytes] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            seen.extend(v for k, v in scope["headers"] if k == b"x-request-id")
            head = [(b"x-request-id", seen[0]), (b"X-Request-ID", seen[0])]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": b""})

        answer = self.answer(app, **({"x-request-id": given} if given else {}))
        (found,) = answer.headers.get_list("x-request-id")
        assert [found.encode()] == seen
        assert found == given if given == "abc-1" else found.startswith("req_")

    def test_middlewares(self) -> None:
        """What Ray's proxy calls at its start."""
        (middleware,) = proxy.middlewares()
        assert middleware.cls is proxy.Translated  # type: ignore[comparison-overlap]


def test_a_gauge_that_nobody_sets_is_not_there() -> None:
    """A front has no lanes: 0 would call it not ready, not alive and out of memory."""
    metrics = Metrics()
    front.Front(Settings(), Directory([], [], {}, {}, []), metrics)
    text = metrics.render().decode()
    assert "\nembedserve_max_pending_bytes 2.56e+08\n" in text
    for name in ("ready", "live", "lanes", "memory_limit_bytes", "max_wait_seconds"):
        assert f"embedserve_{name}" not in text


def test_merged_metrics() -> None:
    """Each process's series under its name; one head for each metric."""
    scrapes = {}
    for name, count in (("tiny#a", 1), ("tiny#b", 2)):
        metrics = Metrics()
        metrics.of("tiny").texts.inc(count)
        scrapes[name] = metrics.render()
    text = merged_metrics.merge(scrapes, front.LABEL).decode()
    assert 'embedserve_texts_total{model="tiny",replica="tiny#a"} 1.0\n' in text
    assert 'embedserve_texts_total{model="tiny",replica="tiny#b"} 2.0\n' in text
    assert text.count("# TYPE embedserve_texts_total counter\n") == 1
    assert text.count("\n") == 2 * scrapes["tiny#a"].count(b"\n") - text.count("\n# ") - 1


@dataclass(slots=True)
class Scaled:
    """What Ray tells a policy."""

    total_num_requests: float
    aggregated_metrics: Mapping[str, Mapping[Any, float]]
    config: Any = None


class TestScaling:
    """How many replicas are wanted."""

    @pytest.mark.parametrize(
        ("requests", "waits", "wanted"),
        [
            (0, {}, 0),
            (64, {}, 2),
            (0, {"a": 0.0, "b": 0.0}, 0),
            (2, {"a": 2.0}, 4),
            (2, {"a": 1.0, "b": 1.5}, 5),
            (320, {"a": 0.1}, 10),
        ],
        ids=["idle", "not reported", "no wait", "few large", "each waits", "many small"],
    )
    def test_wanted(self, requests: float, waits: dict[str, float], wanted: float) -> None:
        """As many as bring the wait to the target, or the requests of each, whichever is more."""

        class Config:
            @staticmethod
            def get_target_ongoing_requests() -> float:
                return 32.0

        metrics = {"predicted_wait": waits} if waits else {}
        context = Scaled(requests, metrics, Config)
        assert QueueWait(target_wait=0.5)(context) == (wanted, {})

    @pytest.mark.parametrize("seconds", [0, -1])
    def test_no_target(self, seconds: float) -> None:
        """Refused when the application is deployed, not when it is scaled."""
        with pytest.raises(ValueError, match="must be above 0 seconds"):
            QueueWait(target_wait=seconds)


def _plain(status: int, media_type: bytes) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        head: Message = {"type": "http.response.start", "status": status}
        await send({**head, "headers": [(b"content-type", media_type)]})
        await send({"type": "http.response.body", "body": b"text"})

    return app
