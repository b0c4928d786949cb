"""Python clients that exist work unchanged."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
import tiktoken
import tiktoken.registry
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

from tests.clients.conftest import KEY, KNOWN, MODEL, ROOT

TEXTS = list(KNOWN)


def assert_known(vectors: list[list[float]]) -> None:
    """The vectors of TEXTS, to 1e-6."""
    for vector, known in zip(vectors, KNOWN.values(), strict=True):
        assert len(vector) == 384
        assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(vector, known, strict=False))


def client(url: str, **options: object) -> openai.OpenAI:
    """OpenAI's client as a user makes it, without the system's proxies."""
    http = httpx.Client(trust_env=False)
    return openai.OpenAI(base_url=f"{url}/openai/v1", api_key=KEY, http_client=http, **options)


class TestOpenAI:
    """openai's own client, on both surfaces."""

    @pytest.mark.parametrize("surface", ["/openai/v1", "/v1"])
    def test_embeddings(self, url: str, surface: str) -> None:
        """It asks for base64 by default and decodes it."""
        with client(url) as one:
            answer = one.with_options(base_url=f"{url}{surface}").embeddings.create(
                model=MODEL, input=TEXTS
            )
        assert_known([d.embedding for d in answer.data])
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == 6

    def test_float(self, url: str) -> None:
        """encoding_format="float" gives the same."""
        with client(url) as one:
            answer = one.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
        assert_known([d.embedding for d in answer.data])

    def test_async(self, url: str) -> None:
        """The asynchronous client, several requests at once."""

        async def embed() -> list[list[float]]:
            http = httpx.AsyncClient(trust_env=False)
            async with openai.AsyncOpenAI(
                base_url=f"{url}/openai/v1", api_key=KEY, http_client=http
            ) as one:
                answers = await asyncio.gather(
                    *(one.embeddings.create(model=MODEL, input=text) for text in TEXTS)
                )
            return [answer.data[0].embedding for answer in answers]

        assert_known(asyncio.run(embed()))

    def test_models(self, url: str) -> None:
        """models.list() and models.retrieve() on /openai/v1."""
        with client(url) as one:
            assert [model.id for model in one.models.list()] == [MODEL]
            assert one.models.retrieve(MODEL).owned_by == "sentence-transformers"

    def test_error_classes(self, url: str) -> None:
        """Each status raises the class that the client has for it, with code and param."""
        with client(url) as one:
            with pytest.raises(openai.NotFoundError) as missing:
                one.embeddings.create(model="gpt-2", input="a")
            with pytest.raises(openai.BadRequestError) as empty:
                one.embeddings.create(model=MODEL, input=["a", ""])
            with pytest.raises(openai.AuthenticationError):
                one.with_options(api_key="sk-another-key").embeddings.create(model=MODEL, input="a")
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        assert (empty.value.code, empty.value.param) == ("empty_input", "input[1]")
        assert empty.value.request_id

    def test_timeout_is_the_deadline(self, url: str) -> None:
        """The client's own read timeout reaches the server, which stops the work."""
        many = [f"{i} " * 250 for i in range(600)]  # tens of seconds of work
        with client(url, max_retries=0) as one:
            with pytest.raises((openai.InternalServerError, openai.APITimeoutError)):
                one.embeddings.create(model=MODEL, input=many, timeout=1.5)
            assert one.embeddings.create(model=MODEL, input="iPhone").data

    def test_dimensions_of_another_model(self, url: str) -> None:
        """A dimension that the model does not have is refused."""
        with client(url) as one, pytest.raises(openai.BadRequestError, match="only 384"):
            one.embeddings.create(model=MODEL, input="a", dimensions=256)


class TestLangChain:
    """langchain-openai."""

    def test_embeddings(self, url: str) -> None:
        """With check_embedding_ctx_length=False it sends the texts themselves."""
        embeddings = OpenAIEmbeddings(
            model=MODEL,
            base_url=f"{url}/openai/v1",
            api_key=KEY,
            check_embedding_ctx_length=False,
            http_client=httpx.Client(trust_env=False),
        )
        assert_known(embeddings.embed_documents(TEXTS))
        assert_known([embeddings.embed_query(text) for text in TEXTS])

    def test_its_default(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """By default it sends another tokenizer's ids: refused, with the setting that helps.

        The client downloads that tokenizer; a small one in its place makes ids all the same.
        """
        bytewise = tiktoken.Encoding(
            "cl100k_base",
            pat_str=r"\S+|\s+",
            mergeable_ranks={bytes([i]): i for i in range(256)},
            special_tokens={},
        )
        monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", bytewise)
        embeddings = OpenAIEmbeddings(
            model=MODEL,
            base_url=f"{url}/openai/v1",
            api_key=KEY,
            http_client=httpx.Client(trust_env=False),
        )
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            embeddings.embed_documents(TEXTS)


def test_llama_index(url: str) -> None:
    """llama-index-embeddings-openai-like, single and batch."""
    embedding = OpenAILikeEmbedding(
        model_name=MODEL,
        api_base=f"{url}/openai/v1",
        api_key=KEY,
        http_client=httpx.Client(trust_env=False),
    )
    assert_known(embedding.get_text_embedding_batch(TEXTS))
    assert_known([embedding.get_query_embedding(text) for text in TEXTS])


class TestCommands:
    """The README's command lines, as printed but for address and key."""

    @staticmethod
    def lines(program: str) -> list[str]:
        """The README's indented commands that begin with `program`."""
        text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
        return [s.strip() for s in text.splitlines() if s.startswith(f"    {program} ")]

    @pytest.mark.parametrize("program", ["curl", "http"])
    def test_answer(self, url: str, program: str) -> None:
        """Each answers; the one that embeds gives the known answer."""
        lines = self.lines(program)
        assert lines
        answers = []
        for line in lines:
            here = line.replace("http://127.0.0.1:5000", url).replace(" :5000", f" {url}")
            header = (
                f"-H 'Authorization: Bearer {KEY}'"
                if program == "curl"
                else f"'Authorization: Bearer {KEY}'"
            )
            path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
            done = subprocess.run(
                ["bash", "-c", f"{here} {header}"],
                capture_output=True,
                text=True,
                check=True,
                env={"PATH": path, "HOME": "/nonexistent", "no_proxy": "*"},
            )
            answers.append(json.loads(done.stdout))
        embedded = [answer for answer in answers if "usage" in answer]
        assert len(embedded) == 1
        assert_known([d["embedding"] for d in embedded[0]["data"]])
