"""The wire around embeddings: keys, CORS, aliases, token view, raw answers, log lines."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from embedserve.api.middleware import PROBES
from tests import tiny
from tests.conftest import Server, Start, run
from tests.faults.serving import until

KEY, OTHER = "sk-first-0123456789", "sk-second-9876543210"
ROUTES = (
    ("GET", "/v1/models"),
    ("GET", "/openai/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/openai/v1/models/tiny"),
    ("POST", "/v1/embeddings"),
    ("POST", "/openai/v1/embeddings"),
    ("POST", "/v1/tokenize"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/"),
)


def bearer(key: str) -> dict[str, str]:
    """The header OpenAI's clients send."""
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def with_keys(start: Start, tiny_artifacts: Path, tmp_path: Path) -> tuple[Server, Path]:
    """A server with two keys in a file, and the file."""
    path = tmp_path / "keys"
    path.write_text(f"# two keys\n{KEY}\n{OTHER}\n", encoding="utf-8")
    models = tiny_artifacts.parent / "models.toml"
    return start(models, tiny_artifacts, "--api-keys-file", str(path)), path


class TestKeys:
    """Keys guard everything but the probes, and show nowhere."""

    @pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda value: str(value))
    def test_every_route_asks(self, keyed: tuple[Server, Path], method: str, path: str) -> None:
        """Without a key, or with a wrong one, 401; with one of the keys, an answer."""
        body: dict[str, Any] = {"model": "tiny", "input": "a"}
        options: dict[str, Any] = {"json": body} if method == "POST" else {}
        with keyed[0].client() as client:
            for headers in ({}, bearer("sk-wrong-00000000"), {"authorization": "Bearer"}):
                answer = client.request(method, path, headers=headers, **options)
                assert (answer.status_code, answer.json()["error"]["code"]) == (
                    401,
                    "invalid_api_key",
                )
                assert answer.headers["www-authenticate"]
            for key in (KEY, OTHER):
                assert client.request(method, path, headers=bearer(key), **options).is_success

    def test_the_table_has_every_route(self, server: Server) -> None:
        """ROUTES and the probes are all that the description lists."""
        with server.client() as client:
            paths = client.get("/openapi.json").json()["paths"]
        described = {
            (m.upper(), p) for p, item in paths.items() for m in item if m in ("get", "post")
        }
        listed = {(m, p.replace("tiny", "{name}")) for m, p in ROUTES} | {
            ("GET", p) for p in PROBES
        }
        assert described == listed

    @pytest.mark.parametrize("path", PROBES)
    def test_probes_are_open(self, keyed: tuple[Server, Path], path: str) -> None:
        """A probe has no key."""
        with keyed[0].client() as client:
            assert client.get(path).status_code == 200

    def test_basic(self, keyed: tuple[Server, Path]) -> None:
        """A browser sends the key as the password."""
        with keyed[0].client() as client:
            assert client.get("/v1/models", auth=("any", KEY)).status_code == 200
            assert client.get("/v1/models", auth=("any", "wrong-key")).status_code == 401

    def test_odd_authorization(self, keyed: tuple[Server, Path]) -> None:
        """What is no base64, and no text in it, is a wrong key and no more."""
        with keyed[0].client() as client:
            for value in (b"Basic \xe9\xe9", b"Basic !!", b"Basic /w==", b"Basic", b"Bearer \xff"):
                answer = client.get("/v1/models", headers={b"authorization": value})
                assert answer.status_code == 401, value

    def test_refused_before_the_body(self, keyed: tuple[Server, Path]) -> None:
        """What a stranger sends is not read: 401 although the body is no JSON at all."""
        with keyed[0].client() as client:
            answer = client.post("/v1/embeddings", content=b"{")
        assert answer.status_code == 401
        assert answer.headers["connection"] == "close"

    def test_reload(self, with_keys: tuple[Server, Path]) -> None:
        """SIGHUP takes the file's new keys; a file that cannot be used changes nothing."""
        server, path = with_keys

        def status_until(key: str, wanted: int) -> int:
            with server.client() as client:
                status = 0
                while status != wanted:  # the suite's timeout bounds it
                    status = client.get("/v1/models", headers=bearer(key)).status_code
                return status

        path.write_text("sk-third-1111111111\n", encoding="utf-8")
        server.process.send_signal(signal.SIGHUP)
        assert status_until("sk-third-1111111111", 200) == 200
        assert status_until(KEY, 401) == 401
        path.write_text("short\n", encoding="utf-8")
        server.process.send_signal(signal.SIGHUP)
        while "not reloaded" not in server.log.read_text():
            pass
        assert status_until("sk-third-1111111111", 200) == 200

    def test_shown_nowhere(self, start: Start, tiny_artifacts: Path) -> None:
        """A key from the environment is in no log, no argument and no environment of /proc."""
        models = tiny_artifacts.parent / "models.toml"
        server = start(models, tiny_artifacts, EMBEDSERVE_API_KEYS=f"{KEY},{OTHER}")
        with server.client() as client:
            assert client.get("/v1/models").status_code == 401
            assert client.get("/v1/models", headers=bearer(OTHER)).status_code == 200
            assert client.get("/v1/models", headers=bearer(KEY + "x")).status_code == 401
        proc = Path(f"/proc/{server.process.pid}")
        for shown in ("environ", "cmdline"):
            assert b"sk-" not in (proc / shown).read_bytes()
        open_files = [os.readlink(p) for p in (proc / "fd").iterdir()]  # noqa: PTH115
        assert not [name for name in open_files if "memfd" in name]
        assert "sk-" not in server.log.read_text()

    @pytest.mark.parametrize("text", ["sk-12", "", "with spéciäl letters"])
    def test_unusable_file(self, tiny_artifacts: Path, tmp_path: Path, text: str) -> None:
        """A key that cannot be sent is refused at start, by its number alone."""
        path = tmp_path / "keys"
        path.write_text(text, encoding="utf-8")
        models = tiny_artifacts.parent / "models.toml"
        paths = ("--models", models, "--artifacts", tiny_artifacts)
        done = run("serve", "--port", "0", *paths, "--api-keys-file", path)
        assert done.returncode == 78
        assert str(path) in done.stderr
        assert not text or text not in done.stderr

    @pytest.mark.parametrize("text", ["", " ", ","])
    def test_empty_variable(self, tiny_artifacts: Path, text: str) -> None:
        """A variable that should hold keys and holds none does not open the server."""
        models = tiny_artifacts.parent / "models.toml"
        paths = ("--models", models, "--artifacts", tiny_artifacts)
        done = run("serve", "--port", "0", *paths, EMBEDSERVE_API_KEYS=text)
        assert done.returncode == 78
        assert "EMBEDSERVE_API_KEYS" in done.stderr

    def test_public_address(self, start: Start, tiny_artifacts: Path) -> None:
        """A public address without keys is said loudly, once; with keys it is not."""
        models = tiny_artifacts.parent / "models.toml"
        open_server = start(models, tiny_artifacts, "--host", "0.0.0.0")  # noqa: S104
        assert open_server.log.read_text().count("ANYONE") == 1
        closed = start(models, tiny_artifacts, "--host", "0.0.0.0", EMBEDSERVE_API_KEYS=KEY)  # noqa: S104
        assert "ANYONE" not in closed.log.read_text()

    def test_open_metrics(self, start: Start, tiny_artifacts: Path) -> None:
        """/metrics can be left open."""
        models = tiny_artifacts.parent / "models.toml"
        server = start(models, tiny_artifacts, "--open-metrics", EMBEDSERVE_API_KEYS=KEY)
        with server.client() as client:
            assert client.get("/metrics").status_code == 200
            assert client.get("/v1/models").status_code == 401


@pytest.fixture(scope="module")
def keyed(
    start: Start, tiny_artifacts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Server, Path]:
    """As with_keys, for tests that leave it as it was."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"{KEY}\n{OTHER}\n", encoding="utf-8")
    models = tiny_artifacts.parent / "models.toml"
    return start(models, tiny_artifacts, "--api-keys-file", str(path)), path


def assert_logged(server: Server, pattern: str) -> None:
    """Wait for a line of the log."""
    until(lambda: re.search(pattern, server.log.read_text()) is not None)


class TestCors:
    """Off unless origins are named."""

    def test_off(self, server: Server) -> None:
        """No header allows another origin."""
        with server.client() as client:
            answer = client.get("/v1/models", headers={"origin": "https://a.example"})
        assert "access-control-allow-origin" not in answer.headers

    def test_named_origins(self, start: Start, tiny_artifacts: Path) -> None:
        """A named origin is allowed, its preflight needs no key, others are refused."""
        models = tiny_artifacts.parent / "models.toml"
        origins = ("--cors-origins", "https://a.example,https://b.example")
        server = start(models, tiny_artifacts, *origins, EMBEDSERVE_API_KEYS=KEY)
        preflight = {"access-control-request-method": "POST", "origin": "https://b.example"}
        with server.client() as client:
            allowed = client.options("/v1/embeddings", headers=preflight)
            assert allowed.status_code == 200
            assert allowed.headers["access-control-allow-origin"] == "https://b.example"
            answer = client.get(
                "/v1/models", headers={**bearer(KEY), "origin": "https://a.example"}
            )
            assert answer.headers["access-control-allow-origin"] == "https://a.example"
            preflight["origin"] = "https://c.example"
            refused = client.options("/v1/embeddings", headers=preflight)
            assert refused.json()["error"]["code"] == "invalid_value"

    def test_preflights_are_framed(self, start: Start, tiny_artifacts: Path) -> None:
        """A preflight, allowed or not, has a request id and an access line, like any request."""
        models = tiny_artifacts.parent / "models.toml"
        origins = ("--cors-origins", "https://a.example")
        server = start(models, tiny_artifacts, *origins, EMBEDSERVE_API_KEYS=KEY)
        with server.client() as client:
            for number, (letter, status) in enumerate((("a", 200), ("b", 400))):
                given = f"preflight-{number}"
                preflight = {
                    "access-control-request-method": "POST",
                    "origin": f"https://{letter}.example",
                    "x-request-id": given,
                }
                answer = client.options("/v1/embeddings", headers=preflight)
                assert (answer.status_code, answer.headers["x-request-id"]) == (status, given)
                line = f"status={status} .*request_id={given}"
                assert_logged(server, line)
            del preflight["x-request-id"]
            answer = client.options("/v1/embeddings", headers=preflight)
            assert answer.headers["x-request-id"].startswith("req_")


@pytest.fixture(scope="module")
def aliased(start: Start, tiny_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server with an alias that fixes prompt and dimensions."""
    models = tiny.models_toml(
        tmp_path_factory.mktemp("aliases") / "models.toml",
        {"tiny": "", "matryoshka": ""},
        server='[aliases.query-2]\nmodel = "matryoshka"\nprompt_name = "query"\ndimensions = 2',
    )
    return start(models, tiny_artifacts)


class TestAliases:
    """Unmodified clients reach a prompt and dimensions by a model's name."""

    def test_answer(self, aliased: Server) -> None:
        """The alias gives what its parts give, and its own name."""
        by_alias = aliased.embed(model="query-2", input="b").json()
        parts = aliased.embed(model="matryoshka", input="b", prompt_name="query", dimensions=2)
        assert by_alias == {**parts.json(), "model": "query-2"}

    def test_listed_after_models(self, aliased: Server) -> None:
        """Both lists have it, and its object says what it fixes."""
        with aliased.client() as client:
            names = client.get("/v1/models").json()["data"]
            one = client.get("/v1/models/query-2").json()
        assert names == ["tiny", "matryoshka", "query-2"]
        assert one["id"] == "query-2"
        assert one["alias"] == {"model": "matryoshka", "prompt_name": "query", "dimensions": 2}

    @pytest.mark.parametrize(
        ("extra", "param"),
        [
            ({"dimensions": 3}, "dimensions"),
            ({"prompt_name": "document"}, "prompt_name"),
            ({"input_type": "document"}, "input_type"),
        ],
        ids=lambda value: str(value),
    )
    def test_what_it_fixes_is_fixed(
        self, aliased: Server, extra: dict[str, Any], param: str
    ) -> None:
        """Asking an alias for something else is an error, not a surprise."""
        error = aliased.embed(model="query-2", input="b", **extra).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", param)

    @pytest.mark.parametrize(
        ("alias", "said"),
        [
            ('model = "nothing"', "matryoshka"),
            ('model = "tiny"\nprompt_name = "query"', "prompts of tiny"),
            ('model = "tiny"\ndimensions = 2', "only 4"),
            ('model = "tiny"\nprompt = "x"', "unknown key"),
        ],
        ids=["model", "prompt", "dimensions", "key"],
    )
    def test_wrong_alias(self, tiny_artifacts: Path, tmp_path: Path, alias: str, said: str) -> None:
        """An alias that cannot be answered stops the start."""
        tables = {"tiny": "", "matryoshka": ""}
        models = tiny.models_toml(tmp_path / "m.toml", tables, server=f"[aliases.x]\n{alias}")
        for command in (("serve", "--port", "0"), ("verify",)):
            done = run(*command, "--models", models, "--artifacts", tiny_artifacts)
            assert done.returncode == 78
            assert "[aliases.x]" in done.stderr
            assert said in done.stderr


class TestTokenize:
    """POST /v1/tokenize shows what the model sees."""

    def test_tokens(self, server: Server) -> None:
        """Ids, tokens, counts and cuts per text."""
        long = " ".join("abcdabcd")
        with server.client() as client:
            answer = client.post("/v1/tokenize", json={"model": "tiny", "input": ["a x", long]})
        first, second = answer.json()["data"]
        assert first == {
            "object": "tokens",
            "index": 0,
            "token_ids": [tiny.ID[w] for w in ("[CLS]", "a", "[UNK]", "[SEP]")],
            "tokens": ["[CLS]", "a", "[UNK]", "[SEP]"],
            "count": 4,
            "total": 4,
            "truncated": False,
        }
        assert (second["count"], second["total"], second["truncated"]) == (8, 10, True)

    def test_same_count_as_usage(self, server: Server) -> None:
        """A prompt counts here as it does there."""
        body = {"model": "matryoshka", "input": "b c", "input_type": "query"}
        with server.client() as client:
            shown = client.post("/v1/tokenize", json=body).json()["data"][0]
        assert shown["tokens"] == ["[CLS]", "a", "b", "c", "[SEP]"]
        usage = server.embed(**body).json()["usage"]
        assert usage["prompt_tokens"] == shown["count"]

    def test_fields_of_embeddings_are_unknown(self, server: Server) -> None:
        """What shapes vectors has no meaning here."""
        body = {"model": "tiny", "input": "a", "dimensions": 4}
        with server.client() as client:
            error = client.post("/v1/tokenize", json=body).json()["error"]
        assert (error["code"], error["param"]) == ("unknown_parameter", "dimensions")


class TestOctets:
    """Accept: application/octet-stream gives the raw matrix."""

    def test_same_floats(self, server: Server) -> None:
        """The same float32 as in base64, shape and type in headers."""
        body = {"model": "tiny", "input": ["a b", "c", "d"]}
        headers = {"accept": "application/octet-stream"}
        with server.client() as client:
            raw = client.post("/v1/embeddings", json=body, headers=headers)
            coded = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
        assert raw.headers["content-type"] == "application/octet-stream"
        assert raw.headers["x-embedding-shape"] == "3,4"
        assert raw.headers["x-embedding-dtype"] == "float32"
        assert raw.content == b"".join(base64.b64decode(d["embedding"]) for d in coded["data"])
        rows = np.frombuffer(raw.content, "<f4").reshape(3, 4)
        np.testing.assert_allclose(rows[0], tiny.expected("a b"), atol=1e-7)

    def test_errors_are_json(self, server: Server) -> None:
        """An error is JSON whatever was asked for."""
        headers = {"accept": "application/octet-stream"}
        with server.client() as client:
            answer = client.post(
                "/v1/embeddings", json={"model": "x", "input": "a"}, headers=headers
            )
        assert answer.json()["error"]["code"] == "model_not_found"


class TestLog:
    """One line a request, and no input in any."""

    def test_json_lines(self, start: Start, tiny_artifacts: Path) -> None:
        """Each line is an object; a request's line has its id, status, texts and tokens."""
        models = tiny_artifacts.parent / "models.toml"
        server = start(models, tiny_artifacts, "--log-format", "json")
        with server.client() as client:
            client.post(
                "/v1/embeddings?secret=1",
                json={"model": "tiny", "input": ["d d d", "b"]},
                headers={"x-request-id": "abc"},
            )
            client.get("/nowhere")
        assert server.stop() == 0
        server.copier.join()
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
        first, second = (line for line in lines if line["logger"] == "embedserve.access")
        assert (first["request_id"], first["status"]) == ("abc", 200)
        assert (first["model"], first["texts"], first["tokens"]) == ("tiny", 2, 8)
        assert (second["path"], second["status"]) == ("/nowhere", 404)
        assert "d d d" not in server.log.read_text()
        assert "secret" not in server.log.read_text()

    def test_no_line_can_be_forged(self, start: Start, tiny_artifacts: Path) -> None:
        """A line break in a path stays inside its line."""
        models = tiny_artifacts.parent / "models.toml"
        server = start(models, tiny_artifacts)
        with server.client() as client:
            client.get("/a%0aERROR forged")
        assert server.stop() == 0
        server.copier.join()
        lines = server.log.read_text().splitlines()
        assert not [line for line in lines if line.startswith("ERROR")]
        assert [line for line in lines if "forged" in line and "embedserve.access" in line]

    def test_off(self, start: Start, tiny_artifacts: Path) -> None:
        """--no-access-log leaves the lines away."""
        models = tiny_artifacts.parent / "models.toml"
        server = start(models, tiny_artifacts, "--no-access-log")
        assert isinstance(server.embed(model="tiny", input="a"), httpx.Response)
        assert server.stop() == 0
        server.copier.join()
        assert "embedserve.access" not in server.log.read_text()


@pytest.mark.parametrize("seconds", ["5e-324", "1e-9"])
def test_a_deadline_that_has_passed(start: Start, tiny_artifacts: Path, seconds: str) -> None:
    """504, and not 429: there is no later at which the same request would be in time."""
    server = start(tiny_artifacts.parent / "models.toml", tiny_artifacts)
    with server.client() as client:
        body = {"model": "tiny", "input": "a"}
        headers = {"X-Request-Timeout": seconds}
        answer = client.post("/v1/embeddings", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
