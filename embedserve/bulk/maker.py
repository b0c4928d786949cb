"""A chunk and its vectors -> a part of the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedserve.arrays.types import Floats
from embedserve.bulk.chunks import BadRow, Chunk, Problem
from embedserve.bulk.outputs import Output, Vectors
from embedserve.bulk.parts import Part
from embedserve.bulk.pipeline import EmbeddedChunk

# What to do with a bad row: leave it out, keep it without a vector, or end the job.
ON_ERROR = ("skip", "null", "stop")
DTYPES = ("float32", "float16")


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes parts of one output, in this process or on a node of a cluster."""

    output: Output
    dtype: np.dtype[Any]
    on_error: str

    def part(self, chunk: Chunk, embedded: EmbeddedChunk) -> Part:
        """The part of one chunk. `stop` is like `null` here: the caller looks at `bad` and ends."""
        vectors, too_large = _cast(embedded.vectors, self.dtype)
        problems = {**chunk.problems, **embedded.problems, **too_large}
        rows: Sequence[int] = range(len(chunk.texts))
        if self.on_error == "skip" and problems:
            rows = [row for row in rows if row not in problems]
            vectors = vectors[rows]
        payload = self.output.payload(chunk.columns, rows, vectors)
        return Part(
            cut=chunk.cut,
            rows=len(rows),
            bad=tuple(BadRow(chunk.lines[i], *problem) for i, problem in sorted(problems.items())),
            tokens=embedded.tokens,
            truncated=embedded.truncated,
            size=len(payload),
            payload=payload,
        )


def _cast(vectors: Floats, dtype: np.dtype[Any]) -> tuple[Vectors, dict[int, Problem]]:
    """Cast the vectors to `dtype`. A row that overflows becomes NaN and gets a problem."""
    with np.errstate(over="ignore"):
        cast = vectors.astype(dtype, copy=False)
    rows = np.flatnonzero(np.isinf(cast).any(axis=1))
    if len(rows):
        cast[rows] = np.nan
    problem = Problem("non_finite_embedding", f"the vector does not fit into {dtype.name}")
    return cast, dict.fromkeys(rows.tolist(), problem)
