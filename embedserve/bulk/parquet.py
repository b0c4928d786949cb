"""Reads Parquet in batches of rows; columns keep their types."""

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
from embedserve.bulk.jsonl import MOST_DEPTH
from embedserve.errors import Exit, StartupError
from embedserve.escapes import shortened


class ParquetReader:
    """A Parquet file. Positions are rows from 0; messages count them from 1."""

    def __init__(self, path: Path, selection: Selection, chunk_rows: int) -> None:
        arrow.load()
        self._path, self._selection = path, selection
        self._file = _open(path)
        with arrow.translated(str(path)):
            self._schema = self._file.schema_arrow
            metadata = self._file.metadata
            self._chunk_rows = _chunk_rows(metadata, chunk_rows)
        check_names(self._schema.names, selection, path)
        _check_text(self._schema.field(selection.text).type, selection.text, path)
        self.rows: int | None = metadata.num_rows
        self.end: int = metadata.num_rows
        self._kept = selection.kept(self._schema.names)
        for name in self._kept:
            if arrow.depth(self._schema.field(name).type) > MOST_DEPTH:
                raise StartupError(
                    f"{path}: {name} is nested deeper than {MOST_DEPTH}; leave it out with --drop",
                    Exit.DATAERR,
                )
        self._columns = list(dict.fromkeys([*self._kept, selection.text]))
        self._batches: Iterator[Any] = iter(())
        self._place = -1  # the row that `_batches` gives next; -1: nothing was read yet

    def cuts(self, after: Cut | None) -> Iterator[Cut]:
        first = after.end if after else 0
        number = after.number + 1 if after else 0
        for i, start in enumerate(range(first, self.end, self._chunk_rows), number):
            end = min(start + self._chunk_rows, self.end)
            yield Cut(i, start, end, start + 1, end + 1, end - start)

    def read(self, cut: Cut) -> Chunk:
        pa = arrow.load()
        with arrow.translated(f"{self._path}: rows {cut.line} to {cut.next_line - 1}"):
            if cut.start != self._place:
                self._seek(cut.start)
            table = pa.Table.from_batches(list(self._take(cut.end - cut.start)))
            texts, problems = split(self._texts(table.column(self._selection.text)))
            kept, wrong = _sound(table.select(self._kept))
        problems = {**wrong, **problems}
        texts = [None if place in problems else text for place, text in enumerate(texts)]
        return Chunk(cut, range(cut.line, cut.next_line), texts, problems, ArrowColumns(kept))

    def _texts(self, column: Any) -> Iterator[str | Problem]:
        pa = arrow.load()
        name = self._selection.text
        for value in column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist():
            try:
                yield text_of(None if value is None else value.decode("utf-8"), name)
            except UnicodeDecodeError:
                yield Problem("invalid_utf8", f"{name} is not UTF-8")

    def _seek(self, place: int) -> None:
        """Move to a row. Whole row groups before it are skipped unread."""
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
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError("the file has fewer rows than its footer says")
            if len(batch) > rows:
                self._batches = itertools.chain([batch.slice(rows)], self._batches)
                batch = batch.slice(0, rows)
            rows -= len(batch)
            self._place += len(batch)
            yield batch


def _open(path: Path) -> Any:
    parquet = arrow.load("pyarrow.parquet")
    path.stat()  # a missing file is an OSError, not a damaged file
    try:
        return parquet.ParquetFile(path)
    except MemoryError:
        raise
    except Exception as error:  # pyarrow's own, or any of Python's
        raise StartupError(f"{path}: cannot be read as Parquet: {error}", Exit.DATAERR) from error


def _check_text(kind: Any, column: str, path: Path) -> None:
    types = arrow.load("pyarrow.types")
    kind = kind.value_type if types.is_dictionary(kind) else kind
    strings = (types.is_string, types.is_large_string, types.is_string_view)
    if not any(is_string(kind) for is_string in strings):
        raise StartupError(f"{path}: {column} has the type {kind}; strings are needed")


def _chunk_rows(metadata: Any, most: int) -> int:
    """Rows per chunk: `most`, or fewer to keep a chunk within CHUNK_BYTES.

    ValueError if the footer contradicts itself.
    """
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    rows, size = (
        [group.num_rows for group in groups],
        sum(group.total_byte_size for group in groups),
    )
    if size < 0 or min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise ValueError(f"row groups of {rows[:10]} rows, but {metadata.num_rows} in all")
    return max(1, min(most, CHUNK_BYTES * metadata.num_rows // size)) if size else most


class ArrowColumns:
    """Columns of a table."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def objects(self, rows: Sequence[int]) -> list[bytes]:
        table = self.table(rows)
        if not table.num_columns:
            return [b"{}"] * len(rows)
        names = table.column_names
        columns = [arrow.values(column) for column in table.columns]
        listed = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return [orjson.dumps(row, _json, orjson.OPT_NON_STR_KEYS) for row in listed]

    def table(self, rows: Sequence[int]) -> Any:
        if not self._table.num_columns:
            return arrow.without_columns(len(rows))
        if len(rows) == len(self._table):
            return self._table
        return self._table.take(list(rows))


def _sound(table: Any) -> tuple[Any, dict[int, Problem]]:
    """Replace values that are invalid for their column's type by null; return their rows too."""
    problems: dict[int, Problem] = {}
    for number, name in enumerate(table.column_names):
        bad = arrow.unsound(table.column(number))
        if bad:
            places = [None if place in bad else place for place in range(len(table))]
            column = arrow.decoded(table.column(number)).take(arrow.load().array(places))
            table = table.set_column(number, name, column)
            said = shortened(f"{name} has a value that is invalid for its type: ", 200)
            found = {place: Problem("invalid_value", said + why) for place, why in bad.items()}
            problems = {**found, **problems}
    return table, problems


def _json(value: object) -> str:
    """Values that JSON does not have: binary as base64, decimals and others as text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
