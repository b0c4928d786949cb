"""What others wrote reaches terminals and logs as text: it moves no cursor and ends no line."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve import artifact
from embedserve.errors import MOST_CHARACTERS, StartupError
from embedserve.escapes import escaped, shortened
from embedserve.logs import JsonFormatter, TextFormatter
from tests import tiny
from tests.bulk.files import embed
from tests.conftest import run

# Clears a screen; a C1 form of ESC [; turns the direction of writing; ends a line in its ways.
ODD = "\x1b[2J\x9b31m\u202e\r\n\u2028\x7f\x00"


@given(st.text(st.characters()))
def test_one_printable_line(text: str) -> None:
    """Whatever the text: one line that every stream takes; a printable text stays as it is."""
    found = escaped(text)
    assert found.isprintable()
    assert escaped(found) == found
    found.encode()
    assert (found == text) == text.isprintable()


@given(st.text(max_size=40), st.integers(0, 20))
def test_shortened(text: str, most: int) -> None:
    """What fits stays; of the rest the beginning and the end."""
    found = shortened(text, most)
    assert (found == text) if len(text) <= most else found.startswith(text[: most // 2])


def test_errors_and_logs() -> None:
    """A start's error and a log line are one bounded line, in both formats."""
    assert str(StartupError(ODD)).isprintable()
    assert len(str(StartupError("x" * 10**6))) < MOST_CHARACTERS + 100
    record = logging.LogRecord("a", logging.INFO, "", 0, "said %s", (ODD,), None)
    assert TextFormatter().format(record).isprintable()
    assert JsonFormatter().format(record).isprintable()
    assert json.loads(JsonFormatter().format(record))["message"] == f"said {ODD}"


def _clean(*streams: str) -> None:
    for text in streams:
        for line in text.split("\n"):
            assert line.isprintable(), ascii(line)


@pytest.mark.parametrize("key", ["name", "repository", "pooling", "padding_side", "prompts"])
def test_manifest(key: str, tmp_path: Path) -> None:
    """Strings of a manifest, in `doctor` and `verify`."""
    directory = tmp_path / "artifacts" / "tiny"
    tiny.write(directory)
    path = directory / artifact.MANIFEST
    value = json.loads(path.read_text())
    value[key] = {"a": {ODD: 1}} if key == "prompts" else [ODD] if key == "pooling" else ODD
    value["fingerprint"] = ODD
    path.write_text(json.dumps(value))
    models = tiny.models_toml(tmp_path / "models.toml", {"tiny": ""})
    paths = ("--models", models, "--artifacts", tmp_path / "artifacts")
    for arguments in (("doctor",), ("doctor", "--json"), ("verify",)):
        done = run(*arguments, *paths)
        assert done.returncode == 78
        _clean(done.stdout, done.stderr)


def test_models_toml(tmp_path: Path) -> None:
    """Strings of models.toml, settings included, and a path that is no UTF-8."""
    odd = json.dumps(ODD.replace("\x00", ""))
    tiny.write(tmp_path / "plain" / "artifacts" / "tiny")
    directory = (tmp_path / "plain").rename(tmp_path / os.fsdecode(b"\xff\x1b[2J"))
    for server, body in ((f"log_level = {odd}", ""), ("", f"task = {odd}"), (f"{odd} = 1", "")):
        models = tiny.models_toml(directory / "models.toml", {"tiny": body}, server)
        for command in ("doctor", "verify"):
            done = run(command, "--models", models, "--artifacts", directory / "artifacts")
            assert done.returncode == 78
            _clean(done.stdout, done.stderr)


def test_columns_and_names(tmp_path: Path) -> None:
    """Names of columns and of files, in what `embed` says."""
    column, name = ODD, os.fsdecode(b"\xff\x1b[2J.jsonl")
    tiny.write(tmp_path / "artifacts" / "tiny")
    models = tiny.models_toml(tmp_path / "models.toml", {"tiny": ""})
    flags = ("--models", models, "--artifacts", tmp_path / "artifacts")
    pq.write_table(pa.table({column: ["a", ""]}), tmp_path / "odd.parquet")
    (tmp_path / "odd.csv").write_text('"\x1b[2J",b\n1,2\n')
    (tmp_path / name).write_text('{"text": "a"}\n')
    for source, status in (("odd.parquet", 78), ("odd.csv", 78), (name, 0)):
        done = embed(tmp_path / source, tmp_path / f"{name}.npy", *flags)
        assert done.returncode == status, done.stderr
        _clean(done.stdout, done.stderr)
