"""Files that were made to break the job: bad rows or one line and 65, no traceback."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedserve.bulk import arrow, outputs
from embedserve.bulk.chunks import Chunk, Cut
from embedserve.bulk.maker import Maker
from embedserve.bulk.parts import Parts
from embedserve.bulk.pipeline import EmbeddedChunk
from embedserve.errors import Exit, StartupError
from tests.bulk.files import chunks, embed, problems, reader
from tests.bulk.test_command import flags

__all__ = ["flags"]  # a fixture
DIMENSION = 2
SEED = 20261127


def _buffers(kind: pa.DataType, *numbers: np.ndarray[Any, Any]) -> pa.Array:
    """An array of raw numbers that no Python value may stand for."""
    return pa.Array.from_buffers(kind, len(numbers[-1]), [None, *map(pa.py_buffer, numbers)])


def _invalid(kind: pa.DataType) -> pa.Array:
    """Two strings, the first of them no UTF-8."""
    offsets = np.array([0, 2, 3], np.int32 if kind == pa.string() else np.int64)
    return pa.Array.from_buffers(kind, 2, [None, pa.py_buffer(offsets), pa.py_buffer(b"\xff\xfea")])


def _nested(inner: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), inner)


FAR = np.array([2**31 - 1, 0], np.int32)
FAR64 = np.array([2**63 - 1, 1], np.int64)
DEEP = "[" * 1000 + "]" * 1000
COLUMNS: dict[str, pa.Array] = {
    "date32": _buffers(pa.date32(), FAR),
    "date32 before": _buffers(pa.date32(), -FAR),
    "duration[ns]": _buffers(pa.duration("ns"), FAR64),
    "duration[s]": _buffers(pa.duration("s"), FAR64),
    "timestamp[ms]": _buffers(pa.timestamp("ms"), FAR64),
    "timestamp[ns]": _buffers(pa.timestamp("ns"), FAR64),
    "a zone that nobody knows": _buffers(pa.timestamp("us", "Mars/Olympus"), FAR64),
    "list<timestamp[ns]>": _nested(_buffers(pa.timestamp("ns"), FAR64)),
    "list<duration[ns]>": _nested(_buffers(pa.duration("ns"), FAR64)),
    "list<date32>": _nested(_buffers(pa.date32(), FAR)),
    "time64[ns]": pa.array([86_399_999_999_999, 1], pa.time64("ns")),
    "list<time64[ns]>": _nested(pa.array([86_399_999_999_999, 1], pa.time64("ns"))),
    "struct<timestamp[ns]>": pa.StructArray.from_arrays(
        [_buffers(pa.timestamp("ns"), FAR64), pa.array([1, None])], ["a", "b"]
    ),
    "decimal": pa.array([Decimal("9" * 38), None], pa.decimal128(38, 0)),
    "decimal256": pa.array([Decimal("-" + "9" * 76), None], pa.decimal256(76, 76 - 76)),
    "uint64": pa.array([2**64 - 1, 0], pa.uint64()),
    "double": pa.array([float("nan"), float("inf")]),
    "map": pa.array([[("a", 1), ("a", 2)], []], pa.map_(pa.string(), pa.int64())),
    "map of binary": pa.array([[(b"\xff", b"\xfe")], None], pa.map_(pa.binary(), pa.binary())),
    "binary": pa.array([b"\xff" * 100_000, b""]),
    "dictionary": pa.array(["x", None]).dictionary_encode(),
    "list<struct>": pa.array([[{"a": 1}, None], None], pa.list_(pa.struct([("a", pa.int8())]))),
    "null": pa.nulls(2),
    "string": pa.array(["\x00\u2028\U0010ffff", ""]),
}
WRONG = {
    "string": _invalid(pa.string()),
    "large_string": _invalid(pa.large_string()),
    "list<string>": _nested(_invalid(pa.string())),
    "struct<string>": pa.StructArray.from_arrays([_invalid(pa.string())], ["a"]),
    "dictionary<string>": pa.DictionaryArray.from_arrays(
        pa.array([0, 1], pa.int32()), _invalid(pa.string()), safe=False
    ),
}
every_output = pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".npy"])
every_choice = pytest.mark.parametrize("on_error", ["skip", "null"])


def made(tmp_path: Path, found: Sequence[Chunk], suffix: str, on_error: str) -> Path:
    """The output of these chunks, with vectors of zeros; what is no text has none."""
    dtype = np.dtype("<f4")
    output = outputs.OUTPUTS[suffix]("embedding", DIMENSION, dtype)
    maker = Maker(output, dtype, on_error)
    directory = tmp_path / "parts"
    directory.mkdir()
    parts = Parts(directory)
    for chunk in found:
        vectors = np.zeros((len(chunk.texts), DIMENSION), np.float32)
        vectors[[text is None for text in chunk.texts]] = np.nan
        parts.put(maker.part(chunk, EmbeddedChunk(vectors, {}, 0, 0)))
    path = tmp_path / f"out{suffix}"
    with path.open("wb") as file:
        output.join(parts, {}, file)
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of JSON Lines; every line is JSON by a strict parser."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@every_output
@every_choice
@pytest.mark.parametrize("name", COLUMNS)
def test_columns(name: str, suffix: str, on_error: str, tmp_path: Path) -> None:
    """Each is kept, as it is in Parquet, and as text in JSON where JSON and Python have none."""
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"odd": COLUMNS[name], "text": ["a", "b"]}), source)
    found = chunks(reader(source))
    assert problems(found) == {}
    path = made(tmp_path, found, suffix, on_error)
    if suffix == ".jsonl":
        assert [row["text"] for row in rows(path)] == ["a", "b"]
    if suffix == ".parquet":
        written = pq.read_table(path)
        assert written.column("text").to_pylist() == ["a", "b"]
        assert written.column("odd").type == pq.read_schema(source).field("odd").type


def test_values_as_text(tmp_path: Path) -> None:
    """What they become."""
    source = tmp_path / "in.parquet"
    names = ("date32", "duration[ns]", "list<timestamp[ns]>", "binary")
    odd = {name: COLUMNS[name] for name in names}
    pq.write_table(pa.table({**odd, "text": ["a", "b"]}), source)
    first, second = rows(made(tmp_path, chunks(reader(source)), ".jsonl", "skip"))
    assert first["date32"] == str(2**31 - 1)
    assert second["date32"] == "1970-01-01"
    assert first["duration[ns]"] == str(2**63 - 1)
    assert second["list<timestamp[ns]>"] == ["1970-01-01 00:00:00.000000001"]
    assert base64.b64decode(first["binary"]) == b"\xff" * 100_000


@every_output
@every_choice
@pytest.mark.parametrize("name", WRONG)
def test_values_of_no_type(name: str, suffix: str, on_error: str, tmp_path: Path) -> None:
    """A kept column that is no UTF-8 makes its row a bad one; the others are embedded."""
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"odd": WRONG[name], "text": ["a", "b"]}), source)
    found = chunks(reader(source))
    assert problems(found) == {1: "invalid_value"}
    path = made(tmp_path, found, suffix, on_error)
    kept = ["a", "b"] if on_error == "null" else ["b"]
    if suffix == ".jsonl":
        listed = rows(path)
        assert [row["text"] for row in listed] == kept
        assert listed[0]["embedding"] == (None if on_error == "null" else [0.0, 0.0])
    if suffix == ".parquet":
        assert pq.read_table(path).column("text").to_pylist() == kept
        pq.read_table(path).validate(full=True)


def _types() -> st.SearchStrategy[pa.DataType]:
    leaves = st.sampled_from(
        [
            *(pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_(), pa.date32()),
            *(pa.string(), pa.large_string(), pa.binary(), pa.binary(3), pa.decimal128(30, 5)),
            *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
            *(pa.timestamp("us", zone) for zone in ("UTC", "+05:30", "Mars/Olympus", "")),
            *(pa.duration(unit) for unit in ("s", "ns")),
            *(pa.time32("ms"), pa.time64("us"), pa.time64("ns"), pa.null(), pa.date64()),
        ]
    )
    return st.recursive(
        leaves,
        lambda of: st.one_of(
            of.map(pa.list_),
            of.map(pa.large_list),
            of.map(lambda kind: pa.list_(kind, 2)),
            of.map(lambda kind: pa.map_(pa.string(), kind)),
            st.lists(of, min_size=1, max_size=3).map(
                lambda kinds: pa.struct([(f"f{i}", kind) for i, kind in enumerate(kinds)])
            ),
        ),
        max_leaves=4,
    )


TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)


def _raw(kind: pa.DataType, count: int, draw: random.Random) -> pa.Array:
    """An array of a type out of random bytes: any value that a file can hold."""
    valid = pa.py_buffer(draw.randbytes(count // 8 + 1))
    if pa.types.is_null(kind):
        return pa.nulls(count)
    if pa.types.is_struct(kind):
        inner = [_raw(kind.field(i).type, count, draw) for i in range(kind.num_fields)]
        return pa.Array.from_buffers(kind, count, [valid], children=inner)
    if pa.types.is_fixed_size_list(kind):
        inner = [_raw(kind.value_type, count * kind.list_size, draw)]
        return pa.Array.from_buffers(kind, count, [valid], children=inner)
    large = pa.types.is_large_list(kind) or pa.types.is_large_string(kind)
    lengths = [draw.choice([0, 1, 2, 5]) for _ in range(count)]
    offsets = np.cumsum([0, *lengths]).astype(np.int64 if large else np.int32)
    if pa.types.is_map(kind):
        pairs = pa.struct([kind.field(0).type.field(0), kind.field(0).type.field(1)])
        keys = pa.array([f"k{i}" for i in range(offsets[-1])], pa.string())
        items = _raw(pairs.field(1).type, int(offsets[-1]), draw)
        made = pa.StructArray.from_arrays([keys, items], fields=list(pairs))
        return pa.Array.from_buffers(kind, count, [valid, pa.py_buffer(offsets)], children=[made])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = [_raw(kind.value_type, int(offsets[-1]), draw)]
        return pa.Array.from_buffers(kind, count, [valid, pa.py_buffer(offsets)], children=inner)
    if not any(is_text(kind) for is_text in TEXTS):
        content = pa.py_buffer(draw.randbytes(kind.bit_width * count // 8 + 1))
        return pa.Array.from_buffers(kind, count, [valid, content])
    content = pa.py_buffer(draw.randbytes(int(offsets[-1])))
    return pa.Array.from_buffers(kind, count, [valid, pa.py_buffer(offsets), content])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(_types(), st.integers(1, 9), st.integers(), st.sampled_from([".jsonl", ".parquet"]))
def test_any_column(
    tmp_path_factory: pytest.TempPathFactory, kind: Any, count: int, seed: int, suffix: str
) -> None:
    """Any type with any bytes in it: an output whose rows are whole, or one line and 65."""
    tmp_path = tmp_path_factory.mktemp("any")
    odd = _raw(kind, count, random.Random(seed))  # noqa: S311
    source = tmp_path / "in.parquet"
    try:
        pq.write_table(pa.table({"odd": odd, "text": ["a"] * count}), source)
    except pa.ArrowException:
        return  # Parquet has no such type or value
    try:
        found = chunks(reader(source))
        path = made(tmp_path, found, suffix, "null")
    except StartupError as error:
        assert error.status == Exit.DATAERR
        assert "\n" not in str(error)
        return
    if suffix == ".jsonl":
        assert [row["text"] for row in rows(path)] == ["a"] * count
    else:
        assert pq.read_metadata(path).num_rows == count


def _plain(path: Path) -> bytes:
    table = pa.table(
        {
            "id": list(range(20)),
            "tag": pa.array(["x", "y"] * 10).dictionary_encode(),
            "text": [f"a{i}" for i in range(20)],
            "more": [[1.5, None], []] * 10,
        }
    )
    pq.write_table(table, path, row_group_size=7)
    return path.read_bytes()


def _tried(tmp_path: Path, source: Path, suffix: str) -> bool:
    """Whether it was embedded; where not, in one line with 65."""
    directory = tmp_path / "run"
    directory.mkdir()
    try:
        made(directory, chunks(reader(source)), suffix, "null")
        return True
    except StartupError as error:
        assert error.status in (Exit.DATAERR, Exit.CONFIG)
        assert "\n" not in str(error)
        return False
    finally:
        for path in sorted(directory.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        directory.rmdir()


def test_any_changed_byte_of_a_footer(tmp_path: Path) -> None:
    """2,500 files that differ in one byte of the footer: embedded, or refused in one line."""
    source = tmp_path / "in.parquet"
    good = _plain(source)
    footer = int.from_bytes(good[-8:-4], "little") + 8
    draw = random.Random(SEED)  # noqa: S311
    refused = 0
    for number in range(2500):
        content = bytearray(good)
        content[len(good) - 1 - draw.randrange(footer)] = draw.randrange(256)
        source.write_bytes(content)
        refused += not _tried(tmp_path, source, (".jsonl", ".parquet")[number % 2])
    assert 100 < refused < 2400


LINES = (
    DEEP,
    '{"text": "a", "b": ' + DEEP + "}",
    '{"text": "a", "b": ' + '{"c":' * 300 + "1" + "}" * 300 + "}",
    '{"text": "a", "embedding": 1, "b": ' + "[" * 300 + "]" * 300 + "}",
    '{"text": "a", "b": ' + "9" * 5000 + "}",
    '{"text": "a", "b": 1e999}',
    '{"text": "a", "b": "\\ud800"}',
    '{"text": "\\ud800"}',
    '{"text": "a", "b": ' + "9" * 30 + "}",
    '{"text": "a", "text": 1}',
    "{ }",
    "{}",
    "{\t\t}",
    " { } ",
    '{"text": null }',
    '{"a": 1 , "a": 2 }',
    '{"a": 1}   // a comment',
    '{"text": "a" , }',
    "/* */ {}",
    "{'text': 'a'}",
    "nan",
    '{"text": NaN}',
    "{}{}",
    "\x00",
    '{"objects": 1, "text": "a"}',
    "\u00a0{}",
    "\x0b{}",
)


@pytest.mark.parametrize("more", [[], ["--keep", "text"], ["--drop", "b", "--drop", "c"]], ids=len)
@pytest.mark.parametrize("on_error", ["skip", "null"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lines(
    tmp_path: Path, flags: list[str | Path], more: list[str], on_error: str, suffix: str
) -> None:
    """The real command, on lines that each broke one parser or writer: bad rows, and valid JSON."""
    source, target = tmp_path / "in.jsonl", tmp_path / f"out{suffix}"
    source.write_text("".join(line + "\n" for line in LINES) + '{"text": "a"}', encoding="utf-8")
    if "--drop" in more or "--keep" in more:
        flags = [*flags, *more]
    done = embed(source, target, *flags, "--on-error", on_error)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if suffix == ".jsonl":
        listed = rows(target)
        assert listed[-1]["text"] == "a"
        assert all("embedding" in row for row in listed)
        for line in target.read_bytes().splitlines():
            json.loads(line)
        if on_error == "null":
            assert len(listed) == len(LINES) + 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda of: st.lists(of) | st.dictionaries(st.text(max_size=3), of),
        max_leaves=6,
    ),
    st.text(" \t", max_size=3),
)
def test_any_line(tmp_path_factory: pytest.TempPathFactory, value: object, space: str) -> None:
    """Whatever the line and its white space: with `null`, every line of the output is JSON."""
    tmp_path = tmp_path_factory.mktemp("line")
    source = tmp_path / "in.jsonl"
    separators = (f",{space}", f"{space}:")
    text = json.dumps(value, separators=separators).replace("{}", "{" + space + "}")
    source.write_text(f"{space}{text}{space}\n", encoding="utf-8")
    listed = rows(made(tmp_path, chunks(reader(source)), ".jsonl", "null"))
    assert len(listed) == 1
    assert set(listed[0]) >= {"embedding"}


def test_a_vector_called_as_a_column_of_ours(tmp_path: Path, flags: list[str | Path]) -> None:
    """The name of the vector's column is anybody's choice."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    source.write_text('{"text": "a", "b": 1}\n')
    done = embed(source, target, *flags, "--vector-column", arrow.OBJECTS)
    assert done.returncode == 0, done.stderr
    assert pq.read_schema(target).names == ["text", "b", arrow.OBJECTS]


def test_deep_types(tmp_path: Path) -> None:
    """A type nested deeper than any JSON reader takes is refused, by its column."""
    source = tmp_path / "in.parquet"
    kind = pa.int8()
    for _ in range(150):
        kind = pa.struct([("a", kind)])
    pq.write_table(pa.table({"odd": pa.nulls(1, kind), "text": ["a"]}), source)
    with pytest.raises(StartupError, match=r"odd is nested deeper|cannot be read") as error:
        chunks(reader(source))
    assert error.value.status == Exit.DATAERR


def test_a_row_less(tmp_path: Path) -> None:
    """Asked for rows that the file does not have, the reader says so."""
    source = tmp_path / "in.parquet"
    _plain(source)
    with pytest.raises(StartupError, match="cannot be read") as error:
        reader(source).read(Cut(0, 0, 40, 1, 41, 40))
    assert error.value.status == Exit.DATAERR
