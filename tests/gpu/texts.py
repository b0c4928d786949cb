"""Texts for the GPU: short, mixed and long, each with a number of its own.

The server computes equal texts that wait at the same time once: no load may have equal texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tests.bench import corpus

# Words of a long text: more than the 256 tokens at which all-MiniLM-L6-v2 cuts off.
LONG_WORDS = 260
KINDS = ("short", "mixed", "long")


def many(kind: str, count: int) -> list[str]:
    """`count` different texts."""
    return list(itertools.islice(_endless(kind), count))


def _endless(kind: str) -> Iterator[str]:
    texts = corpus.short() if kind == "short" else corpus.mixed()
    if kind == "long":
        texts = long(LONG_WORDS, 64)
    return (f"{number} {text}" for number, text in enumerate(itertools.cycle(texts)))


def long(words: int, count: int) -> list[str]:
    """Texts of so many words."""
    endless = itertools.cycle(" ".join(corpus.mixed()).split())
    return [" ".join(itertools.islice(endless, words)) for _ in range(count)]


def requests(kind: str, size: int, count: int) -> list[list[str]]:
    """`count` requests of `size` texts, all different."""
    texts = many(kind, size * count)
    return [texts[i : i + size] for i in range(0, len(texts), size)]
