"""Compares the artifact, run by embedserve's own code, with sentence-transformers: certificate."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from embedserve import artifact
from embedserve.arrays import finishing
from embedserve.arrays.types import Floats, Ints
from embedserve.artifact import GRAPH, WEIGHTS, Golden, Manifest, Parity
from embedserve.errors import Exit, StartupError
from embedserve.model.encoder import Encoder
from embedserve.model.onnx_backend import OnnxBackend
from embedserve.model.tokenizer import Tokenizer
from export.facts import Facts
from export.reference import Answers, Case, CaseAnswer
from export.texts import GOLDEN, TEXTS, past_limit

# What checking golden vectors may cost at start, in bytes of graph times tokens: 0.2 s
# where it was measured (all-MiniLM-L6-v2: 150 tokens in 0.07 s; nomic: 255 tokens in 0.85 s).
_GOLDEN_WORK = 28_000_000_000

# Tokens of a padded batch here, and the longest text in one: as in a server's passes.
_BATCH_TOKENS = 4096
_BATCH_LONGEST = 512


def cases(facts: Facts, longest: int) -> list[Case]:
    """All texts without a prompt, one of more than `longest` tokens, and some with each prompt."""
    chosen = [Case(text) for text in TEXTS]
    chosen.append(Case(past_limit(longest)))
    for prompt in dict.fromkeys(facts.prompts.values()):
        if prompt:
            chosen += [Case(text, prompt) for text in GOLDEN]
            if longest <= _BATCH_LONGEST:  # a text of 8,192 tokens takes a minute
                chosen.append(Case(past_limit(longest), prompt))
    return chosen


def compare(
    stage: Path,
    manifest: Manifest,
    cases: Sequence[Case],
    texts: Sequence[str],
    answers: Answers,
    versions: Mapping[str, str],
) -> tuple[Parity, Golden]:
    """Compare the staged artifact with the reference's answers to `cases`.

    Runs every text alone, and the shorter ones in mixed batches too. The reference ran each alone,
    because its left padding and weighted means depend on the batch. Of `texts` only the ids are
    compared. `versions` are those of the libraries that made the graph. StartupError (70) names
    the text and the figures when ids differ, or vectors by more than artifact.TOLERANCES.
    """
    tokenizer = Tokenizer(stage, manifest)
    sequences = _same_ids(tokenizer, cases, [answer.ids for answer in answers.cases])
    _same_ids(tokenizer, [Case(text) for text in texts], answers.ids)
    backend = OnnxBackend(stage, manifest, threads=len(os.sched_getaffinity(0)))
    encoder = Encoder.of(manifest.name, manifest, backend)
    worst, cosine = 0.0, 1.0
    for members in _batches(sequences, manifest):
        rows = _run(encoder, [sequences[i] for i in members], cases[members[0]], members[0])
        difference, least = _compare_rows(rows, members, cases, answers.cases, manifest.precision)
        worst, cosine = max(worst, difference), min(cosine, least)
    size = sum((stage / name).stat().st_size for name in (GRAPH, WEIGHTS))
    reference = f"sentence-transformers {answers.versions['sentence-transformers']}"
    parity = Parity(
        reference=reference,
        texts=len(cases),
        longest=max(map(len, sequences)),
        max_abs_difference=worst,
        min_cosine=cosine,
        tolerance=artifact.TOLERANCES[manifest.precision],
        versions={**answers.versions, "onnxruntime": onnxruntime.__version__},
        graph_versions=versions,
    )
    return parity, _golden(cases, answers.cases, _GOLDEN_WORK // size)


def _run(encoder: Encoder, sequences: list[Ints], case: Case, index: int) -> Floats:
    try:
        return encoder.run(sequences, alone=len(sequences) == 1)
    except Exception as error:  # the library raises many types without a common root
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _failed(index, case, f"the graph cannot run it: {reason}") from error


def _batches(sequences: Sequence[Ints], manifest: Manifest) -> Iterator[list[int]]:
    yield from ([i] for i in range(len(sequences)))
    longest = min(_BATCH_LONGEST, manifest.masked_up_to or _BATCH_LONGEST)
    rows: list[int] = []
    width = 0
    for i, ids in enumerate(sequences):
        if len(ids) > longest:
            continue
        if rows and (len(rows) + 1) * max(width, len(ids)) > _BATCH_TOKENS:
            yield rows
            rows, width = [], 0
        rows.append(i)
        width = max(width, len(ids))
    yield rows


def _same_ids(tokenizer: Tokenizer, cases: Sequence[Case], expected: Sequence[Ints]) -> list[Ints]:
    sequences = []
    for i, (case, theirs) in enumerate(zip(cases, expected, strict=True)):
        ids = tokenizer.encode([case.text], case.prompt).sequences[0]
        if not np.array_equal(ids, theirs):
            raise _failed(
                i,
                case,
                f"token ids {_shown(ids)}, sentence-transformers has {_shown(theirs)}",
            )
        sequences.append(ids)
    return sequences


def _compare_rows(
    rows: Floats,
    members: Sequence[int],
    cases: Sequence[Case],
    answers: Sequence[CaseAnswer],
    precision: str,
) -> tuple[float, float]:
    """Return the largest deviation and smallest cosine; StartupError past the tolerance."""
    tolerance = artifact.TOLERANCES[precision]
    worst, cosine = 0.0, 1.0
    for row, i in zip(rows, members, strict=True):
        for expected in answers[i].vectors:
            full = len(expected) == len(row)
            found = row if full else finishing.truncate(row[None], len(expected))[0]
            difference = artifact.deviation(found[None], expected[None], precision)
            similarity = _cosine(found, expected)
            if not difference <= tolerance:  # NaN fails, too
                raise _failed(
                    i,
                    cases[i],
                    f"{len(expected)} components differ by {difference:.1e} from "
                    f"sentence-transformers, cosine {similarity:.6f}, in a batch of "
                    f"{len(members)}; at most {tolerance:.0e} is accepted",
                )
            worst, cosine = max(worst, difference), min(cosine, similarity)
    return worst, cosine


def _cosine(a: Floats, b: Floats) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    if not x.any() and not y.any():  # static embeddings of a text without tokens
        return 1.0
    return float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))


def _failed(index: int, case: Case, what: str) -> StartupError:
    return StartupError(
        f"text {index} ({(case.prompt + case.text)[:40]!r}): {what}; nothing was published",
        Exit.SOFTWARE,
    )


def _shown(ids: Ints) -> str:
    return f"{ids[:8].tolist()}{'...' if len(ids) > 8 else ''} ({len(ids)})"


def _golden(cases: Sequence[Case], answers: Sequence[CaseAnswer], most_tokens: int) -> Golden:
    """The golden texts, and one with each prompt written out, with the reference's vectors.

    The longest are left out until there are at most `most_tokens` tokens, or two texts.
    """
    indexes = list(range(len(GOLDEN)))
    seen: set[str] = {""}
    for i, case in enumerate(cases):
        if case.prompt not in seen:
            seen.add(case.prompt)
            indexes.append(i)
    while len(indexes) > 2 and sum(len(answers[i].ids) for i in indexes) > most_tokens:
        indexes.remove(max(indexes, key=lambda i: len(answers[i].ids)))
    return Golden(
        texts=tuple(cases[i].prompt + cases[i].text for i in indexes),
        token_ids=tuple(tuple(answers[i].ids.tolist()) for i in indexes),
        vectors=np.stack([answers[i].vectors[0] for i in indexes]),
    )
