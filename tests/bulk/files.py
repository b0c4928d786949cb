"""Files of texts for the bulk tests, and the command on them, in this environment."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedserve.bulk.chunks import Chunk, Cut, Reader, Selection
from embedserve.bulk.inputs import open_input
from tests.conftest import ROOT, environment

Row = Mapping[str, Any]
SELECTION = Selection()


def write(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows of the same columns in the format of the name."""
    WRITERS[path.suffix](path, rows)
    return path


def _jsonl(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _delimited(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO(newline="")
    names = list(rows[0]) if rows else ["text"]
    table = csv.DictWriter(text, names, delimiter="\t" if path.suffix == ".tsv" else ",")
    table.writeheader()
    table.writerows(rows)
    path.write_bytes(text.getvalue().encode())


def _parquet(path: Path, rows: Sequence[Row]) -> None:
    names = list(rows[0]) if rows else ["text"]
    columns = {name: pa.array([row[name] for row in rows]) for name in names}
    pq.write_table(pa.table(columns), path, row_group_size=7)


WRITERS = {".jsonl": _jsonl, ".csv": _delimited, ".tsv": _delimited, ".parquet": _parquet}


def reader(path: Path, chunk_rows: int = 4, selection: Selection = SELECTION) -> Reader:
    """Open a file."""
    return open_input(path, selection, chunk_rows)


def chunks(found: Reader, after: Cut | None = None) -> list[Chunk]:
    """Read every chunk after one."""
    return [found.read(cut) for cut in found.cuts(after)]


def texts(found: Iterable[Chunk]) -> list[str | None]:
    """The texts of all rows."""
    return [text for chunk in found for text in chunk.texts]


def problems(found: Iterable[Chunk]) -> dict[int, str]:
    """Line -> code of every bad row."""
    return {
        chunk.lines[place]: problem.code
        for chunk in found
        for place, problem in chunk.problems.items()
    }


def command(
    *arguments: str | Path, python: Path | str = sys.executable, module: str = "embedserve"
) -> list[str | Path]:
    """The command line of `embedserve embed`, of this tree."""
    return [python, "-m", module, "embed", *arguments]


def embed(
    *arguments: str | Path, python: Path | str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run `embedserve embed` to its end."""
    return subprocess.run(
        command(*arguments, python=python),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
