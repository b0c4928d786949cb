"""The questions to sentence-transformers about a model, and its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedserve.arrays.types import Floats, Ints
from embedserve.errors import Exit, StartupError
from export.steps import Nurseries, StepProcess

MODULE = "export.reference_step"
TOKENIZER, ARRAYS = "reference-tokenizer.json", "reference.npz"


@dataclass(frozen=True, slots=True)
class Case:
    """A text, and the prompt that is put before it."""

    text: str
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class CaseAnswer:
    """What the reference says about a case: ids (t,) and one vector per dimension (d,)."""

    ids: Ints
    vectors: tuple[Floats, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """All that the reference said: the answers to the cases, and ids of further texts."""

    cases: tuple[CaseAnswer, ...]
    ids: tuple[Ints, ...]
    tokenizer: Path
    versions: Mapping[str, str]
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Question:
    """The questions to the reference: see reference_step.run.

    `added` are finishing steps (kind, eps) that the card asks for and the files do not have.
    `limit` is the files' own in tokens; `max_tokens` is the one in force, at most `limit`.
    """

    directory: Path
    scratch: Path
    limit: int | None
    max_tokens: int
    cases: Sequence[Case]
    texts: Sequence[str]
    matryoshka: Sequence[int]
    added: Sequence[tuple[str, float]]

    def start(self, nurseries: Nurseries) -> StepProcess:
        """Start asking, in another process."""
        job = {
            "directory": str(self.directory),
            "scratch": str(self.scratch),
            "limit": self.limit,
            "max_tokens": self.max_tokens,
            "cases": [[case.text, case.prompt] for case in self.cases],
            "texts": list(self.texts),
            "matryoshka": list(self.matryoshka),
            "added": [list(step) for step in self.added],
        }
        return nurseries.start(MODULE, job, self.scratch)

    def read(self, step: StepProcess) -> Answers:
        """Wait for the answers. StartupError if sentence-transformers cannot run the model."""
        try:
            result = step.result()
        except RuntimeError as error:
            raise StartupError(
                f"{self.directory}: sentence-transformers cannot run it: {error}", Exit.DATAERR
            ) from error
        with np.load(self.scratch / ARRAYS, allow_pickle=False) as arrays:
            ids = np.split(arrays["ids"], np.cumsum(arrays["lengths"])[:-1])
            sizes = [key for key in arrays if key.startswith("vectors-")]
            vectors = [arrays[f"vectors-{i}"] for i in range(len(sizes))]
        count = len(self.cases)
        rows = [tuple(matrix[i] for matrix in vectors) for i in range(count)]
        return Answers(
            cases=tuple(map(CaseAnswer, ids[:count], rows)),
            ids=tuple(ids[count:]),
            tokenizer=self.scratch / TOKENIZER,
            versions=result["versions"],
            peak_bytes=result["peak_bytes"],
        )
