"""Reads CSV (RFC 4180, UTF-8): a header, then rows whose fields stay strings."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from embedserve.bulk import arrow
from embedserve.bulk.chunks import (
    MAX_LINE,
    Chunk,
    Cut,
    Problem,
    Record,
    Selection,
    cut,
    split,
    text_of,
)
from embedserve.bulk.jsonl import lines
from embedserve.errors import Exit, StartupError


class _TooLongError(csv.Error):
    """A row is longer than MAX_LINE bytes."""


class _Row(NamedTuple):
    fields: list[str]
    problem: Problem | None


class _Feed:
    """Gives lines to the csv module, and records where the current row begins and ends.

    Not a generator: it can give the next line after it has raised an error.
    """

    def __init__(self, file: BinaryIO, start: int, line: int) -> None:
        self._lines = lines(file, start, line)
        self._begin = self.end = start
        self.first, self.next_line = 0, line
        self.is_utf8 = True

    def begin(self) -> None:
        """Start a row at the next line."""
        self._begin, self.first, self.is_utf8 = self.end, 0, True

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.first = self.first or line.number
        self.next_line, self.end = line.number + 1, line.end
        if line.content is None or line.end - self._begin > MAX_LINE:
            raise _TooLongError(f"more than {MAX_LINE} bytes")
        try:
            return line.content.decode("utf-8")
        except UnicodeDecodeError:
            self.is_utf8 = False
            return line.content.decode("utf-8", "replace")


class Delimited:
    """A CSV file. Empty lines are not rows."""

    rows = None
    delimiter = ","

    def __init__(self, path: Path, selection: Selection, chunk_rows: int) -> None:
        csv.field_size_limit(MAX_LINE)
        self._path, self._selection, self._chunk_rows = path, selection, chunk_rows
        self.end = path.stat().st_size
        header = next(self._records(0, 1), None)
        self._names = _check_header(header, selection, path)
        assert header is not None
        self._first = header
        self._text = self._names.index(selection.text)

    def cuts(self, after: Cut | None) -> Iterator[Cut]:
        start = after.end if after else self._first.end
        line = after.next_line if after else self._first.next_line
        number = after.number + 1 if after else 0
        return cut(self._records(start, line), number, start, self._chunk_rows)

    def read(self, cut: Cut) -> Chunk:
        records = []
        for record in self._records(cut.start, cut.line):
            records.append(record)
            if record.end >= cut.end:
                break
        texts, problems = split(self._parse(record.value) for record in records)
        nothing = [""] * len(self._names)
        rows = [
            # A row with the wrong number of fields gets empty ones.
            record.value.fields if len(record.value.fields) == len(nothing) else nothing
            for record in records
        ]
        columns = StringColumns(self._names, rows, self._selection)
        return Chunk(cut, [record.line for record in records], texts, problems, columns)

    def _parse(self, row: _Row) -> str | Problem:
        if row.problem is not None:
            return row.problem
        if len(row.fields) != len(self._names):
            found = f"{len(row.fields)} fields, the header has {len(self._names)}"
            return Problem("invalid_csv", found)
        return text_of(row.fields[self._text], self._selection.text)

    def _records(self, start: int, line: int) -> Iterator[Record[_Row]]:
        with self._path.open("rb") as file:
            feed = _Feed(file, start, line)
            # Strict: malformed CSV is reported, not guessed at.
            rows = csv.reader(feed, delimiter=self.delimiter, strict=True)
            while True:
                feed.begin()
                row = _next(rows, feed)
                if row is None:
                    return
                if row.fields or row.problem:
                    yield Record(row, feed.first, feed.next_line, feed.end)


class TabSeparated(Delimited):
    """Like CSV, but with tabs."""

    delimiter = "\t"


def _next(rows: Iterator[list[str]], feed: _Feed) -> _Row | None:
    try:
        fields = next(rows)
    except StopIteration:
        return None
    except _TooLongError as error:
        return _Row([], Problem("line_too_long", str(error)))
    except csv.Error as error:
        return _Row([], Problem("invalid_csv", str(error)))
    if feed.is_utf8:
        return _Row(fields, None)
    return _Row(fields, Problem("invalid_utf8", "the row is not UTF-8"))


def _check_header(header: Record[_Row] | None, selection: Selection, path: Path) -> list[str]:
    if header is None or header.value.problem is not None:
        raise StartupError(f"{path}: has no CSV header in UTF-8", Exit.DATAERR)
    names = header.value.fields
    check_names(names, selection, path)
    return names


def check_names(names: Sequence[str], selection: Selection, path: Path) -> None:
    """StartupError if the file's columns do not fit the options."""
    known = ", ".join(names[:50])
    if len(set(names)) < len(names):
        raise StartupError(f"{path}: two columns have the same name; found: {known}", Exit.DATAERR)
    wanted = {
        "--text-column": (selection.text,),
        "--keep": selection.keep,
        "--drop": selection.drop,
    }
    for option, asked in wanted.items():
        for name in asked or ():
            if name not in names:
                raise StartupError(f"{path}: {option} {name}: no such column; one of {known}")
    if selection.vector in selection.kept(names):
        raise StartupError(
            f"{path}: already has a column {selection.vector}; name another with --vector-column, "
            f"or leave it out with --drop {selection.vector}"
        )


class StringColumns:
    """Rows of strings under the header's names."""

    def __init__(
        self, names: Sequence[str], rows: Sequence[Sequence[str]], selection: Selection
    ) -> None:
        kept = set(selection.kept(names))
        self._columns = [(i, name) for i, name in enumerate(names) if name in kept]
        self._rows = rows

    def objects(self, rows: Sequence[int]) -> list[bytes]:
        return [orjson.dumps({n: self._rows[row][i] for i, n in self._columns}) for row in rows]

    def table(self, rows: Sequence[int]) -> Any:
        return arrow.table_of_strings(
            {name: [self._rows[row][i] for row in rows] for i, name in self._columns}, len(rows)
        )
