"""The service over a cluster: placement, scaling, and processes that are killed."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from embedserve import artifact
from embedserve.diagnose.sample_texts import texts
from tests import conftest, tiny
from tests.conftest import MINILM, ROOT
from tests.ray.conftest import Application, Start
from tests.ray.serving import Serving, kill, until
from tests.ray.traffic import Traffic, traffic

ARGS = {
    "models": str(ROOT / "models.toml"),
    "artifacts": str(ROOT / "artifacts"),
    "model": [MINILM],
}
OCTETS = {"accept": "application/octet-stream"}
# A second of one core.
LONG = [f"{i} " + "word " * 250 for i in range(32)]
# Eight clients, no two with an equal text: the engine would compute it once.
BODIES = [{"model": MINILM, "input": LONG[4 * i : 4 * i + 4]} for i in range(8)]


def model(**options: Any) -> dict[str, Any]:
    """Options of the real model's deployment."""
    return {"name": MINILM, **options}


def one_core(**options: Any) -> dict[str, Any]:
    return model(ray_actor_options={"num_cpus": 1}, **options)


def get(url: str, path: str) -> httpx.Response:
    """GET on a connection of its own."""
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        return client.get(path)


def values(url: str, name: str, **labels: str) -> dict[str, float]:
    """A metric with these labels, by replica."""
    found = {}
    for line in get(url, "/metrics").text.splitlines():
        if match := re.fullmatch(rf"embedserve_{name}{{(.*)}} (\S+)", line):
            of_line = dict(re.findall(r'(\w+)="([^"]*)"', match[1]))
            if labels.items() <= of_line.items():
                found[of_line["replica"]] = float(match[2])
    return found


def in_flight(url: str) -> float:
    """Requests in the engines of all replicas."""
    return sum(values(url, "requests_in_flight", model=MINILM).values())


def lost(ray_serve: Serving) -> int:
    """How often a front has asked another replica so far."""
    return ray_serve.log().count("a replica was lost while it handled a request")


class TestVectors:
    """The bits of `embedserve serve`, whichever node answers."""

    @pytest.fixture(scope="class")
    def spread(self, ray_serve: Serving) -> Iterator[str]:
        """A replica on each node."""
        url = ray_serve.deploy("spread", ARGS, one_core(num_replicas=2, max_replicas_per_node=1))
        yield url
        ray_serve.delete("spread")

    @pytest.mark.parametrize("size", [1, 7, 64])
    def test_equal(self, spread: str, plain: conftest.Server, size: int) -> None:
        """As octets and as JSON, alone and in company."""
        bodies = [{"input": chunk} for chunk in _chunks(list(texts(128)), size)]
        for headers in ({}, OCTETS):

            def ask(url: str, headers: dict[str, str] = headers) -> list[bytes]:
                with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:

                    def one(body: dict[str, Any]) -> bytes:
                        answer = client.post("/v1/embeddings", json=body, headers=headers)
                        assert answer.status_code == 200, answer.text
                        return answer.content

                    with ThreadPoolExecutor(8) as pool:
                        return list(pool.map(one, bodies))

            assert ask(spread) == ask(plain.url)

    def test_every_node_answered(self, spread: str, ray_serve: Serving) -> None:
        """The requests above went to replicas on both nodes."""
        replicas = ray_serve.replicas("spread", MINILM)
        assert len({replica["node_id"] for replica in replicas}) == 2
        computed = values(spread, "texts_total", model=MINILM)
        assert len(computed) == 2
        assert all(count > 0 for count in computed.values())


def test_models_are_placed_independently(
    ray_serve: Serving, tiny_artifacts: Path, server: Application
) -> None:
    """Each model on the node and in the number that its deployment asks for, behind one address."""
    args = ray_serve.applications[server.name]["args"]
    url = ray_serve.deploy(
        "placed",
        args,
        {"name": "tiny", "ray_actor_options": {"num_cpus": 1, "resources": {"left": 1}}},
        {
            "name": "matryoshka",
            "num_replicas": 2,
            "ray_actor_options": {"num_cpus": 1, "resources": {"right": 1}},
        },
    )
    left = ray_serve.replicas("placed", "tiny")
    right = ray_serve.replicas("placed", "matryoshka")
    assert (len(left), len(right)) == (1, 2)
    assert len({replica["node_id"] for replica in right}) == 1
    assert {replica["node_id"] for replica in left} != {replica["node_id"] for replica in right}
    assert get(url, "/v1/models").json()["data"] == ["tiny", "matryoshka"]
    for name in ("tiny", "matryoshka"):
        answer = httpx.post(
            f"{url}/v1/embeddings", json={"model": name, "input": "a"}, trust_env=False
        )
        assert answer.json()["model"] == name
        assert answer.json()["data"][0]["embedding"] == pytest.approx(tiny.expected("a"), abs=1e-6)


def test_lanes_are_the_cores_asked_for(ray_serve: Serving, server: Application) -> None:
    """num_cpus is the number of inference threads, whatever the machine has."""
    args = ray_serve.applications[server.name]["args"]
    options = [{"name": "tiny", "ray_actor_options": {"num_cpus": 3}}]
    ray_serve.deploy("cores", {**args, "model": ["tiny"]}, *options)
    assert "model tiny: a replica with 3 lanes" in ray_serve.log()


class TestKilled:
    """Processes end while clients ask, who retry as OpenAI's do: no answer is lost."""

    def test_replica(self, ray_serve: Serving, capsys: pytest.CaptureFixture[str]) -> None:
        """The front asks another replica: its clients need not even retry."""
        url = ray_serve.deploy("killed", ARGS, one_core(num_replicas=2))
        with traffic(url, BODIES) as clients:
            for _ in range(3):
                victim = _all_there(ray_serve, "killed", MINILM, 2)[0]
                kill(victim["pid"])
                clients.wait_for(16)
        _say(capsys, "3 replicas killed", clients)
        assert clients.failures == []
        assert clients.retries == []
        assert _same_every_time(clients)
        assert lost(ray_serve) > 0, "no request was in a replica that was killed"

    def test_front(self, ray_serve: Serving, capsys: pytest.CaptureFixture[str]) -> None:
        """What a front had is answered with 503 and when to come again."""
        front = {"name": "front", "num_replicas": 2}
        url = ray_serve.deploy("fronts", ARGS, one_core(), front)
        with traffic(url, BODIES) as clients:
            for _ in range(3):
                victim = _all_there(ray_serve, "fronts", "front", 2)[0]
                kill(victim["pid"])
                clients.wait_for(16)
        _say(capsys, "3 fronts killed", clients)
        assert clients.failures == []
        assert _same_every_time(clients)

    def test_answer_of_a_killed_front(self, ray_serve: Serving) -> None:
        """It is an error of this service: JSON, the request's id, 503."""
        url = ray_serve.deploy("alone", ARGS, one_core())
        (front,) = ray_serve.replicas("alone", "front")
        with ThreadPoolExecutor(1) as pool:
            headers = {"x-request-id": "lost-1"}
            asked = pool.submit(
                httpx.post,
                f"{url}/v1/embeddings",
                json={"input": LONG},
                headers=headers,
                trust_env=False,
                timeout=60,
            )
            until(lambda: in_flight(url) > 0)
            kill(front["pid"])
            answer = asked.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert answer.headers["x-request-id"] == "lost-1"
        assert answer.headers["retry-after-ms"] == "1000"


class TestScaling:
    """Replicas come and go, and no request is lost by it."""

    @pytest.mark.parametrize("deployment", [MINILM, "front"])
    def test_drain(
        self, ray_serve: Serving, capsys: pytest.CaptureFixture[str], deployment: str
    ) -> None:
        """A replica that is taken away answers what it has: no request is sent twice."""
        others = [one_core()] if deployment == "front" else []

        def scale(count: int) -> str:
            options = {"ray_actor_options": {"num_cpus": 1}, "num_replicas": count}
            return ray_serve.deploy("drained", ARGS, {"name": deployment, **options}, *others)

        before = lost(ray_serve)
        with traffic(scale(3), BODIES) as clients:
            for count in (1, 3, 1):
                scale(count)
                _all_there(ray_serve, "drained", deployment, count)
                clients.wait_for(16)
        _say(capsys, f"3 -> 1 -> 3 -> 1 replicas of {deployment}", clients)
        assert clients.failures == []
        assert clients.retries == []
        assert lost(ray_serve) == before
        assert _same_every_time(clients)

    def test_upgrade(self, ray_serve: Serving, capsys: pytest.CaptureFixture[str]) -> None:
        """Other args: every process is replaced in turn, under traffic."""
        deployments = [one_core(), {"name": "front", "num_replicas": 2}]
        url = ray_serve.deploy("upgraded", ARGS, *deployments)
        old, before = _pids(ray_serve, "upgraded"), lost(ray_serve)
        with traffic(url, BODIES) as clients:
            ray_serve.deploy("upgraded", {**ARGS, "settings": {"max_wait": 20.0}}, *deployments)
            until(lambda: not old & _pids(ray_serve, "upgraded"))
            clients.wait_for(16)
        _say(capsys, "1 + 2 replicas upgraded", clients)
        assert clients.failures == []
        assert clients.retries == []
        assert lost(ray_serve) == before
        assert _same_every_time(clients)

    @pytest.mark.parametrize("signal", ["requests", "wait"])
    def test_autoscaling(self, ray_serve: Serving, signal: str) -> None:
        """Under load there are more, after it as few as before."""
        policy = {
            "policy_function": "embedserve.cluster.scaling:QueueWait",
            "policy_kwargs": {"target_wait": 0.2 if signal == "wait" else 1000.0},
        }
        autoscaling = {
            "min_replicas": 1,
            "max_replicas": 3,
            "target_ongoing_requests": 1000 if signal == "wait" else 2,
            "metrics_interval_s": 0.5,
            "look_back_period_s": 2,
            "upscale_delay_s": 0.5,
            "downscale_delay_s": 2,
            "policy": policy,
        }
        url = ray_serve.deploy("scaled", ARGS, one_core(autoscaling_config=autoscaling))
        assert len(ray_serve.replicas("scaled", MINILM)) == 1
        with traffic(url, BODIES) as clients:
            until(lambda: len(ray_serve.replicas("scaled", MINILM)) >= 2)
            clients.wait_for(8)
        _all_there(ray_serve, "scaled", MINILM, 1)
        assert clients.failures == []
        assert clients.retries == []


class TestArtifacts:
    """How they reach a node, and that each proves its own."""

    def test_working_directory(self, ray_serve: Serving, tmp_path: Path) -> None:
        """An archive of models.toml and artifacts, which Ray copies to the nodes."""
        tiny.write(tmp_path / "files" / "artifacts" / "tiny")
        tiny.models_toml(tmp_path / "files" / "models.toml", {"tiny": ""})
        archive = shutil.make_archive(str(tmp_path / "files"), "zip", tmp_path / "files")
        url = ray_serve.deploy("shipped", {}, runtime_env={"working_dir": Path(archive).as_uri()})
        answer = httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, trust_env=False)
        assert answer.json()["data"][0]["embedding"] == pytest.approx(tiny.expected("a"), abs=1e-6)

    def test_altered(self, ray_serve: Serving, tmp_path: Path) -> None:
        """A replica does not start on an artifact that is not what its manifest says."""
        tiny.write(tmp_path / "artifacts" / "tiny")
        models = tiny.models_toml(tmp_path / "models.toml", {"tiny": ""})
        graph = tmp_path / "artifacts" / "tiny" / artifact.GRAPH
        graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
        args = {"models": str(models), "artifacts": str(tmp_path / "artifacts")}
        with pytest.raises(AssertionError, match=r"model\.onnx: has sha256"):
            ray_serve.deploy("altered", args)

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            ({"model": ["x"]}, "not in models.toml"),
            ({"modes": "x"}, "modes"),
            ({"settings": {"max_wait": "x"}}, "max_wait"),
        ],
        ids=["model", "key", "setting"],
    )
    def test_wrong_args(
        self, ray_serve: Serving, server: Application, args: dict[str, Any], said: str
    ) -> None:
        """What cannot be meant is said by `serve status`, and nothing is deployed."""
        good = ray_serve.applications[server.name]["args"]
        with pytest.raises(AssertionError, match=said):
            ray_serve.deploy("wrong", {**good, **args})


class TestKeys:
    """Keys are a file of the front's."""

    def test_reload(self, ray_serve: Serving, server: Application, tmp_path: Path) -> None:
        """A changed user_config lets the fronts read the file again, and restarts nobody."""
        path = tmp_path / "keys"
        path.write_text("sk-first-0123456789\n", encoding="utf-8")
        args = {**ray_serve.applications[server.name]["args"], "model": ["tiny"]}
        args["settings"] = {"api_keys_file": str(path)}
        url = ray_serve.deploy("keyed", args, {"name": "front", "user_config": {"keys": 1}})
        before = ray_serve.replicas("keyed", "front")

        def status(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            return httpx.get(f"{url}/v1/models", headers=headers, trust_env=False).status_code

        assert status("sk-first-0123456789") == 200
        path.write_text("sk-second-987654321\n", encoding="utf-8")
        ray_serve.deploy("keyed", args, {"name": "front", "user_config": {"keys": 2}})
        until(lambda: status("sk-second-987654321") == 200)
        assert status("sk-first-0123456789") == 401
        assert ray_serve.replicas("keyed", "front") == before

    def test_environment(self, ray_serve: Serving, server: Application) -> None:
        """Keys in an environment, which Ray shows to all, are refused, and not shown."""
        args = ray_serve.applications[server.name]["args"]
        environment = {"env_vars": {"EMBEDSERVE_API_KEYS": "sk-shown-0123456789"}}
        with pytest.raises(AssertionError, match="api_keys_file") as refused:
            ray_serve.deploy("shown", args, runtime_env=environment)
        assert "sk-shown" not in str(refused.value)


class TestClients:
    """What clients do on their way."""

    def test_that_leave(self, ray_serve: Serving) -> None:
        """A request whose client has closed its connection leaves the engine's queue."""
        url = ray_serve.deploy("left", ARGS, one_core())
        body = json.dumps({"input": [f"{i} {text}" for i in range(8) for text in LONG]}).encode()
        address = httpx.URL(url)
        head = (
            f"POST {address.path}/v1/embeddings HTTP/1.1\r\nhost: x\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection((address.host, address.port or 0)) as client:
            client.sendall(head.encode() + body)
            until(lambda: in_flight(url) > 0)
        cancelled = {"model": MINILM, "outcome": "cancelled"}
        until(lambda: sum(values(url, "requests_total", **cancelled).values()) > 0)
        assert in_flight(url) == 0
        assert sum(values(url, "texts_total", model=MINILM).values()) == 0

    def test_log_lines(self, ray_serve: Serving, server: Application) -> None:
        """One line a request, in the front's standard error, without its input."""
        headers = {"x-request-id": "logged-1"}
        with server.client() as client:
            body = {"model": "tiny", "input": ["d d d", "b"]}
            client.post("/v1/embeddings?secret=1", json=body, headers=headers)

        def lines() -> list[str]:
            return [line for line in ray_serve.log().splitlines() if "=logged-1" in line]

        until(lambda: bool(lines()))
        (line,) = lines()
        for part in ("status=200", "path='/v1/embeddings'", "model=tiny", "texts=2", "tokens=8"):
            assert part in line
        assert "d d d" not in ray_serve.log()
        assert "secret" not in line

    def test_metrics(self, server: Application, ray_serve: Serving) -> None:
        """Each process says of itself only what it has: the rules of deploy/prometheus hold."""
        path = httpx.URL(server.url).path
        text = get(ray_serve.url, f"{path}/metrics").text
        ready = dict(re.findall(r'embedserve_ready{replica="(.*)"} (.*)', text))
        assert {name.partition("#")[0] for name in ready} == {"tiny", "matryoshka"}
        assert set(ready.values()) == {"1.0"}
        assert 'embedserve_pending_bytes{replica="front#' in text

    def test_readiness(self, server: Application, ray_serve: Serving) -> None:
        """/readyz asks a replica of every model; Ray's own health is beside it."""
        with server.client() as client:
            ready = client.get("/readyz")
        assert ready.json() == {"status": "ok", "models": ["tiny", "matryoshka"]}
        assert get(ray_serve.url, "/-/healthz").text == "success"

    def test_no_such_application(self, ray_serve: Serving, start: Start) -> None:
        """Ray's own 404 is this service's."""
        answer = get(ray_serve.url, "/nothing-here")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
        assert answer.headers["x-request-id"].startswith("req_")


def _all_there(ray_serve: Serving, name: str, deployment: str, count: int) -> list[dict[str, Any]]:
    """The running replicas, once there are `count`: Ray finds out later who is dead."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = ray_serve.replicas(name, deployment)
        return len(found) == count and all(Path(f"/proc/{r['pid']}").exists() for r in found)

    until(there)
    return found


def _pids(ray_serve: Serving, name: str) -> set[int]:
    return {r["pid"] for d in (MINILM, "front") for r in ray_serve.replicas(name, d)}


def _same_every_time(clients: Traffic) -> bool:
    """Whether each request got one answer, whoever gave it."""
    return [len(found) for found in clients.contents.values()] == [1] * len(BODIES)


def _chunks(rows: list[str], size: int) -> list[list[str]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _say(capsys: pytest.CaptureFixture[str], what: str, clients: Traffic) -> None:
    with capsys.disabled():
        retries = sorted(set(clients.retries))
        print(f"\n{what}: {clients.answered} answers, {len(clients.retries)} retries {retries}")
