"""`embedserve embed`, the real process: formats, bad rows, statuses, kills and signals."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedserve.arrays.types import Floats
from embedserve.errors import Exit
from tests import tiny
from tests.bulk import operated
from tests.bulk.files import Row, command, embed, write
from tests.conftest import MINILM, ROOT, SERVE, Server, environment
from tests.faults import syscalls

watched = pytest.mark.skipif(syscalls.missing() is not None, reason=str(syscalls.missing()))
WORDS = ("a", "b", "c", "d")
SEED = 20261124


def corpus(count: int) -> list[Row]:
    """Rows of known vectors."""
    draw = random.Random(SEED)  # noqa: S311  # the same every time
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(count)]
    return [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)]


def matrix(rows: Sequence[Row]) -> Floats:
    """Their vectors, by hand."""
    return np.stack([tiny.expected(row["text"]) for row in rows])


@pytest.fixture
def flags(tiny_artifacts: Path) -> list[str | Path]:
    """The tiny model, and chunks of a few rows."""
    models = tiny_artifacts.parent / "models.toml"
    return [
        "--models",
        models,
        "--artifacts",
        tiny_artifacts,
        "--model",
        "tiny",
        "--chunk-rows",
        "16",
        "--lanes",
        "2",
    ]


def vectors(path: Path) -> Floats:
    """The vectors of any output."""
    if path.suffix == ".npy":
        matrix: Floats = np.load(path)
        return matrix
    if path.suffix == ".jsonl":
        listed = [line["embedding"] for line in objects(path)]
    else:
        listed = pq.read_table(path).column("embedding").to_pylist()
    return np.array(listed, np.float32)


def objects(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("source", "target"),
    list(itertools.product([".jsonl", ".csv", ".tsv", ".parquet"], [".npy", ".jsonl", ".parquet"])),
)
def test_formats(tmp_path: Path, flags: list[str | Path], source: str, target: str) -> None:
    """Each input to each output: the right vector at every row, ids and texts beside it."""
    rows = corpus(50)
    out = tmp_path / f"out{target}"
    done = embed(write(tmp_path / f"in{source}", rows), out, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "50 rows of 4 float32" in done.stdout
    np.testing.assert_allclose(vectors(out), matrix(rows), atol=1e-6)
    if target == ".jsonl":
        found = objects(out)
        assert [{k: row[k] for k in ("id", "text")} for row in found] == rows
    if target == ".parquet":
        assert pq.read_table(out, columns=["id", "text"]).to_pylist() == rows


def test_without_extras(tmp_path: Path, flags: list[str | Path]) -> None:
    """The serve environment is enough for all but Parquet, which says what to install."""
    rows, python = corpus(20), SERVE.with_name("python")
    source = write(tmp_path / "in.csv", rows)
    for target in ("out.npy", "out.jsonl"):
        done = embed(source, tmp_path / target, *flags, python=python)
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(vectors(tmp_path / target), matrix(rows), atol=1e-6)
    done = embed(source, tmp_path / "out.parquet", *flags, python=python)
    assert done.returncode == Exit.UNAVAILABLE
    assert "pip install 'embedserve[bulk]'" in done.stderr
    assert not (tmp_path / "out.parquet.parts").exists()


def test_options(tmp_path: Path, tiny_artifacts: Path) -> None:
    """Columns by name, a prompt, dimensions and dtype."""
    source = write(tmp_path / "in.jsonl", [{"id": 1, "body": "c", "x": 0}])
    out = tmp_path / "out.parquet"
    done = embed(
        *(source, out, "--models", tiny_artifacts.parent / "models.toml"),
        *("--artifacts", tiny_artifacts, "--model", "matryoshka", "--prompt-name", "query"),
        *("--dimensions", "2", "--dtype", "float16", "--text-column", "body"),
        *("--vector-column", "v", "--keep", "id"),
    )
    assert done.returncode == 0, done.stderr
    table = pq.read_table(out)
    assert table.column_names == ["id", "v"]
    row = tiny.expected("a c")[:2]
    expected = (row / np.linalg.norm(row)).astype(np.float16)
    np.testing.assert_allclose(table.column("v").to_pylist(), [expected], atol=1e-3)
    facts = json.loads(table.schema.metadata[b"embedserve"])
    assert (facts["model"], facts["prompt"]) == ("matryoshka", "a ")


def bad_corpus(path: Path) -> list[str]:
    """30 lines with bad ones among them; the good texts."""
    lines = [json.dumps(row) for row in corpus(30)]
    lines[4] = "{"
    lines[9] = json.dumps({"id": "poisoned", "text": "a poison"})
    lines[19] = json.dumps({"id": "failing", "text": "fail"})
    lines[24] = json.dumps({"id": "no text"})
    path.write_text("\n".join(lines) + "\n")
    return [row["text"] for i, row in enumerate(corpus(30)) if i not in (4, 9, 19, 24)]


BAD = [
    (5, "invalid_json"),
    (10, "non_finite_embedding"),
    (20, "inference_failed"),
    (25, "missing_column"),
]


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_bad_rows(tmp_path: Path, flags: list[str | Path], suffix: str) -> None:
    """They are told with their lines and stop nothing: skipped, or null where only place counts."""
    good = bad_corpus(tmp_path / "in.jsonl")
    out = tmp_path / f"out{suffix}"
    done = embed(tmp_path / "in.jsonl", out, *flags)
    assert done.returncode == 0
    for line, code in BAD:
        assert f"embedserve: line {line}: {code}: " in done.stderr
    assert done.stderr.count("\n") == len(BAD)
    assert f"4 bad rows ({out}.errors.jsonl)" in done.stdout
    listed = map(json.loads, Path(f"{out}.errors.jsonl").read_text().splitlines())
    assert [(row["line"], row["code"]) for row in listed] == BAD
    found = vectors(out)
    if suffix == ".npy":
        assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == [4, 9, 19, 24]
        found = found[~np.isnan(found).any(axis=1)]
    np.testing.assert_allclose(found, [tiny.expected(text) for text in good], atol=1e-6)


def test_null(tmp_path: Path, flags: list[str | Path]) -> None:
    """With --on-error null every row is kept, in its place."""
    bad_corpus(tmp_path / "in.jsonl")
    for suffix in (".jsonl", ".parquet"):
        out = tmp_path / f"out{suffix}"
        assert embed(tmp_path / "in.jsonl", out, *flags, "--on-error", "null").returncode == 0
        found = objects(out) if suffix == ".jsonl" else pq.read_table(out).to_pylist()
        assert [i for i, row in enumerate(found) if row["embedding"] is None] == [4, 9, 19, 24]
        assert [row.get("id") for row in found[9::10]] == ["poisoned", "failing", "r29"]


def test_stop(tmp_path: Path, flags: list[str | Path]) -> None:
    """With --on-error stop the first bad row ends it; it goes on with another choice."""
    good = bad_corpus(tmp_path / "in.jsonl")
    out = tmp_path / "out.jsonl"
    done = embed(tmp_path / "in.jsonl", out, *flags, "--chunk-rows", "2", "--on-error", "stop")
    assert done.returncode == Exit.DATAERR
    assert "line 5: invalid_json" in done.stderr.splitlines()[-1]
    assert not out.exists()
    done = embed(tmp_path / "in.jsonl", out, *flags, "--chunk-rows", "2", "--on-error", "skip")
    assert done.returncode == 0
    assert len(vectors(out)) == len(good)


def test_many_bad_rows(tmp_path: Path, flags: list[str | Path]) -> None:
    """The first are shown, the others counted, and all are in the file."""
    (tmp_path / "in.jsonl").write_text("x\n" * 100)
    done = embed(tmp_path / "in.jsonl", tmp_path / "out.jsonl", *flags)
    assert done.returncode == 0
    assert done.stderr.count("invalid_json") == 20
    assert done.stderr.endswith("embedserve: 80 more bad rows\n")
    assert len((tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()) == 100


def test_again(tmp_path: Path, flags: list[str | Path]) -> None:
    """The same command again does nothing; another one replaces nothing unasked."""
    source, out = write(tmp_path / "in.jsonl", corpus(20)), tmp_path / "out.npy"
    assert embed(source, out, *flags).returncode == 0
    status = out.stat()
    done = embed(source, out, *flags)
    assert done.returncode == 0
    assert "already" in done.stdout
    assert out.stat() == status
    done = embed(source, out, *flags, "--dtype", "float16")
    assert done.returncode == Exit.CANTCREAT
    assert done.stderr.count("\n") == 1
    done = embed(source, out, *flags, "--dtype", "float16", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert np.load(out).dtype == np.float16


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("in.jsonl", "out.txt"), Exit.USAGE, "an output's name must end in one of"),
        (("in.txt", "out.npy"), Exit.USAGE, "an input's name must end in one of"),
        (("absent.jsonl", "out.npy"), Exit.NOINPUT, "cannot be read"),
        (("in.jsonl", "absent/out.npy"), Exit.CANTCREAT, "is not a directory"),
        (("in.jsonl", "out.npy", "--dimensions", "2"), Exit.USAGE, "accepts only 4"),
        (("in.jsonl", "out.npy", "--prompt-name", "q"), Exit.USAGE, "prompts of tiny: none"),
        (("in.jsonl", "out.npy", "--chunk-rows", "0"), Exit.USAGE, "1 or more"),
        (("in.jsonl", "out.npy", "--dtype", "int8"), Exit.USAGE, "invalid choice"),
        (("in.jsonl", "out.npy", "--model", "matryoshka"), Exit.USAGE, "takes one --model"),
        (("in.jsonl",), Exit.USAGE, "required"),
    ],
)
def test_refused(
    tmp_path: Path, flags: list[str | Path], arguments: tuple[str, ...], status: Exit, said: str
) -> None:
    """What cannot be done is said in a line, with a status, before anything is written."""
    write(tmp_path / "in.jsonl", corpus(3))
    paths = [a if "-" in a or "." not in a else tmp_path / a for a in arguments]
    done = embed(*flags, *paths)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@watched
def test_an_input_that_changes(tmp_path: Path, flags: list[str | Path]) -> None:
    """Of a file that is written to meanwhile no output is made."""
    source, out = write(tmp_path / "in.jsonl", corpus(100)), tmp_path / "out.npy"

    def append(index: int, words: str) -> int:
        if words == "rename out.npy.parts/00000003.part.tmp":
            with source.open("a") as file:
                file.write("{}\n")
        return 0

    status, _, said = operated.run(tmp_path, [source, out, *flags], append)
    assert status == Exit.DATAERR
    assert f"{source}: changed while it was read" in said
    assert not out.exists()


def test_which_model(tmp_path: Path, tiny_artifacts: Path) -> None:
    """Of several models none is taken by guess."""
    source = write(tmp_path / "in.jsonl", corpus(3))
    models = ("--models", tiny_artifacts.parent / "models.toml", "--artifacts", tiny_artifacts)
    done = embed(source, tmp_path / "out.npy", *models)
    assert done.returncode == Exit.USAGE
    assert "choose one with --model: tiny, matryoshka" in done.stderr


class TestKilled:
    """SIGKILL and failing disks at any file operation: run again, the output is the same bytes."""

    COUNT = 400

    @pytest.fixture
    def arguments(self, tmp_path: Path, flags: list[str | Path]) -> list[str | Path]:
        rows = corpus(self.COUNT)
        lines = [json.dumps(row) for row in rows]
        lines[100:300:50] = ["{", json.dumps({"text": ""}), json.dumps({"text": "fail"}), "[]"]
        (tmp_path / "in.jsonl").write_text("\n".join(lines))
        return [tmp_path / "in.jsonl", tmp_path / "out.jsonl", *flags]

    @watched
    @pytest.mark.parametrize(
        "suffix",
        [*(pytest.param(s, marks=pytest.mark.slow) for s in (".jsonl", ".npy")), ".parquet"],
    )
    def test_ten_times(self, tmp_path: Path, arguments: list[str | Path], suffix: str) -> None:
        """One job, killed ten times on its way and once more near its end."""
        out = tmp_path / f"out{suffix}"
        arguments[1] = out
        status, operations, said = operated.run(tmp_path, arguments, None)
        assert status == 0, said
        whole = out.read_bytes()
        errors = Path(f"{out}.errors.jsonl").read_bytes()
        for path in tmp_path.glob("out*"):
            path.unlink()
        draw = random.Random(f"{SEED}{suffix}")  # noqa: S311  # the same every time
        # Each run goes on where the last one was killed: ten of them go through most of it.
        steps = [draw.randint(1, len(operations) // 7) for _ in range(10)]
        print(f"of {len(operations)} operations killed after {steps}")
        parts: set[str] = set()
        for step in steps:
            status, _, said = operated.run(
                tmp_path,
                arguments,
                operated.at(step, operated.KILL),
            )
            assert status == -signal.SIGKILL, said
            left = {path.name for path in tmp_path.glob("out*.parts/*.part")}
            assert left >= parts, "what was finished stays finished"
            parts = left
        assert len(parts) > 8, "a third of them"
        status, again, said = operated.run(tmp_path, arguments, None)
        assert status == 0, said
        written = {words.split("/")[1] for words in again if words.endswith(".part.tmp")}
        assert {name.removesuffix(".tmp") for name in written}.isdisjoint(parts), "no row twice"
        assert out.read_bytes() == whole
        assert Path(f"{out}.errors.jsonl").read_bytes() == errors
        assert list(tmp_path.glob("*.parts")) + list(tmp_path.glob("*.tmp")) == []

    @watched
    def test_near_the_end(self, tmp_path: Path, arguments: list[str | Path]) -> None:
        """Killed at each of the last operations: joining, renaming, removing the parts."""
        out = tmp_path / "out.jsonl"
        status, operations, said = operated.run(tmp_path, arguments, None)
        assert status == 0, said
        whole = out.read_bytes()
        join = next(
            i
            for i, words in enumerate(operations)
            if words.startswith("openat ") and "output.tmp" in words
        )
        last = range(join, len(operations))
        draw = random.Random(SEED)  # noqa: S311  # the same every time
        for place in draw.sample(last, 5):
            for path in tmp_path.glob("out*"):
                path.unlink()
            status, _, said = operated.run(
                tmp_path,
                arguments,
                operated.at(place, operated.KILL),
            )
            assert status == -signal.SIGKILL
            assert not out.exists() or out.read_bytes() == whole
            status, again, said = operated.run(tmp_path, arguments, None)
            assert status == 0, f"{operations[place]}: {said}"
            assert out.read_bytes() == whole
            assert not any(words.endswith(".part.tmp") for words in again), "no row twice"
            assert list(tmp_path.glob("*.parts")) == []

    @watched
    def test_disk(self, tmp_path: Path, arguments: list[str | Path]) -> None:
        """Status 73, and a line that names path and reason; with room again it goes on."""
        out = tmp_path / "out.jsonl"
        _, operations, _ = operated.run(tmp_path, arguments, None)
        whole = out.read_bytes()
        kinds = {words.split()[0]: i for i, words in enumerate(operations) if "unlink" not in words}
        for i, (words, place) in enumerate(kinds.items()):
            number = (errno.ENOSPC, errno.EIO)[i % 2]
            for path in tmp_path.glob("out*"):
                path.unlink()
            status, _, said = operated.run(
                tmp_path,
                arguments,
                operated.at(place, number),
            )
            if status != 0:
                assert status == Exit.CANTCREAT, f"{words}: {said}"
                last = said.splitlines()[-1]
                assert os.strerror(number) in last
                assert str(tmp_path) in last
            status, _, said = operated.run(tmp_path, arguments, None)
            assert status == 0, said
            assert out.read_bytes() == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(tmp_path: Path, number: signal.Signals) -> None:
    """It ends at once, with a line that says how to go on, and keeps what is finished."""
    source, out = write(tmp_path / "in.jsonl", corpus(3000)), tmp_path / "out.npy"
    arguments: list[str | Path] = [source, out, "--model", MINILM, "--chunk-rows", "32"]
    process = subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    directory = tmp_path / "out.npy.parts"
    while len(list(directory.glob("*.part"))) < 2:
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert said.count("\n") == 1
    assert f"stopped by {number.name}; run the same command again to resume" in said
    assert len(list(directory.glob("*.part"))) >= 2


def test_the_servers_vectors(tmp_path: Path, minilm: Server) -> None:
    """The same bits as the server's, in chunks of any size."""
    from embedserve.diagnose.sample_texts import texts

    asked = texts(64)
    answer = minilm.embed(model=MINILM, input=asked)
    served = np.array([item["embedding"] for item in answer.json()["data"]], np.float32)
    source = write(tmp_path / "in.jsonl", [{"text": text} for text in asked])
    for rows in ("7", "64"):
        out = tmp_path / f"out{rows}.npy"
        done = embed(source, out, "--model", MINILM, "--chunk-rows", rows)
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.load(out), served)
