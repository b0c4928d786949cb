"""Static embeddings: rows looked up and averaged. No limit; a text without tokens is zeros."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from embedserve import artifact
from embedserve.arrays.pooling import BAG
from embedserve.arrays.types import Floats
from embedserve.artifact import Golden, Manifest
from embedserve.bulk.pipeline import How, Pipeline
from embedserve.config.models_toml import ModelSpec
from embedserve.model.loading import load_model
from tests import tiny
from tests.conftest import Server, Start

LONG = "a b " * 30_000


def mean(words: str) -> Floats:
    """The vector (HIDDEN,) of known words: no token is put around them."""
    row: Floats = tiny.TABLE[[tiny.ID[word] for word in words.split()]].mean(axis=0)
    return row


def write(directory: Path) -> Manifest:
    """A whole artifact whose tokenizer puts nothing around a text."""
    facts = tiny.manifest("bag", pooling=(BAG,), finishing=(), max_tokens=2**31 - 1)
    tiny.write(directory, "bag", pooling=(BAG,))
    content = json.loads(tiny.tokenizer().to_str())
    bare = tokenizers.Tokenizer.from_str(json.dumps({**content, "post_processor": None}))
    bare.save(str(directory / artifact.TOKENIZER))
    texts = ("a", "a b c")
    ids = tuple(tuple(encoding.ids) for encoding in bare.encode_batch(list(texts)))
    artifact.write_golden(directory, Golden(texts, ids, np.stack([mean(text) for text in texts])))
    return artifact.write(directory, replace(facts, files={}))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bag") / "artifacts"
    write(root / "bag")
    return root


@pytest.fixture(scope="module")
def server(start: Start, artifacts: Path) -> Server:
    models = tiny.models_toml(artifacts.parent / "models.toml", {"bag": ""})
    return start(models, artifacts)


def test_texts_without_tokens_are_zeros(server: Server) -> None:
    """As sentence-transformers gives them, alone, among others, and twice in one request."""
    texts = [" ", "a b", "\t\n", "c", " "]
    answer = server.embed(model="bag", input=texts)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["prompt_tokens"] == 3
    rows = [entry["embedding"] for entry in answer.json()["data"]]
    expected: list[Any] = [np.zeros(tiny.HIDDEN), mean("a b"), np.zeros(tiny.HIDDEN), mean("c")]
    np.testing.assert_allclose(rows, [*expected, expected[0]], atol=1e-7)
    alone = server.embed(model="bag", input=" ").json()["data"][0]["embedding"]
    assert alone == [0.0] * tiny.HIDDEN


def test_rows_of_zeros_are_zeros(server: Server) -> None:
    """A table may have such rows, of words it does not know: it is no fault of the pass."""
    answer = server.embed(model="bag", input=["void", "void void"])
    assert [entry["embedding"] for entry in answer.json()["data"]] == [[0.0] * tiny.HIDDEN] * 2


def test_what_is_not_finite_is_an_error(server: Server) -> None:
    answer = server.embed(model="bag", input=["a", "poison"])
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "non_finite_embedding"


def test_an_empty_string_is_refused(server: Server) -> None:
    """As for any model: there it is a mistake of the client's far more often than a text."""
    answer = server.embed(model="bag", input=["a", ""])
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "empty_input"


def test_no_limit(server: Server) -> None:
    """A text of 60,000 tokens is not cut; more characters than are tokenized are refused."""
    answer = server.embed(model="bag", input=LONG)
    assert answer.json()["usage"]["prompt_tokens"] == 60_000
    np.testing.assert_allclose(answer.json()["data"][0]["embedding"], mean("a b"), rtol=1e-4)
    refused = server.embed(model="bag", input="a" * 8_200_000)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "input_too_long"


def test_bulk(artifacts: Path) -> None:
    """The same vectors, from texts of which many have no token, or all."""
    model, _ = load_model(ModelSpec("bag"), artifacts / "bag", "cpu")
    engine = Pipeline(model, How("", "end", tiny.HIDDEN), 2, 16)
    try:
        mixed = engine.submit([" ", "a b", None, "\n", "void", "a"]).future.result(30)
        empty = engine.submit([" ", "\t", " "]).future.result(30)
    finally:
        engine.close()
    assert mixed.problems == empty.problems == {}
    zeros, none = np.zeros(tiny.HIDDEN), np.full(tiny.HIDDEN, np.nan)
    expected = np.stack([zeros, mean("a b"), none, zeros, zeros, mean("a")])
    np.testing.assert_allclose(mixed.vectors, expected, atol=1e-7)
    np.testing.assert_array_equal(empty.vectors, np.zeros((3, tiny.HIDDEN)))
    assert (mixed.tokens, empty.tokens) == (4, 0)
