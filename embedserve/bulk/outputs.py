"""The formats of an output, by its suffix: the payload of each part, and how parts are joined."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from embedserve.bulk import arrow
from embedserve.bulk.chunks import Columns
from embedserve.bulk.parts import Parts
from embedserve.errors import Exit, StartupError

Vectors = NDArray[np.floating[Any]]  # (rows, dim), little-endian; NaN for a missing vector

# A row group of Parquet collects parts until they have this many bytes. The writer needs about
# 100 MB more, whatever the size of the file.
GROUP_BYTES = 16 * 2**20


class Output(Protocol):
    """One format. `name` is the column of the vectors, (rows, dimension) of `dtype`."""

    # The format's default for --on-error.
    on_error: str

    def __init__(self, name: str, dimension: int, dtype: np.dtype[Any]) -> None: ...

    def payload(self, columns: Columns, rows: Sequence[int], vectors: Vectors) -> bytes:
        """Encode these rows of a chunk and their vectors."""

    def join(self, parts: Parts, facts: Mapping[str, object], file: BinaryIO) -> None:
        """Write the whole output. `facts` say how it was made, for formats that can store it."""


class Npy:
    """numpy's format 1.0: only the matrix. A row is identified by its index."""

    on_error = "null"

    def __init__(self, name: str, dimension: int, dtype: np.dtype[Any]) -> None:
        self._dimension, self._dtype = dimension, dtype

    def payload(self, columns: Columns, rows: Sequence[int], vectors: Vectors) -> bytes:
        return vectors.astype(self._dtype, copy=False).tobytes()

    def join(self, parts: Parts, facts: Mapping[str, object], file: BinaryIO) -> None:
        shape = (sum(part.rows for part in parts), self._dimension)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for _, payload in parts.payloads():
            shutil.copyfileobj(payload, file)


class JsonLines:
    """One object per line: what is kept of the input's row, then the vector."""

    on_error = "skip"

    def __init__(self, name: str, dimension: int, dtype: np.dtype[Any]) -> None:
        self._key, self._dtype = orjson.dumps(name) + b":", dtype

    def payload(self, columns: Columns, rows: Sequence[int], vectors: Vectors) -> bytes:
        out = io.BytesIO()
        for content, vector in zip(columns.objects(rows), self._rendered(vectors), strict=True):
            members = content[:-1].rstrip()
            out.write(members if members == b"{" else members + b",")
            out.write(self._key + vector + b"}\n")
        return out.getvalue()

    def join(self, parts: Parts, facts: Mapping[str, object], file: BinaryIO) -> None:
        for _, payload in parts.payloads():
            shutil.copyfileobj(payload, file)

    def _rendered(self, vectors: Vectors) -> Iterator[bytes]:
        """Each vector as the shortest decimals that give back the same numbers; null if missing."""
        rounded = np.ascontiguousarray(vectors.astype(self._dtype, copy=False), np.float32)
        for missing, row in zip(np.isnan(rounded[:, :1]).ravel().tolist(), rounded, strict=True):
            yield b"null" if missing else orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)


class Parquet:
    """Columns with their types, and the vectors as a fixed-size list."""

    on_error = "skip"

    def __init__(self, name: str, dimension: int, dtype: np.dtype[Any]) -> None:
        pa = arrow.load()
        self._name, self._dtype, self._dimension = name, dtype, dimension
        self._type = pa.list_(pa.from_numpy_dtype(dtype), dimension)

    def payload(self, columns: Columns, rows: Sequence[int], vectors: Vectors) -> bytes:
        with arrow.translated("the rows"):
            return self._stream(columns.table(rows), vectors)

    def _stream(self, table: Any, vectors: Vectors) -> bytes:
        pa = arrow.load()
        field = pa.field(self._name, self._type)
        schema = table.schema.append(field)
        table = pa.Table.from_arrays([*table.columns, self._array(vectors)], schema=schema)
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(table.combine_chunks())
        return sink.getvalue()

    def join(self, parts: Parts, facts: Mapping[str, object], file: BinaryIO) -> None:
        with arrow.translated("the rows"):
            self._write(parts, facts, file)

    def _write(self, parts: Parts, facts: Mapping[str, object], file: BinaryIO) -> None:
        pa, parquet = arrow.load(), arrow.load("pyarrow.parquet")
        tables = self._tables(parts)
        first = next(tables, None)
        schema = pa.schema([(self._name, self._type)]) if first is None else first.schema
        schema = schema.with_metadata({"embedserve": json.dumps(facts)})
        # Numbers in vectors hardly repeat: a dictionary of them would be wasted work.
        others = [name for name in schema.names if name != self._name]
        with parquet.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=others, write_statistics=others
        ) as writer:
            for group in _groups(itertools.chain([] if first is None else [first], tables)):
                writer.write_table(pa.concat_tables(group))

    def _tables(self, parts: Parts) -> Iterator[Any]:
        """Each part's table. JSON columns get the types that fit the values of all parts."""
        pa = arrow.load()
        types: dict[str, str] | None = None
        for _, payload in parts.payloads():
            stream = pa.ipc.open_stream(payload)
            if arrow.KINDS not in (stream.schema.metadata or {}):
                yield stream.read_all()
                continue
            types = types or arrow.unite(_kinds(parts))
            table = stream.read_all()
            objects, vectors = table.columns  # by position: names may be anything
            yield pa.table({**arrow.typed(objects, types), self._name: vectors})

    def _array(self, vectors: Vectors) -> Any:
        pa = arrow.load()
        flat = pa.array(np.ascontiguousarray(vectors.astype(self._dtype, copy=False)).ravel())
        missing = np.isnan(vectors[:, 0])
        mask = pa.array(missing) if missing.any() else None
        return pa.FixedSizeListArray.from_arrays(flat, type=self._type, mask=mask)


def _kinds(parts: Parts) -> Iterator[dict[str, list[str]]]:
    pa = arrow.load()
    for _, payload in parts.payloads():
        yield json.loads(pa.ipc.open_stream(payload).schema.metadata[arrow.KINDS])


def _groups(tables: Iterable[Any]) -> Iterator[list[Any]]:
    """Group tables until a group has GROUP_BYTES."""
    group: list[Any] = []
    for table in tables:
        group.append(table)
        if sum(table.nbytes for table in group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


OUTPUTS: Mapping[str, type[Output]] = {
    ".parquet": Parquet,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".npy": Npy,
}


def check_output(path: Path) -> type[Output]:
    """The format for an output's suffix. StartupError if there is none, or the path is unusable."""
    if path.suffix.lower() not in OUTPUTS:
        raise StartupError(
            f"{path}: an output's name must end in one of {', '.join(OUTPUTS)}", Exit.USAGE
        )
    if not path.parent.is_dir():
        raise StartupError(f"{path}: {path.parent} is not a directory", Exit.CANTCREAT)
    if path.exists() and not path.is_file():
        raise StartupError(f"{path}: is not a regular file; name another", Exit.CANTCREAT)
    return OUTPUTS[path.suffix.lower()]
