"""The real process: what a client gets, what an operator is told, how it ends."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from embedserve.errors import ERRORS, Exit
from tests import tiny
from tests.conftest import MINILM, ROOT, SERVE, Server, Start, environment, run

JSON = {"content-type": "application/json"}


def vectors(answer: httpx.Response) -> np.ndarray:
    """The answer's vectors (n, dim) float32."""
    assert answer.status_code == 200, answer.text
    return np.array([d["embedding"] for d in answer.json()["data"]], np.float32)


class TestAnswers:
    """The shape of the service this replaces, on both surfaces."""

    def test_embeddings(self, server: Server) -> None:
        """Vectors come in order, with what the replaced service answered and OpenAI's usage."""
        answer = server.embed(model="tiny", input=["a b", "c"])
        body = answer.json()
        assert body["object"] == "list"
        assert body["model"] == "tiny"
        assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
        for i, text in enumerate(["a b", "c"]):
            row = body["data"][i]
            assert (row["object"], row["index"], row["dims"]) == ("embedding", i, tiny.HIDDEN)
            np.testing.assert_allclose(row["embedding"], tiny.expected(text), atol=1e-7)

    def test_one_string(self, server: Server) -> None:
        """A string is a list of one."""
        one = vectors(server.embed(model="tiny", input="a b"))
        np.testing.assert_array_equal(one, vectors(server.embed(model="tiny", input=["a b"])))

    def test_base64(self, server: Server) -> None:
        """base64 holds the same float32 as the JSON numbers."""
        answer = server.embed(model="tiny", input=["a b", "c"], encoding_format="base64").json()
        raw = [np.frombuffer(base64.b64decode(d["embedding"]), "<f4") for d in answer["data"]]
        np.testing.assert_array_equal(raw, vectors(server.embed(model="tiny", input=["a b", "c"])))

    def test_headers(self, server: Server) -> None:
        """Each answer says which vectors these are, and where the time went."""
        answer = server.embed(model="tiny", input="a")
        assert len(answer.headers["x-embedding-fingerprint"]) == 64
        assert answer.headers["server-timing"].startswith("tokenize;dur=")
        assert answer.headers["x-request-id"].startswith("req_")

    def test_no_timing(self, start: Start, tiny_artifacts: Path) -> None:
        """With cache_mb the times tell whether somebody has sent a text: they can be left out."""
        models = tiny_artifacts.parent / "models.toml"
        silent = start(models, tiny_artifacts, "--cache-mb", "1", "--no-server-timing")
        for _ in range(2):
            answer = silent.embed(model="tiny", input="a")
            assert answer.status_code == 200
            assert "server-timing" not in answer.headers

    def test_request_id_is_echoed(self, server: Server) -> None:
        """A well-formed id comes back; another is replaced."""
        with server.client() as client:

            def ask(given: str) -> httpx.Response:
                return client.get("/livez", headers={"x-request-id": given})

            assert ask("abc-1").headers["x-request-id"] == "abc-1"
            assert ask("no spaces").headers["x-request-id"].startswith("req_")

    def test_truncation_is_said(self, server: Server) -> None:
        """A cut text is named in a header, in usage and in a metric."""
        long = " ".join("abcd" * 3)
        answer = server.embed(model="tiny", input=["a", long])
        assert answer.json()["usage"] == {
            "prompt_tokens": 3 + 8,
            "total_tokens": 3 + 8,
            "truncated": [1],
        }
        assert answer.headers["x-truncated-inputs"] == "1"
        cut = " ".join("abcdab")  # 6 words and 2 special tokens are the limit of 8
        np.testing.assert_allclose(vectors(answer)[1], tiny.expected(cut), atol=1e-7)

    def test_truncate_start_and_error(self, server: Server) -> None:
        """A client chooses which end is cut, or that nothing is."""
        long = "d " + " ".join("abcabc")
        row = vectors(server.embed(model="tiny", input=long, truncate="start"))[0]
        np.testing.assert_allclose(row, tiny.expected(" ".join("abcabc")), atol=1e-7)
        refused = server.embed(model="tiny", input=["a", long], truncate="error").json()
        assert refused["error"]["code"] == "context_length_exceeded"
        assert refused["error"]["param"] == "input[1]"

    def test_prompts(self, server: Server) -> None:
        """A prompt by name or by role is put before each text and counted."""
        plain = server.embed(model="matryoshka", input="a b")
        for asked in ({"input_type": "query"}, {"prompt_name": "query"}):
            answer = server.embed(model="matryoshka", input="b", **asked)
            np.testing.assert_array_equal(vectors(answer), vectors(plain))
            assert answer.json()["usage"] == plain.json()["usage"]

    def test_dimensions(self, server: Server) -> None:
        """A cut vector is the start of the whole one, scaled to length 1."""
        whole = tiny.expected("a b")[:3]
        row = vectors(server.embed(model="matryoshka", input="a b", dimensions=3))[0]
        np.testing.assert_allclose(row, whole / np.linalg.norm(whole), atol=1e-6)

    def test_token_ids_where_allowed(self, server: Server) -> None:
        """The model's own ids give the text's vector."""
        ids = [tiny.ID[w] for w in ("[CLS]", "a", "b", "[SEP]")]
        by_ids = vectors(server.embed(model="matryoshka", input=ids))
        np.testing.assert_array_equal(
            by_ids, vectors(server.embed(model="matryoshka", input="a b"))
        )

    def test_models(self, server: Server) -> None:
        """/v1 lists names as the replaced service did; /openai/v1 lists objects."""
        with server.client() as client:
            listed = client.get("/v1/models").json()
            assert listed == {"object": "list", "data": ["tiny", "matryoshka"]}
            objects = client.get("/openai/v1/models").json()
            assert [m["id"] for m in objects["data"]] == listed["data"]
            assert {m["object"] for m in objects["data"]} == {"model"}
            one = client.get("/v1/models/matryoshka").json()
        assert one["dimension"] == tiny.HIDDEN
        assert one["prompts"] == {"query": "a ", "document": "b "}
        assert one["max_tokens"] == 8

    def test_probes(self, server: Server) -> None:
        """Probes answer 200 once models are proven."""
        with server.client() as client:
            for path in ("/livez", "/readyz", "/health"):
                assert client.get(path).status_code == 200

    def test_fingerprint_pin(self, server: Server) -> None:
        """A client that expects other vectors is refused, one that expects these is not."""
        own = server.embed(model="tiny", input="a").headers["x-embedding-fingerprint"]
        with server.client() as client:

            def ask(value: str) -> httpx.Response:
                return client.post(
                    "/v1/embeddings",
                    json={"model": "tiny", "input": "a"},
                    headers={"x-expect-fingerprint": value},
                )

            assert ask(own).status_code == 200
            assert ask("0" * 64).json()["error"]["code"] == "fingerprint_mismatch"


BAD_REQUESTS: dict[str, tuple[bytes, dict[str, str], str, str | None]] = {
    "no JSON": (b"{", JSON, "invalid_json", None),
    "not UTF-8": ('{"input":"a"}'.encode("utf-16"), JSON, "invalid_json", None),
    "no object": (b"[]", JSON, "invalid_type", None),
    "no input": (b'{"model":"tiny"}', JSON, "missing_parameter", "input"),
    "no such field": (b'{"input":"a","inptu":1}', JSON, "unknown_parameter", "inptu"),
    "number as input": (b'{"model":"tiny","input":3}', JSON, "invalid_type", "input"),
    "null among texts": (b'{"model":"tiny","input":["a",null]}', JSON, "invalid_type", "input[1]"),
    "empty text": (b'{"model":"tiny","input":["a",""]}', JSON, "empty_input", "input[1]"),
    "empty list": (b'{"model":"tiny","input":[]}', JSON, "empty_input", "input"),
    "unknown model": (b'{"model":"x","input":"a"}', JSON, "model_not_found", "model"),
    "which model": (b'{"input":"a"}', JSON, "missing_parameter", "model"),
    "token ids": (b'{"model":"tiny","input":[1,2]}', JSON, "token_ids_not_accepted", "input"),
    "id past the end": (
        b'{"model":"matryoshka","input":[[1],[99]]}',
        JSON,
        "token_id_out_of_range",
        "input[1]",
    ),
    "dimensions": (
        b'{"model":"tiny","input":"a","dimensions":2}',
        JSON,
        "dimensions_not_supported",
        "dimensions",
    ),
    "too many dimensions": (
        b'{"model":"matryoshka","input":"a","dimensions":5}',
        JSON,
        "dimensions_not_supported",
        "dimensions",
    ),
    "no such prompt": (
        b'{"model":"tiny","input":"a","input_type":"query"}',
        JSON,
        "prompt_not_found",
        "input_type",
    ),
    "too many texts": (
        json.dumps({"model": "tiny", "input": ["a"] * 2049}).encode(),
        JSON,
        "too_many_inputs",
        "input",
    ),
    "far too long": (
        json.dumps({"model": "tiny", "input": ["a", "a" * 2001]}).encode(),
        JSON,
        "input_too_long",
        "input[1]",
    ),
    "a failing pass": (
        b'{"model":"tiny","input":["a","fail"]}',
        JSON,
        "inference_failed",
        "input[1]",
    ),
    "a NaN": (b'{"model":"tiny","input":["poison"]}', JSON, "non_finite_embedding", "input[0]"),
    "form": (
        b"input=a",
        {"content-type": "application/x-www-form-urlencoded"},
        "unsupported_media_type",
        None,
    ),
    "gzip": (b"", {**JSON, "content-encoding": "gzip"}, "unsupported_encoding", None),
    "bad deadline": (
        b'{"model":"tiny","input":"a"}',
        {**JSON, "x-request-timeout": "soon"},
        "invalid_value",
        "x-request-timeout",
    ),
}


class TestBadInput:
    """A clear error in OpenAI's body, and the server goes on."""

    @pytest.mark.parametrize("case", BAD_REQUESTS)
    def test_error_body(self, server: Server, case: str) -> None:
        """Status, type and code are those of the table; nothing of a library shows."""
        body, headers, code, param = BAD_REQUESTS[case]
        with server.client() as client:
            answer = client.post("/v1/embeddings", content=body, headers=headers)
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == (code, param)
        assert (answer.status_code, error["type"]) == ERRORS[code][:2]
        assert error["message"]
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"]
        assert "Traceback" not in answer.text
        assert "onnxruntime" not in answer.text.lower()
        assert server.embed(model="tiny", input="a").status_code == 200

    @pytest.mark.parametrize("path", ["/v1", "/v1/embeddings/", "/v1/model", "/../etc"])
    def test_unknown_url(self, server: Server, path: str) -> None:
        """404 with the error body; never a redirect."""
        with server.client() as client:
            answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")

    def test_method(self, server: Server) -> None:
        """405 says what is allowed."""
        with server.client() as client:
            answer = client.get("/v1/embeddings")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert answer.json()["error"]["code"] == "method_not_allowed"

    def test_body_limit(self, start: Start, tiny_artifacts: Path) -> None:
        """A body past the limit is refused, by its header or while it comes."""
        small = start(
            tiny_artifacts.parent / "models.toml", tiny_artifacts, "--max-body-bytes", "99"
        )
        by_header = small.embed(model="tiny", input="a" * 100)
        with small.client() as client:
            chunked = client.post(
                "/v1/embeddings", content=iter([b"x" * 60, b"x" * 60]), headers=JSON
            )
        for answer in (by_header, chunked):
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                413,
                "request_too_large",
            )
        assert small.embed(model="tiny", input="a").status_code == 200

    def test_neighbours_of_a_failing_text(self, server: Server) -> None:
        """Requests beside one that fails get their own answers."""
        texts = ["fail" if i % 8 == 0 else "a b" for i in range(64)]
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda text: server.embed(model="tiny", input=text), texts))
        for text, answer in zip(texts, answers, strict=True):
            if text == "fail":
                assert answer.status_code == 500
            else:
                np.testing.assert_allclose(vectors(answer)[0], tiny.expected(text), atol=1e-7)


class TestMetrics:
    """/metrics from the first scrape on."""

    def test_first_scrape(self, start: Start, tiny_artifacts: Path) -> None:
        """Every series of every model is there before any request."""
        fresh = start(tiny_artifacts.parent / "models.toml", tiny_artifacts)
        with fresh.client() as client:
            answer = client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        for name in (
            'requests_total{model="tiny",outcome="ok"} 0.0',
            'requests_total{model="",outcome="invalid_json"} 0.0',
            'texts_total{model="matryoshka"} 0.0',
            'queue_depth{model="tiny"} 0.0',
            'requests_in_flight{model="tiny"} 0.0',
            'request_duration_seconds_count{model="tiny"} 0.0',
            'padding_ratio_count{model="tiny"} 0.0',
        ):
            assert f"embedserve_{name}\n" in answer.text
        assert 'embedserve_model_info{dimension="4"' in answer.text

    def test_counts(self, start: Start, tiny_artifacts: Path) -> None:
        """Requests, texts, tokens and passes are counted as they were."""
        fresh = start(tiny_artifacts.parent / "models.toml", tiny_artifacts, "--lanes", "1")
        fresh.embed(model="tiny", input=["a", "a b c"])
        fresh.embed(model="tiny", input=[])
        with fresh.client() as client:
            text = client.get("/metrics").text
        for line in (
            'requests_total{model="tiny",outcome="ok"} 1.0',
            'requests_total{model="",outcome="empty_input"} 1.0',
            'texts_total{model="tiny"} 2.0',
            'tokens_total{model="tiny"} 8.0',
            'padding_tokens_total{model="tiny"} 2.0',
            'inference_duration_seconds_count{model="tiny"} 1.0',
            'batch_tokens_sum{model="tiny"} 10.0',
        ):
            assert f"embedserve_{line}\n" in text


def _flip_a_bit(artifact: Path) -> Path:
    path = artifact / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def _remove(artifact: Path) -> Path:
    (artifact / "tokenizer.json").unlink()
    return artifact / "tokenizer.json"


def _add(artifact: Path) -> Path:
    (artifact / "extra.bin").touch()
    return artifact / "extra.bin"


def _symlink(artifact: Path) -> Path:
    path = artifact / "tokenizer.json"
    path.rename(artifact.parent / "elsewhere.json")
    path.symlink_to(artifact.parent / "elsewhere.json")
    return path


def _hard_link(artifact: Path) -> Path:
    os.link(artifact / "model.onnx", artifact.parent / "elsewhere.onnx")
    return artifact / "model.onnx"


class TestStart:
    """It starts on what it can prove, or says in one line what is wrong."""

    @pytest.mark.parametrize("alter", [_flip_a_bit, _remove, _add, _symlink, _hard_link])
    @pytest.mark.parametrize("command", ["serve", "verify"])
    def test_altered_artifact(
        self, tmp_path: Path, alter: Callable[[Path], Path], command: str
    ) -> None:
        """An altered artifact is refused with the file named, exit 78."""
        tiny.write(tmp_path / "artifacts" / "tiny")
        models = tiny.models_toml(tmp_path / "models.toml", {"tiny": ""})
        named = alter(tmp_path / "artifacts" / "tiny")
        done = run(command, "--models", models, "--artifacts", tmp_path / "artifacts")
        assert done.returncode == Exit.CONFIG
        assert done.stderr.count("\n") == 1
        assert str(named) in done.stderr
        assert "export" in done.stderr

    def test_other_vectors(self, tmp_path: Path) -> None:
        """Golden vectors that this build does not give stop the start."""
        directory = tmp_path / "artifacts" / "tiny"
        tiny.write(directory, pooling=("max",))  # its golden vectors are those of mean
        models = tiny.models_toml(tmp_path / "models.toml", {"tiny": ""})
        done = run("verify", "--models", models, "--artifacts", tmp_path / "artifacts")
        assert done.returncode == Exit.CONFIG
        assert "golden vectors differ" in done.stderr

    def test_missing_artifact(self, tmp_path: Path) -> None:
        """A model without an artifact is refused with the command that makes it."""
        models = tiny.models_toml(tmp_path / "models.toml", {"tiny": ""})
        done = run("serve", "--models", models, "--artifacts", tmp_path)
        assert done.returncode == Exit.NOINPUT
        assert str(tmp_path / "tiny" / "manifest.json") in done.stderr
        assert "python -m export tiny" in done.stderr

    def test_skip_missing(self, start: Start, tiny_artifacts: Path, tmp_path: Path) -> None:
        """Asked to, it serves what is there and names what is not."""
        models = tiny.models_toml(tmp_path / "models.toml", {"absent": "", "tiny": ""})
        partial = start(models, tiny_artifacts, "--skip-missing")
        with partial.client() as client:
            assert client.get("/v1/models").json()["data"] == ["tiny"]
        assert "absent" in partial.log.read_text()

    def test_an_optional_model(self, start: Start, tiny_artifacts: Path, tmp_path: Path) -> None:
        """It may be missing without being asked for, and is served where it is there."""
        optional = "optional = true"
        models = tiny.models_toml(tmp_path / "models.toml", {"absent": optional, "tiny": optional})
        server = start(models, tiny_artifacts)
        with server.client() as client:
            assert client.get("/v1/models").json()["data"] == ["tiny"]
        assert "absent" not in server.log.read_text()
        done = run("serve", "--model", "absent", "--models", models, "--artifacts", tiny_artifacts)
        assert done.returncode == Exit.NOINPUT
        assert "python -m export absent" in done.stderr

    def test_address_in_use(self, server: Server, tiny_artifacts: Path) -> None:
        """A taken port is said before any model loads."""
        port = str(httpx.URL(server.url).port)
        models = tiny_artifacts.parent / "models.toml"
        done = run("serve", "--port", port, "--models", models, "--artifacts", tiny_artifacts)
        assert done.returncode == Exit.UNAVAILABLE
        assert f"127.0.0.1:{port}" in done.stderr
        assert "loaded" not in done.stderr

    def test_cuda_that_is_not_there(self, tiny_artifacts: Path) -> None:
        """Asked for CUDA without it: no start, and what to install."""
        models = tiny_artifacts.parent / "models.toml"
        flags = ("--models", models, "--artifacts", tiny_artifacts, "--provider", "cuda")
        done = run("serve", "--port", "0", *flags)
        assert done.returncode == Exit.UNAVAILABLE
        assert "onnxruntime-gpu" in done.stderr.splitlines()[-1]

    @pytest.mark.parametrize(
        ("arguments", "env", "status", "said"),
        [
            (["serve", "--prot", "1"], {}, Exit.USAGE, "--prot"),
            (["serve", "--port", "x"], {}, Exit.CONFIG, '--port = "x"'),
            (["serve"], {"EMBEDSERVE_PROT": "1"}, Exit.CONFIG, "EMBEDSERVE_PROT"),
            (["serve", "--models", "/no/such.toml"], {}, Exit.NOINPUT, "/no/such.toml"),
            (["serve", "--model", "x"], {}, Exit.USAGE, "all-MiniLM-L6-v2"),
            ([], {}, Exit.USAGE, "required"),
        ],
        ids=["flag", "value", "environment", "models.toml", "model", "nothing"],
    )
    def test_wrong_setting(
        self, arguments: list[str], env: dict[str, str], status: Exit, said: str
    ) -> None:
        """A wrong flag, variable, value or name: one line, sysexits' status, no traceback."""
        done = run(*arguments, **env)
        assert done.returncode == status
        assert said in done.stderr
        assert "Traceback" not in done.stderr

    def test_version(self) -> None:
        """embedserve --version says its version."""
        assert run("--version").stdout.startswith("embedserve 0.")

    def test_public_address_is_asked_for(self, server: Server) -> None:
        """Unless told otherwise it listens on 127.0.0.1 alone."""
        assert httpx.URL(server.url).host == "127.0.0.1"


class TestEnd:
    """SIGTERM ends it with 0, after what is in flight."""

    def test_sigterm(self, start: Start, tiny_artifacts: Path) -> None:
        """An idle server ends at once with status 0."""
        fresh = start(tiny_artifacts.parent / "models.toml", tiny_artifacts)
        assert fresh.embed(model="tiny", input="a").status_code == 200
        assert fresh.stop() == 0

    def test_the_time_to_drain_is_bounded(self, start: Start) -> None:
        """What is not done by then ends with 503 in the error body, and the process with 0."""
        flags = ("--model", MINILM, "--drain-seconds", "0.1")
        server = start(ROOT / "models.toml", ROOT / "artifacts", *flags)
        long = [f"{i} " + "word " * 250 for i in range(400)]  # half a minute of work
        with ThreadPoolExecutor(1) as pool, server.client() as client:
            body = {"model": MINILM, "input": long}
            waiting = pool.submit(client.post, "/v1/embeddings", json=body)
            with server.client() as other:
                while _metric(other, "requests_in_flight", MINILM) == 0:
                    pass
            assert server.stop() == 0
            answer = waiting.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")

    def test_nothing_is_written(self, start: Start, tmp_path: Path) -> None:
        """It serves from read-only files and writes none."""
        tiny.write(tmp_path / "artifacts" / "tiny")
        models = tiny.models_toml(tmp_path / "models.toml", {"tiny": ""})
        files = [p for p in tmp_path.rglob("*") if p.is_file()]
        for path in files:
            path.chmod(stat.S_IRUSR)
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        fresh = start(models, tmp_path / "artifacts")
        assert fresh.embed(model="tiny", input="a").status_code == 200
        assert fresh.stop() == 0
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_client_that_leaves(start: Start, tiny_artifacts: Path) -> None:
    """A client that closes its connection is counted as such; the server goes on."""
    fresh = start(tiny_artifacts.parent / "models.toml", tiny_artifacts, "--lanes", "1")
    host, port = httpx.URL(fresh.url).host, httpx.URL(fresh.url).port
    body = json.dumps({"model": "tiny", "input": ["a b c d"] * 2000}).encode()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, port or 0)) as client:
        client.sendall(head.encode() + body)
    with fresh.client() as client:
        done = 0.0
        # Ends when either is counted, also of one that left before its model was known; the
        # suite's timeout bounds it.
        while done == 0.0:
            text = client.get("/metrics").text
            done = _value(text, "ok") + _value(text, "cancelled") + _value(text, "cancelled", "")
    assert fresh.embed(model="tiny", input="a").status_code == 200


def _metric(client: httpx.Client, name: str, model: str) -> float:
    prefix = f'embedserve_{name}{{model="{model}"}} '
    lines = client.get("/metrics").text.splitlines()
    return next(float(s.removeprefix(prefix)) for s in lines if s.startswith(prefix))


def _value(text: str, outcome: str, model: str = "tiny") -> float:
    prefix = f'embedserve_requests_total{{model="{model}",outcome="{outcome}"}} '
    return next(float(s.removeprefix(prefix)) for s in text.splitlines() if s.startswith(prefix))


def test_a_signal_while_it_starts(tiny_artifacts: Path) -> None:
    """SIGTERM during an import or while models load ends it at once, without a traceback."""
    paths = ("--models", tiny_artifacts.parent / "models.toml", "--artifacts", tiny_artifacts)
    for moment in range(24):
        with subprocess.Popen(
            (SERVE, "serve", "--port", "0", *paths), stderr=subprocess.PIPE, env=environment()
        ) as process:
            time.sleep(0.03 * moment)  # the moment is what is tried
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=20)[1].decode()
        # Before Python has set a handler, the system's default ends it.
        assert process.returncode in (0, -signal.SIGTERM), said
        assert "Traceback" not in said
