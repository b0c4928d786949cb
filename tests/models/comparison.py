"""A published artifact through embedserve's own code, against what the reference has answered."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedserve import artifact
from embedserve.arrays.batch import pad
from embedserve.arrays.types import Floats, Ints
from embedserve.artifact import Manifest
from embedserve.model.onnx_backend import OnnxBackend
from embedserve.model.tokenizer import Tokenizer

TOLERANCE = 1e-5
_PASS_TOKENS = 8192  # of a mixed batch here, padding included


class WrongError(Exception):
    """The artifact is not the model, or its vectors depend on their company."""


@dataclass(frozen=True, slots=True)
class Case:
    """A text, and the prompt put before it."""

    text: str
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """How near the artifact is: the largest difference of a component, the least cosine."""

    max_difference: float
    min_cosine: float
    texts: int
    longest: int


def compare(directory: Path, manifest: Manifest, cases: Sequence[Case], answers: Path) -> Found:
    """Compare ids and vectors; WrongError names the first text that differs."""
    with np.load(answers, allow_pickle=False) as arrays:
        ids = np.split(arrays["ids"], np.cumsum(arrays["lengths"])[:-1])
        expected: Floats = arrays["vectors"]
    sequences = _ids(Tokenizer(directory, manifest), cases, ids)
    backend = OnnxBackend(directory, manifest, threads=len(os.sched_getaffinity(0)))
    rows = np.concatenate([_run(backend, manifest, [one]) for one in sequences])
    difference = np.abs(rows - expected).max(axis=1)
    for i in np.flatnonzero(~(difference <= TOLERANCE))[:1]:  # a NaN is no pass
        raise WrongError(f"{_shown(cases[i])}: differs by {difference[i]:.1e}")
    _check_company(backend, manifest, sequences, rows, cases)
    exact, theirs = rows.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (exact * theirs).sum(axis=1) / np.maximum(norms, 1e-30)
    return Found(
        float(difference.max()), float(cosines.min()), len(cases), max(map(len, sequences))
    )


def _ids(tokenizer: Tokenizer, cases: Sequence[Case], expected: Sequence[Ints]) -> list[Ints]:
    sequences = []
    for case, theirs in zip(cases, expected, strict=True):
        ids = tokenizer.encode([case.text], case.prompt).sequences[0]
        if not np.array_equal(ids, theirs):
            raise WrongError(f"{_shown(case)}: ids {ids[:9].tolist()}, expected {theirs[:9]}")
        sequences.append(ids)
    return sequences


def _run(
    backend: OnnxBackend, manifest: Manifest, sequences: list[Ints], alone: bool = False
) -> Floats:
    return backend.embed(pad(sequences, manifest.pad_token_id, manifest.padding_side), alone=alone)


def _check_company(
    backend: OnnxBackend,
    manifest: Manifest,
    sequences: Sequence[Ints],
    rows: Floats,
    cases: Sequence[Case],
) -> None:
    """The same bits on all cores, in mixed batches, and among texts of one length."""
    for i in range(0, len(sequences), 9):
        if not np.array_equal(_run(backend, manifest, [sequences[i]], alone=True)[0], rows[i]):
            raise WrongError(f"{_shown(cases[i])}: other bits on all cores")
    passes = list(_mixed(sequences, manifest.masked_up_to))
    passes += _equal_lengths(sequences)
    for members, batch in passes:
        found = _run(backend, manifest, batch)
        for i, row in zip(members, found, strict=False):
            if not np.array_equal(row, rows[i]):
                difference = np.abs(row - rows[i]).max()
                raise WrongError(
                    f"{_shown(cases[i])}: other bits ({difference:.1e}) in a pass of {len(batch)}"
                )


def _mixed(
    sequences: Sequence[Ints], masked_up_to: int | None
) -> Iterator[tuple[list[int], list[Ints]]]:
    """Batches of 2 to 16 in any order, of texts that may be padded; each text is in two."""
    draw = random.Random(7)  # noqa: S311  # the same batches in every run
    short = [i for i, ids in enumerate(sequences) if len(ids) <= (masked_up_to or len(ids))]
    for _ in range(2):
        draw.shuffle(short)
        rest = list(short)
        while rest:
            members = [rest.pop() for _ in range(min(draw.randint(2, 16), len(rest)))]
            width = max(len(sequences[i]) for i in members)
            members = members[: max(1, _PASS_TOKENS // width)]
            yield members, [sequences[i] for i in members]


def _equal_lengths(sequences: Sequence[Ints]) -> Iterator[tuple[list[int], list[Ints]]]:
    """Each longer text between two others of its length: its own ids, turned around."""
    for i, ids in enumerate(sequences):
        if len(ids) > 100:
            other = ids.copy()
            other[1:-1] = ids[-2:0:-1]
            yield [i], [ids, other, other]


def _shown(case: Case) -> str:
    return repr((case.prompt + case.text)[:40])


def read(directory: Path) -> Manifest:
    """The manifest of a published artifact, its files checked."""
    manifest = artifact.read(directory)
    artifact.check_files(directory, manifest)
    return manifest
