"""Chunks and vectors -> files, read back by the libraries that others read them with."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.arrays.types import Floats
from embedserve.bulk.chunks import Selection
from embedserve.bulk.maker import Maker
from embedserve.bulk.outputs import OUTPUTS
from embedserve.bulk.parts import Parts
from embedserve.bulk.pipeline import EmbeddedChunk
from embedserve.errors import StartupError
from tests.bulk.files import chunks, reader, write

DIMENSION = 3
FACTS = {"model": "m"}


def vectors(rows: int, seed: int = 0) -> Floats:
    """Numbers of every size that no two formats may change."""
    draw = np.random.default_rng(seed)
    made: Floats = (draw.standard_normal((rows, DIMENSION)) * 10.0 ** draw.integers(-3, 3)).astype(
        np.float32
    )
    return made


def make(
    source: Path,
    rows: Floats,
    suffix: str,
    *,
    dtype: str = "float32",
    on_error: str = "null",
    selection: Selection | None = None,
    chunk_rows: int = 3,
) -> io.BytesIO:
    """Embed a file with made-up vectors, and join the parts."""
    selection = selection or Selection()
    kind = np.dtype(dtype).newbyteorder("<")
    maker = Maker(OUTPUTS[suffix](selection.vector, DIMENSION, kind), kind, on_error)
    directory = source.with_name("parts")
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    parts = Parts(directory)
    start = 0
    for chunk in chunks(reader(source, chunk_rows, selection)):
        own = rows[start : start + len(chunk.texts)].copy()
        own[list(chunk.problems)] = np.nan
        start += len(chunk.texts)
        parts.put(maker.part(chunk, EmbeddedChunk(own, {}, 1, 0)))
    file = io.BytesIO()
    maker.output.join(parts, FACTS, file)
    file.seek(0)
    return file


ROWS = [
    {"id": 1, "text": "a", "price": 1.5, "ok": True, "tags": ["x"], "mixed": 1, "none": None},
    {"id": 2, "text": "b", "price": 2, "ok": None, "tags": [], "mixed": "two", "none": None},
    {"id": 3, "text": "", "price": 3.0, "ok": False, "tags": None, "mixed": None, "none": None},
    {"id": 4, "text": "d", "price": None, "ok": True, "tags": ["y"], "mixed": [1], "none": None},
]


def test_npy(tmp_path: Path) -> None:
    """A matrix that numpy loads or maps; a bad row is NaN at its place."""
    source, rows = write(tmp_path / "in.jsonl", ROWS), vectors(4)
    found = np.load(make(source, rows, ".npy"))
    assert found.dtype == np.dtype("<f4")
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(found[[0, 1, 3]], rows[[0, 1, 3]])


def test_json_lines(tmp_path: Path) -> None:
    """The input's objects with the vector last, each number the same float32 again."""
    source, rows = write(tmp_path / "in.jsonl", ROWS), vectors(4)
    found = [json.loads(line) for line in make(source, rows, ".jsonl")]
    for i, (before, after) in enumerate(zip(ROWS, found, strict=True)):
        vector = after.pop("embedding")
        assert after == before
        assert list(after) == list(before)
        if i == 2:
            assert vector is None
        else:
            np.testing.assert_array_equal(np.array(vector, np.float32), rows[i])


def test_parquet(tmp_path: Path) -> None:
    """Types that all values of a column have, and a fixed-size list that can be null."""
    source, rows = write(tmp_path / "in.jsonl", ROWS), vectors(4)
    table = pq.read_table(make(source, rows, ".parquet"))
    types = {field.name: str(field.type) for field in table.schema}
    assert types.pop("embedding").startswith("fixed_size_list<")
    assert types == {
        "id": "int64",
        "text": "string",
        "price": "double",
        "ok": "bool",
        "tags": "string",
        "mixed": "string",
        "none": "string",
    }
    assert table.column("price").to_pylist() == [1.5, 2.0, 3.0, None]
    assert table.column("tags").to_pylist() == ['["x"]', "[]", None, '["y"]']
    assert table.column("mixed").to_pylist() == ["1", "two", None, "[1]"]
    found = table.column("embedding").to_pylist()
    assert found[2] is None
    np.testing.assert_array_equal(
        np.array([found[i] for i in (0, 1, 3)], np.float32), rows[[0, 1, 3]]
    )
    assert json.loads(table.schema.metadata[b"embedserve"]) == FACTS


def test_skip(tmp_path: Path) -> None:
    """A bad row is left out of every format."""
    source, rows = write(tmp_path / "in.jsonl", ROWS), vectors(4)
    good = rows[[0, 1, 3]]
    np.testing.assert_array_equal(np.load(make(source, rows, ".npy", on_error="skip")), good)
    lines = list(map(json.loads, make(source, rows, ".jsonl", on_error="skip")))
    assert [line["id"] for line in lines] == [1, 2, 4]
    table = pq.read_table(make(source, rows, ".parquet", on_error="skip"))
    assert table.column("id").to_pylist() == [1, 2, 4]
    found = table.column("embedding").combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(found.reshape(-1, DIMENSION), good)


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_float16(tmp_path: Path, suffix: str) -> None:
    """Numbers are rounded to float16; a vector that has no place in it is a bad row."""
    rows = vectors(4)
    rows[1, 1] = 1e6
    source = write(tmp_path / "in.jsonl", [{"text": word} for word in "abcd"])
    file = make(source, rows, suffix, dtype="float16")
    half = rows[[0, 2, 3]].astype(np.float16)
    if suffix == ".npy":
        found = np.load(file)
        assert found.dtype == np.float16
        assert np.isnan(found[1]).all()
        found = found[[0, 2, 3]]
    elif suffix == ".jsonl":
        listed = [json.loads(line)["embedding"] for line in file]
        assert listed.pop(1) is None
        found = np.array(listed, np.float16)
    else:
        table = pq.read_table(file)
        assert "halffloat" in str(table.schema.field("embedding").type)
        listed = table.column("embedding").to_pylist()
        assert listed.pop(1) is None
        found = np.array(listed, np.float16)
    np.testing.assert_array_equal(found, half)


def test_parquet_to_parquet(tmp_path: Path) -> None:
    """Columns keep their types, whatever these are."""
    columns = {
        "id": pa.array([7, None, 9], pa.uint64()),
        "text": pa.array(["a", "b", "c"], pa.large_string()),
        "when": pa.array([1, 2, None], pa.timestamp("ns", "UTC")),
        "price": pa.array(["1.50", "2.50", None]).cast(pa.decimal128(9, 2)),
        "raw": pa.array([b"\xff", b"", None], pa.binary()),
        "nested": pa.array([{"a": [1]}, {"a": []}, None]),
    }
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table(columns), source)
    found = pq.read_table(make(source, vectors(3), ".parquet", chunk_rows=2))
    for name, column in columns.items():
        assert found.column(name).combine_chunks().equals(column), name


def test_parquet_to_json_lines(tmp_path: Path) -> None:
    """What JSON has no form for is text, and binary is base64."""
    columns = {
        "text": pa.array(["a"]),
        "when": pa.array([1], pa.timestamp("ns")),
        "day": pa.array([1], pa.date32()),
        "price": pa.array(["1.50"]).cast(pa.decimal128(9, 2)),
        "raw": pa.array([b"\xff\x00"]),
        "nested": pa.array([{"a": [1]}]),
    }
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table(columns), source)
    [line] = make(source, vectors(1), ".jsonl")
    found = json.loads(line)
    del found["embedding"]
    assert found == {
        "text": "a",
        "when": "1970-01-01 00:00:00.000000001",
        "day": "1970-01-02",
        "price": "1.50",
        "raw": "/wA=",
        "nested": {"a": [1]},
    }


@pytest.mark.parametrize(
    ("source", "target"),
    list(itertools.product([".jsonl", ".csv", ".parquet"], [".jsonl", ".parquet", ".npy"])),
)
def test_no_columns(tmp_path: Path, source: str, target: str) -> None:
    """Where no column is kept, there are vectors alone."""
    path = write(tmp_path / f"in{source}", [{"text": word} for word in "abcde"])
    rows = vectors(5)
    file = make(path, rows, target, selection=Selection(drop=("text",)))
    found: Any
    if target == ".npy":
        found = np.load(file)
    elif target == ".jsonl":
        listed = list(map(json.loads, file))
        assert all(list(line) == ["embedding"] for line in listed)
        found = np.array([line["embedding"] for line in listed], np.float32)
    else:
        table = pq.read_table(file)
        assert table.column_names == ["embedding"]
        found = np.array(table.column("embedding").to_pylist(), np.float32)
    np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize("target", [".jsonl", ".parquet", ".npy"])
def test_no_rows(tmp_path: Path, target: str) -> None:
    """An input without rows gives an output without rows."""
    file = make(write(tmp_path / "in.jsonl", []), vectors(0), target)
    if target == ".npy":
        assert np.load(file).shape == (0, DIMENSION)
    elif target == ".jsonl":
        assert file.read() == b""
    else:
        assert pq.read_table(file).num_rows == 0


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@settings(deadline=None)  # files
@given(st.lists(VALUES, min_size=1, max_size=12), st.integers(1, 5))
def test_values(place: Path, values: list[Any], chunk_rows: int) -> None:
    """JSON to Parquet: values of one kind are the same again, others are told as text."""
    rows = [{"text": "a", "value": value} for value in values]
    source = write(place / "in.jsonl", rows)
    table = pq.read_table(make(source, vectors(len(rows)), ".parquet", chunk_rows=chunk_rows))
    found = table.column("value").to_pylist()
    kinds = {type(value) for value in values} - {type(None)}
    if len(kinds) <= 1:
        assert found == values
        assert [type(v) for v in found] == [type(v) for v in values]
    elif kinds == {int, float}:
        assert found == [None if v is None else float(v) for v in values]
    else:
        for before, after in zip(values, found, strict=True):
            if before is None or isinstance(before, str):
                assert after == before
            else:
                assert json.loads(after) == before


def test_large_integers(tmp_path: Path) -> None:
    """An integer past int64 makes its column one of text: no digit is lost."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a", "id": 12345678901234567890}\n{"text": "b", "id": 1}\n')
    table = pq.read_table(make(source, vectors(2), ".parquet"))
    assert table.column("id").to_pylist() == ["12345678901234567890", "1"]


def test_too_many_columns(tmp_path: Path) -> None:
    """Keys that are data, not columns, are refused and not made into a table of thousands."""
    source = write(tmp_path / "in.jsonl", [{"text": "a", f"k{i}": i} for i in range(2100)])
    with pytest.raises(StartupError, match="more than 2000 keys"):
        make(source, vectors(2100), ".parquet", chunk_rows=500)


def test_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts share a row group, and none is larger than it must be."""
    monkeypatch.setattr("embedserve.bulk.outputs.GROUP_BYTES", 1000)
    source = write(tmp_path / "in.csv", [{"text": "a" * 10} for _ in range(200)])
    found = pq.ParquetFile(make(source, vectors(200), ".parquet", chunk_rows=10))
    sizes = [found.metadata.row_group(i).num_rows for i in range(found.metadata.num_row_groups)]
    assert sum(sizes) == 200
    assert all(10 < size <= 60 for size in sizes)
