"""Each fact of a manifest has a range, and is held against the graph and the tokenizer."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedserve import artifact
from embedserve.artifact import FileRecord, FinishingStep, Golden, Manifest, Table
from embedserve.config.models_toml import ModelSpec
from embedserve.errors import Exit, StartupError
from embedserve.model.loading import load_model
from tests import tiny
from tests.conftest import run

WRONG: dict[str, Any] = {
    "dimension": [10**9, 0, -1, 3, 8, 2**70],
    "hidden_size": [0, -4, 8, 3, 2**70],
    "vocabulary": [-1, 0, 10, 10**9, 10**6, 2**70],
    "matryoshka": [(-3,), (0,), (5,), (2**70,)],
    "pad_token_id": [10**9, -1, 11, 2**70],
    "max_tokens": [0, -1, 2**70, 1],
    "masked_up_to": [0, -1, 2**70],
    "padding_side": ["", "both"],
    "pooling": [("mean", "cls"), ()],
    "finishing": [
        (FinishingStep("layer_norm", eps=-1.0),),
        (FinishingStep("layer_norm", eps=1e300),),
        (),
    ],
    "default_prompt_name": ["query", ""],
    "tables": [(Table("table", 0, (1, 4)),), (Table("table", -1, (0,)),)],
    "precision": ["int4"],
}


def published(place: Path, **facts: Any) -> Path:
    """An artifact whose fingerprint is that of these facts: only they are wrong."""
    directory = place / "artifacts" / "tiny"
    manifest = tiny.write(directory)
    artifact.write(directory, replace(manifest, **facts))
    return directory


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_refused(key: str, value: Any, tmp_path: Path) -> None:
    """One line, and 65 or 78."""
    directory = published(tmp_path, **{key: value})
    with pytest.raises(StartupError) as error:
        load_model(ModelSpec("tiny"), directory, "cpu")
    assert error.value.status in (Exit.DATAERR, Exit.CONFIG)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("key", "value"),
    [("dimension", 10**9), ("vocabulary", -1), ("matryoshka", (-3,)), ("hidden_size", 0)],
)
def test_verify(key: str, value: Any, tmp_path: Path) -> None:
    """The real command."""
    published(tmp_path, **{key: value})
    models = tiny.models_toml(tmp_path / "models.toml", {"tiny": ""})
    done = run("verify", "--models", models, "--artifacts", tmp_path / "artifacts")
    assert done.returncode in (65, 78)
    assert len(done.stderr.splitlines()) == 1
    assert key in done.stderr


def _values() -> st.SearchStrategy[Any]:
    numbers = st.sampled_from([0, 1, -1, 2**31, 2**53, 2**63, 2**64, 2**70, 10**400])
    leaves = (
        st.none() | st.booleans() | numbers | st.integers() | st.floats() | st.text(max_size=9)
        | st.sampled_from(["\ud800", "\x1b[2J", "../x", "\x00"])
    )  # fmt: skip
    return st.recursive(
        leaves,
        lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(max_size=9), of, max_size=3),
        max_leaves=5,
    )


# What does not determine a vector may be anything of its type.
STORIES = ("name", "repository", "revision", "created", "parity", "converted_from", "model_type")
FREE = (*STORIES, "prompts", "default_prompt_name", "max_tokens", "masked_up_to", "vocabulary")


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([f.name for f in fields(Manifest)]), _values(), st.booleans())
def test_any_value(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any, signed: bool
) -> None:
    """Any JSON in the place of a fact, signed or not: refused in one line, or of no effect."""
    place = tmp_path_factory.mktemp("any")
    directory = published(place)
    path = directory / artifact.MANIFEST
    written = json.loads(path.read_text())
    before = written.get(key)
    path.write_text(json.dumps({**written, key: value}))
    if signed:
        try:
            found = artifact._decode(Manifest, {**artifact._OPTIONAL, **written, key: value}, "x")
            written["fingerprint"] = artifact.fingerprint(found)
            path.write_text(json.dumps({**written, key: value}))
        except StartupError:
            pass  # of another type: no fingerprint fits
    try:
        load_model(ModelSpec("tiny"), directory, "cpu")
    except StartupError as error:
        assert error.status in (Exit.DATAERR, Exit.CONFIG)
        assert str(error).isprintable()
    else:
        equal = value == before and type(value) is type(before)
        assert equal or key in (*FREE, "matryoshka", "finishing", "pad_token_id", "padding_side")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x04.", b"x" * 200])
def test_arrays(content: bytes, tmp_path: Path) -> None:
    """A .npy file that is none, or says that it has more than there is."""
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(StartupError, match="cannot be read"):
        artifact.read_array(tmp_path, "a.npy")


def test_golden_of_another_dimension(tmp_path: Path) -> None:
    """Golden vectors are the manifest's dimension: no broadcasting hides it."""
    directory = published(tmp_path)
    golden = artifact.read_golden(directory)
    artifact.write_golden(directory, Golden(golden.texts, golden.token_ids, golden.vectors[:, :1]))
    manifest = artifact.read(directory)
    artifact.write(directory, replace(manifest, files={"": FileRecord("", 0)}))
    with pytest.raises(StartupError, match="vectors of 1"):
        load_model(ModelSpec("tiny"), directory, "cpu")


def test_an_empty_vocabulary(tmp_path: Path) -> None:
    """A tokenizer without words is refused."""
    directory = published(tmp_path)
    path = directory / artifact.TOKENIZER
    value = json.loads(path.read_text())
    value["model"]["vocab"], value["added_tokens"], value["post_processor"] = {}, [], None
    path.write_text(json.dumps(value))
    artifact.write(directory, artifact.read(directory))
    with pytest.raises(StartupError):
        load_model(ModelSpec("tiny"), directory, "cpu")
