"""Which reader reads a file: chosen by its suffix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from embedserve.bulk.chunks import Reader, Selection
from embedserve.bulk.delimited import Delimited, TabSeparated
from embedserve.bulk.jsonl import JsonLinesReader
from embedserve.bulk.parquet import ParquetReader
from embedserve.errors import Exit, StartupError
from embedserve.system import regular_file

INPUTS: Mapping[str, Callable[[Path, Selection, int], Reader]] = {
    ".jsonl": JsonLinesReader,
    ".ndjson": JsonLinesReader,
    ".csv": Delimited,
    ".tsv": TabSeparated,
    ".parquet": ParquetReader,
}


def open_input(path: Path, selection: Selection, chunk_rows: int) -> Reader:
    """Open a file of texts. StartupError if it is missing, or its suffix is unknown."""
    if path.suffix.lower() not in INPUTS:
        raise StartupError(
            f"{path}: an input's name must end in one of {', '.join(INPUTS)}", Exit.USAGE
        )
    try:
        regular_file.check(path)
        return INPUTS[path.suffix.lower()](path, selection, chunk_rows)
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}", Exit.NOINPUT) from error
