"""Texts of a known number of tokens: each word is a token."""

from __future__ import annotations

import random
from collections.abc import Sequence

WORDS = tuple(f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst")
MIXED = "mixed"
SPECIAL = 2  # tokens around a text

_FOURS = 4
# Mixed lengths, as of queries, sentences and passages in English: median 27, mean about 44.
_MEDIAN, _SIGMA, _SHORTEST, _LONGEST = 27.0, 1.02, 4, 256


def sizes(kind: str, tokens: int) -> list[int]:
    """Lengths of texts that have about `tokens` together: all `kind` long, or mixed.

    Those of one length are four or a multiple: every lane of two or four has as many.
    """
    if kind != MIXED:
        length = int(kind)
        return [length] * max(_FOURS, round(tokens / length / _FOURS) * _FOURS)
    draw = random.Random(11)  # noqa: S311  # the same lengths in every run
    found: list[int] = []
    while sum(found) < tokens:
        length = round(draw.lognormvariate(0.0, _SIGMA) * _MEDIAN)
        found.append(min(max(length, _SHORTEST), _LONGEST))
    return found


def texts(lengths: Sequence[int], seed: int) -> list[str]:
    """Texts of these lengths in tokens, special ones included; no two are equal."""
    draw = random.Random(seed)  # noqa: S311  # the same texts in every run
    return [" ".join(draw.choices(WORDS, k=length - SPECIAL)) for length in lengths]
