"""A chunk, the unit of resume: where it lies in the input, and its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

T = TypeVar("T")

# A chunk ends after this many rows (--chunk-rows) or bytes, whichever comes first: a few chunks are
# in memory at a time.
CHUNK_ROWS = 4096
CHUNK_BYTES = 8 * 2**20
# A longer line or CSV row is a bad row: no row may take all the memory.
MAX_LINE = 16 * 2**20

# code -> what is wrong with a row that gets no vector. docs/bulk.md's table is made from it.
BAD_ROWS: Mapping[str, str] = {
    "invalid_json": "the line is not JSON in UTF-8, or is nested deeper than 100",
    "invalid_csv": "the row is not CSV, or has more or fewer fields than the header",
    "invalid_utf8": "the row is not UTF-8",
    "invalid_value": "a kept column has a value that is invalid for its type (Parquet)",
    "line_too_long": "the line or row has more than 16 MiB",
    "invalid_type": "the line is not an object, or the text is not a string",
    "missing_column": "the row lacks the text's column, or has null in it",
    "column_exists": "the row already has a column with the vector's name",
    "empty_input": "the text is empty, or has no token of this model (zeros of static embeddings)",
    "input_too_long": "the text has more than 250 characters per token of the model's limit",
    "context_length_exceeded": "the text has too many tokens, and --truncate error was asked for",
    "inference_failed": "the forward pass of this text alone failed",
    "non_finite_embedding": "the vector has a NaN or an infinity, or only zeros",
}


class Problem(NamedTuple):
    """Why a row gets no vector: a key of BAD_ROWS, and what was found."""

    code: str
    message: str


class BadRow(NamedTuple):
    """A row without a vector. `line` counts lines of the input (rows of Parquet) from 1."""

    line: int
    code: str
    message: str


class Cut(NamedTuple):
    """Where a chunk lies: from `start` to `end` in bytes of the input, or in rows of Parquet.

    `line` is the number of its first line, `next_line` that of the line after its last; from 1.
    """

    number: int
    start: int
    end: int
    line: int
    next_line: int
    rows: int


class Columns(Protocol):
    """The columns of a chunk's rows that are kept beside the vectors."""

    def objects(self, rows: Sequence[int]) -> list[bytes]:
        """Each of these rows as a JSON object."""

    def table(self, rows: Sequence[int]) -> Any:
        """These rows as a pyarrow.Table."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of the input: line, text (None if the row is bad) and kept columns of each."""

    cut: Cut
    lines: Sequence[int]
    texts: list[str | None]
    problems: Mapping[int, Problem]  # by index in the chunk
    columns: Columns


class Reader(Protocol):
    """An input of one format. Positions count up to `end`; `rows` is None if it is unknown."""

    @property
    def end(self) -> int: ...

    @property
    def rows(self) -> int | None: ...

    def cuts(self, after: Cut | None) -> Iterator[Cut]:
        """Where the chunks after `after` lie; does not depend on what was read before."""

    def read(self, cut: Cut) -> Chunk:
        """Read one chunk. Cheap when it follows the chunk read last."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The columns: the text, the vector, and those kept: `keep` (None: all) without `drop`."""

    text: str = "text"
    vector: str = "embedding"
    keep: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()

    @property
    def keeps_all(self) -> bool:
        return self.keep is None and not self.drop

    def kept(self, names: Iterable[str]) -> list[str]:
        """The columns among `names` that are kept."""
        return [n for n in names if (self.keep is None or n in self.keep) and n not in self.drop]


class Record(NamedTuple, Generic[T]):
    """A row of a file of lines: its first line, the line of the next row, and its end in bytes."""

    value: T
    line: int
    next_line: int
    end: int


def cut(records: Iterable[Record[Any]], number: int, start: int, most_rows: int) -> Iterator[Cut]:
    """Cut records that begin at `start` into chunks, numbered from `number`."""
    rows, first = 0, 0
    record: Record[Any] | None = None
    for record in records:
        if not rows:
            first = record.line
        rows += 1
        if rows == most_rows or record.end - start >= CHUNK_BYTES:
            yield Cut(number, start, record.end, first, record.next_line, rows)
            number, start, rows = number + 1, record.end, 0
    if rows and record is not None:
        yield Cut(number, start, record.end, first, record.next_line, rows)


def text_of(value: object, column: str) -> str | Problem:
    """The text in a column of a row, or why there is none."""
    if isinstance(value, str):
        return value or Problem("empty_input", f"{column} is an empty string")
    if value is None:
        return Problem("missing_column", f"{column} is null")
    return Problem("invalid_type", f"{column} is not a string")


def split(
    found: Iterable[str | Problem],
) -> tuple[list[str | None], dict[int, Problem]]:
    """Texts in order, None for each bad one, and the problems by index."""
    texts: list[str | None] = []
    problems: dict[int, Problem] = {}
    for place, text in enumerate(found):
        if isinstance(text, Problem):
            problems[place] = text
        texts.append(None if isinstance(text, Problem) else text)
    return texts, problems
