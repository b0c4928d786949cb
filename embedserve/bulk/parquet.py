"""Parquet in, by batches of rows: its columns are kept with their types."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from embedserve.bulk import arrow
from embedserve.bulk.chunks import (
    CHUNK_BYTES,
    Chunk,
    Cut,
    Problem,
    Selection,
    split,
    text_of,
)
from embedserve.bulk.delimited import check_names
from embedserve.errors import Exit, StartupError


class Parquet:
    """A file of row groups. Rows are counted, from 1 in messages."""

    def __init__(self, path: Path, selection: Selection, chunk_rows: int) -> None:
        arrow.load()
        self._path, self._selection = path, selection
        self._file = _open(path)
        self._schema = self._file.schema_arrow
        check_names(self._schema.names, selection, path)
        _check_text(self._schema.field(selection.text).type, selection.text, path)
        metadata = self._file.metadata
        self.rows: int | None = metadata.num_rows
        self.end: int = metadata.num_rows
        self._chunk_rows = _chunk_rows(metadata, chunk_rows)
        self._kept = selection.kept(self._schema.names)
        self._columns = list(dict.fromkeys([*self._kept, selection.text]))
        self._batches: Iterator[Any] = iter(())
        self._place = -1  # the row that comes next of them; none has been asked for

    def cuts(self, after: Cut | None) -> Iterator[Cut]:
        first = after.end if after else 0
        number = after.number + 1 if after else 0
        for i, start in enumerate(range(first, self.end, self._chunk_rows), number):
            end = min(start + self._chunk_rows, self.end)
            yield Cut(i, start, end, start + 1, end + 1, end - start)

    def read(self, cut: Cut) -> Chunk:
        pa = arrow.load()
        try:
            if cut.start != self._place:
                self._seek(cut.start)
            table = pa.Table.from_batches(list(self._take(cut.end - cut.start)))
        except (OSError, pa.ArrowException) as error:
            raise StartupError(f"{self._path}: cannot be read: {error}", Exit.DATAERR) from error
        texts, problems = split(self._texts(table.column(self._selection.text)))
        columns = ArrowColumns(table.select(self._kept))
        return Chunk(cut, range(cut.line, cut.next_line), texts, problems, columns)

    def _texts(self, column: Any) -> Iterator[str | Problem]:
        pa = arrow.load()
        name = self._selection.text
        for value in column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist():
            try:
                yield text_of(None if value is None else value.decode("utf-8"), name)
            except UnicodeDecodeError:
                yield Problem("invalid_utf8", f"{name} is not UTF-8")

    def _seek(self, place: int) -> None:
        """Stand before a row: whole groups before it are passed over unread."""
        self._place = group = 0
        while self._place + (rows := self._file.metadata.row_group(group).num_rows) <= place:
            self._place += rows
            group += 1
        self._batches = self._file.iter_batches(
            self._chunk_rows,
            row_groups=list(range(group, self._file.num_row_groups)),
            columns=self._columns,
        )
        for _ in self._take(place - self._place):
            pass

    def _take(self, rows: int) -> Iterator[Any]:
        """Batches of the next `rows` rows."""
        while rows:
            batch = next(self._batches)
            if len(batch) > rows:
                self._batches = itertools.chain([batch.slice(rows)], self._batches)
                batch = batch.slice(0, rows)
            rows -= len(batch)
            self._place += len(batch)
            yield batch


def _open(path: Path) -> Any:
    pa, parquet = arrow.load(), arrow.load("pyarrow.parquet")
    path.stat()  # what is not there is no damaged file
    try:
        return parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise StartupError(f"{path}: cannot be read as Parquet: {error}", Exit.DATAERR) from error


def _check_text(kind: Any, column: str, path: Path) -> None:
    types = arrow.load("pyarrow.types")
    kind = kind.value_type if types.is_dictionary(kind) else kind
    strings = (types.is_string, types.is_large_string, types.is_string_view)
    if not any(is_string(kind) for is_string in strings):
        raise StartupError(f"{path}: {column} has the type {kind}; strings are needed")


def _chunk_rows(metadata: Any, most: int) -> int:
    """Rows of a chunk: fewer than `most` where so many would have more than CHUNK_BYTES."""
    groups = range(metadata.num_row_groups)
    size = sum(metadata.row_group(group).total_byte_size for group in groups)
    return max(1, min(most, CHUNK_BYTES * metadata.num_rows // size)) if size else most


class ArrowColumns:
    """Columns of a table."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def objects(self, rows: Sequence[int]) -> list[bytes]:
        table = self.table(rows)
        if not table.num_columns:
            return [b"{}"] * len(rows)
        names, columns = table.column_names, [_plain(column) for column in table.columns]
        listed = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return [orjson.dumps(row, _json, orjson.OPT_NON_STR_KEYS) for row in listed]

    def table(self, rows: Sequence[int]) -> Any:
        if not self._table.num_columns:
            return arrow.without_columns(len(rows))
        if len(rows) == len(self._table):
            return self._table
        return self._table.take(list(rows))


def _plain(column: Any) -> list[Any]:
    """A column's values as Python has them; times as text, which Python has without nanoseconds."""
    pa, types = arrow.load(), arrow.load("pyarrow.types")
    if types.is_timestamp(column.type) or types.is_time(column.type):
        column = column.cast(pa.string())
    values: list[Any] = column.to_pylist()
    return values


def _json(value: object) -> str:
    """What JSON has no form for: binary as base64, decimals and others as text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
