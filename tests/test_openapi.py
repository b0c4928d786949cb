"""The OpenAPI document is valid, and says what the server does: routes, fields, errors, answers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import httpx
import jsonschema
import openapi_spec_validator
import pytest
from starlette.routing import Route

from embedserve import __version__
from embedserve.api import pages, parse
from embedserve.api.routes import routes
from embedserve.errors import ERRORS, RequestError
from tests import tiny
from tests.conftest import MINILM, Server, Start, environment

Json = dict[str, Any]
DOCUMENT = pages.openapi(max_inputs=2048)
METHODS = ("get", "post", "put", "delete", "patch")
OPERATIONS = [
    (path, method, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method in METHODS
]
LONG = " ".join("abcd" * 3)


def resolve(node: Json) -> Json:
    """What a {"$ref": ...} names, or the node itself."""
    while "$ref" in node:
        name = node["$ref"].removeprefix("#/components/").split("/")
        node = DOCUMENT["components"][name[0]][name[1]]
    return node


def closed(node: Any) -> Any:
    """The schema with every object's properties taken as all it may have."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: closed(value) for key, value in node.items()}
    if "properties" in made and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


def check(answer: httpx.Response, method: str, path: str) -> None:
    """Compare status, headers, media type and every field of an answer with the document."""
    responses = DOCUMENT["paths"][path][method]["responses"]
    response = resolve(responses[str(answer.status_code)])
    for name, header in response["headers"].items():
        header = resolve(header)
        if name in answer.headers:
            if header["schema"].get("type") == "string":
                assert re.search(header["schema"].get("pattern", ""), answer.headers[name])
        else:
            assert not header.get("required"), f"{name} is missing"
    media_type = answer.headers["content-type"].partition(";")[0]
    assert media_type in response["content"]
    schema = response["content"][media_type]["schema"]
    if media_type == "application/json":
        validate(answer.json(), schema)


def validate(value: Any, schema: Json) -> None:
    """Validate a value; the schema may refer to the document's components."""
    whole = {**closed(schema), "components": closed(DOCUMENT["components"])}
    jsonschema.Draft202012Validator(whole).validate(value)


class TestDocument:
    """The document against the specification and the code."""

    def test_valid(self) -> None:
        """The document is OpenAPI 3.1."""
        openapi_spec_validator.validate(cast(Any, DOCUMENT))

    def test_version_and_limit(self) -> None:
        """What is known at start is said: the version, and the texts in one request."""
        assert DOCUMENT["info"]["version"] == __version__
        texts = pages.openapi(max_inputs=7)["components"]["schemas"]["Texts"]
        assert texts["maxItems"] == 7

    def test_routes(self) -> None:
        """Each route with its methods; HEAD goes with GET and is said once, in the text."""
        service = cast(Any, _Anything())
        served_by: list[Route] = routes(service, 1)
        served = {(r.path, m.lower()) for r in served_by for m in r.methods or () if m != "HEAD"}
        assert {(path, method) for path, method, _ in OPERATIONS} == served

    def test_operation_ids(self) -> None:
        """Each operation has a name of its own."""
        names = [operation["operationId"] for _, _, operation in OPERATIONS]
        assert len(set(names)) == len(names)

    def test_error_codes(self) -> None:
        """Each code stands under its status, as in the table of errors."""
        codes = set()
        for response in DOCUMENT["components"]["responses"].values():
            if "x-status" not in response:
                continue
            schema = response["content"]["application/json"]["schema"]["allOf"][1]
            enum = schema["properties"]["error"]["properties"]["code"]["enum"]
            codes |= {(int(response["x-status"]), code) for code in enum}
        assert codes == {(status, code) for code, (status, *_) in ERRORS.items()}

    def test_error_schema(self) -> None:
        """The one error object knows every code and every type."""
        fields = DOCUMENT["components"]["schemas"]["Error"]["properties"]["error"]["properties"]
        assert sorted(fields["code"]["enum"]) == sorted(ERRORS)
        assert set(fields["type"]["enum"]) == {kind.type for kind in ERRORS.values()}

    def test_statuses_of_errors(self) -> None:
        """An operation refers to each error's answer under that answer's status."""
        for _, _, operation in OPERATIONS:
            for status, response in operation["responses"].items():
                assert resolve(response).get("x-status", status) == status

    @pytest.mark.parametrize(
        ("name", "parse"),
        [
            ("EmbeddingsRequest", parse.parse_embeddings),
            ("TokenizeRequest", parse.parse_tokenize),
        ],
    )
    def test_request_fields(self, name: str, parse: Any) -> None:
        """A request has the fields that the parser takes: its own list, in an error's words."""
        with pytest.raises(RequestError, match="unknown field") as caught:
            parse(b'{"no such field": 1}', 8)
        accepted = caught.value.message.partition("accepted: ")[2].split(", ")
        assert set(DOCUMENT["components"]["schemas"][name]["properties"]) == set(accepted)

    def test_examples(self) -> None:
        """Each example is what its schema says."""
        for _, _, operation in OPERATIONS:
            bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
            for media in (m for b in bodies for m in resolve(b).get("content", {}).values()):
                examples = [e["value"] for e in media.get("examples", {}).values()]
                for example in [*examples, *([media["example"]] if "example" in media else [])]:
                    validate(example, media["schema"])


class _Anything:
    """Stands for a service whose endpoints are never called."""

    max_inputs = 1

    def __getattr__(self, name: str) -> Any:
        if name == "settings":
            return self

        async def endpoint(request: object) -> None: ...

        return endpoint


ANSWERS: dict[str, tuple[str, str, str, Json]] = {
    "embeddings": ("post", "/v1/embeddings", "", {"model": "tiny", "input": ["a b", LONG]}),
    "base64": (
        "post",
        "/openai/v1/embeddings",
        "",
        {"model": "tiny", "input": "a", "encoding_format": "base64"},
    ),
    "tokenize": ("post", "/v1/tokenize", "", {"model": "tiny", "input": ["a b", LONG]}),
    "models": ("get", "/v1/models", "", {}),
    "models-openai": ("get", "/openai/v1/models", "", {}),
    "model": ("get", "/v1/models/{name}", "/v1/models/matryoshka", {}),
    "model-openai": ("get", "/openai/v1/models/{name}", "/openai/v1/models/tiny", {}),
    "no-model": ("get", "/v1/models/{name}", "/v1/models/none", {}),
    "live": ("get", "/livez", "", {}),
    "ready": ("get", "/readyz", "", {}),
    "health": ("get", "/health", "", {}),
    "metrics": ("get", "/metrics", "", {}),
    "playground": ("get", "/", "", {}),
    "docs": ("get", "/docs", "", {}),
    "openapi": ("get", "/openapi.json", "", {}),
    "empty": ("post", "/v1/embeddings", "", {"model": "tiny", "input": ""}),
    "unknown-field": ("post", "/v1/tokenize", "", {"input": "a", "size": 1}),
    "no-such-model": ("post", "/v1/embeddings", "", {"model": "none", "input": "a"}),
    "poison": ("post", "/v1/embeddings", "", {"model": "tiny", "input": "poison"}),
}


class TestAnswers:
    """Real answers have no field that is not described, and lack none that is promised."""

    @pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS.keys())
    def test_answer(self, server: Server, case: tuple[str, str, str, Json]) -> None:
        """Status, headers, media type and fields are the document's."""
        method, path, url, body = case
        with server.client() as client:
            answer = client.request(method, url or path, json=body or None)
        check(answer, method, path)

    def test_octet_stream(self, server: Server) -> None:
        """The raw matrix has the shape and type that its headers say."""
        headers = {"accept": "application/octet-stream"}
        with server.client() as client:
            body = {"model": "tiny", "input": ["a", "b"]}
            answer = client.post("/v1/embeddings", json=body, headers=headers)
        check(answer, "post", "/v1/embeddings")
        assert answer.headers["x-embedding-shape"] == f"2,{tiny.HIDDEN}"
        assert answer.headers["x-embedding-dtype"] == "float32"
        assert len(answer.content) == 2 * tiny.HIDDEN * 4

    def test_other_fingerprint(self, server: Server) -> None:
        """412 is described too."""
        with server.client() as client:
            body = {"model": "tiny", "input": "a"}
            answer = client.post(
                "/v1/embeddings", json=body, headers={"x-expect-fingerprint": "0" * 64}
            )
        assert answer.status_code == 412
        check(answer, "post", "/v1/embeddings")


# A request that is well-formed may still ask for what this model cannot do (400), a name that is
# not served (404), a fingerprint that is not the model's (412), or an answer within no time (504):
# facts that no schema has. Both may come first where something else is wrong too.
SCHEMATHESIS = f"""
seed = 4
[generation]
max-examples = 100
database = "none"
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "304", "400", "404", "412", "504"]
[checks.negative_data_rejection]
expected-statuses = ["400", "404", "405", "412", "415", "504"]
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
[parameters]
"path.name" = "{MINILM}"
"""


@pytest.fixture
def example(start: Start, tmp_path: Path) -> Server:
    """A server of one tiny model under the name that the document's examples use."""
    tiny.write(
        tmp_path / "artifacts" / MINILM,
        MINILM,
        matryoshka=(4, 2),
        prompts={"query": "a ", "document": "b "},
    )
    models = tiny.models_toml(tmp_path / "models.toml", {MINILM: ""})
    return start(models, tmp_path / "artifacts")


def test_schemathesis(example: Server, tmp_path: Path) -> None:
    """Requests made from the document, well-formed and not, get what the document says."""
    (tmp_path / "schemathesis.toml").write_text(SCHEMATHESIS, encoding="utf-8")
    tool = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [tool, "--config-file", "schemathesis.toml", "run", f"{example.url}/openapi.json"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=85,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"(\d+) generated, \1 passed", done.stdout)
    assert example.process.poll() is None
