"""Reads JSON Lines: one object per line; its other keys are kept byte for byte."""

from __future__ import annotations

import json
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

# Deeper nesting is a bad row: orjson writes 254 levels, and readers have limits of their own.
MOST_DEPTH = 100
BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line, its number and the position after it; content is None if longer than MAX_LINE."""

    number: int
    end: int
    content: bytes | None


def lines(file: BinaryIO, start: int, number: int) -> Iterator[Line]:
    """Read lines from byte `start` on. Memory is bounded, however long they are."""
    end = file.seek(start)
    while content := file.readline(MAX_LINE + 1):
        end += len(content)
        if len(content) <= MAX_LINE or content.endswith(b"\n"):
            first = end == len(content)
            yield Line(number, end, content.removeprefix(BOM) if first else content)
        else:
            while rest := file.readline(MAX_LINE):
                end += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield Line(number, end, None)
        number += 1


class JsonLinesReader:
    """A file with one object per line. Blank lines are not rows."""

    rows = None

    def __init__(self, path: Path, selection: Selection, chunk_rows: int) -> None:
        self._path, self._selection, self._chunk_rows = path, selection, chunk_rows
        self.end = path.stat().st_size

    def cuts(self, after: Cut | None) -> Iterator[Cut]:
        start, line = (after.end, after.next_line) if after else (0, 1)
        number = after.number + 1 if after else 0
        return cut(self._records(start, line), number, start, self._chunk_rows)

    def read(self, cut: Cut) -> Chunk:
        records = []
        for record in self._records(cut.start, cut.line):
            records.append(record)
            if record.end >= cut.end:
                break
        found = [_parse(record.value, self._selection) for record in records]
        texts, problems = split(text for text, _ in found)
        objects = [content for _, content in found]
        columns = JsonColumns(objects, self._selection)
        return Chunk(cut, [record.line for record in records], texts, problems, columns)

    def _records(self, start: int, line: int) -> Iterator[Record[bytes | None]]:
        with self._path.open("rb") as file:
            for number, end, content in lines(file, start, line):
                if content is None or content.strip():
                    yield Record(content, number, number + 1, end)


def _parse(line: bytes | None, selection: Selection) -> tuple[str | Problem, bytes]:
    """The text or the problem, and the object's bytes: an empty object if there is none."""
    if line is None:
        return Problem("line_too_long", f"more than {MAX_LINE} bytes"), b"{}"
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Problem("invalid_json", f"not JSON in UTF-8, at character {error.pos}"), b"{}"
    if not isinstance(value, dict):
        return Problem("invalid_type", "the line is not an object"), b"{}"
    if line.count(b"[") + line.count(b"{") > MOST_DEPTH and is_deep(value, MOST_DEPTH):
        return Problem("invalid_json", f"nested deeper than {MOST_DEPTH}"), b"{}"
    if selection.vector in value and selection.kept([selection.vector]):
        kept = {name: content for name, content in value.items() if name != selection.vector}
        problem = Problem("column_exists", f"the row already has {selection.vector}")
        return problem, orjson.dumps(kept)
    if selection.text not in value:
        return Problem("missing_column", f"the row has no {selection.text}"), line.strip()
    return text_of(value[selection.text], selection.text), line.strip()


def is_deep(value: object, most: int) -> bool:
    """Whether arrays and objects are nested deeper than `most`."""
    level = [value]
    for _ in range(most + 1):
        nested = [v for v in level if isinstance(v, dict | list)]
        level = [m for v in nested for m in (v.values() if isinstance(v, dict) else v)]
        if not nested:
            return False
    return True


class JsonColumns:
    """Objects as they are in the input."""

    def __init__(self, objects: list[bytes], selection: Selection) -> None:
        self._objects, self._selection = objects, selection

    def objects(self, rows: Sequence[int]) -> list[bytes]:
        if self._selection.keeps_all:
            return [self._objects[i] for i in rows]
        return [self._filtered(self._objects[i]) for i in rows]

    def table(self, rows: Sequence[int]) -> Any:
        return arrow.table_of_objects(self.objects(rows))

    def _filtered(self, content: bytes) -> bytes:
        # Not orjson: integers may have any number of digits.
        value = json.loads(content)
        kept = {name: value[name] for name in self._selection.kept(value)}
        return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()
