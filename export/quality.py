"""What a precision costs in retrieval: the nearest passages by the artifact, and by float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedserve.arrays.finishing import normalize
from embedserve.arrays.types import Floats, Ints
from embedserve.artifact import Manifest, Quality
from embedserve.errors import Exit, StartupError
from embedserve.model.encoder import Encoder
from embedserve.model.onnx_backend import OnnxBackend
from embedserve.model.tokenizer import Tokenizer
from export.prose import Prose

NEAREST = 10
# Tokens of a pass here, of texts of near lengths.
_PASS_TOKENS = 1024


def vectors(directory: Path, manifest: Manifest, prose: Prose, provider: str) -> Floats:
    """Embed the corpus with a staged artifact, as a server does: (texts, dim) float32."""
    tokenizer = Tokenizer(directory, manifest)
    encoder = Encoder.of(manifest.name, manifest, OnnxBackend(directory, manifest, provider))
    before = manifest.prompts.get(manifest.default_prompt_name or "", "")
    sequences = tokenizer.encode(prose.texts, before).sequences
    rows = np.empty((len(sequences), manifest.dimension), np.float32)
    for members in _passes(sequences, manifest.masked_up_to):
        rows[members] = encoder.run([sequences[i] for i in members])
    return rows


def _passes(sequences: list[Ints], masked_up_to: int | None) -> list[list[int]]:
    """Indexes of sequences by length, in passes; too long ones alone."""
    passes: list[list[int]] = []
    for i in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
        length = len(sequences[i])
        is_alone = masked_up_to is not None and length > masked_up_to
        if passes and not is_alone and (len(passes[-1]) + 1) * length <= _PASS_TOKENS:
            passes[-1].append(i)
        else:
            passes.append([i])
    return passes


def compare(exact: Floats, found: Floats, prose: Prose, provider: str, floor: float) -> Quality:
    """Compare float32's vectors of the corpus (texts, dim) with the artifact's."""
    exact, found = normalize(exact), normalize(found)
    n = len(prose.queries)
    expected = exact[:n] @ exact[n:].T
    both = found[:n] @ found[n:].T
    queries_alone = found[:n] @ exact[n:].T
    cosines = np.einsum("nd,nd->n", exact, found, dtype=np.float64)
    return Quality(
        corpus=prose.digest,
        queries=n,
        passages=len(prose.passages),
        provider=provider,
        agreement_at_10=agreement(expected, both, NEAREST),
        agreement_at_1=agreement(expected, both, 1),
        queries_alone_at_10=agreement(expected, queries_alone, NEAREST),
        queries_alone_at_1=agreement(expected, queries_alone, 1),
        spearman=spearman(expected, both),
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        floor=floor,
    )


def agreement(expected: Floats, found: Floats, nearest: int) -> float:
    """The mean share of each query's nearest passages that both scores (queries, passages) have."""
    pairs = zip(_nearest(expected, nearest), _nearest(found, nearest), strict=True)
    return sum(len(set(a) & set(b)) for a, b in pairs) / (len(expected) * nearest)


def _nearest(scores: Floats, count: int) -> list[list[int]]:
    """Each query's passages with the highest scores; of equal ones the first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return [list(map(int, row)) for row in order]


def spearman(expected: Floats, found: Floats) -> float:
    """The rank correlation of all scores."""
    from scipy.stats import spearmanr

    return float(spearmanr(expected.ravel(), found.ravel()).statistic)


def check(quality: Quality, name: str) -> None:
    """StartupError (70) when fewer of float32's nearest passages are found than the floor says."""
    if quality.agreement_at_10 < quality.floor:
        raise StartupError(
            f"{name}: of float32's {NEAREST} nearest passages {quality.agreement_at_10:.3f} are "
            f"found; at least {quality.floor:.3f} is accepted; nothing was published",
            Exit.SOFTWARE,
        )
