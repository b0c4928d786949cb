"""Texts for benchmarks: real English of mixed length, and short queries; the same every time."""

from __future__ import annotations

import random
import re
from pathlib import Path

_ROOT = Path(__file__).parent.parent.parent
SHORT = (
    "what is an embedding",
    "how do I reset my password",
    "weather in Lisbon tomorrow",
    "cheap flights to Tokyo in April",
    "python list comprehension with condition",
    "symptoms of vitamin D deficiency",
    "capital of Australia",
    "difference between TCP and UDP",
)


def mixed(count: int, seed: int = 1) -> list[str]:
    """Return `count` runs of words of this repository's English: most short, a few of hundreds.

    Lengths are drawn so that all-MiniLM-L6-v2 sees about 27 tokens in the median, 44 in the mean
    and 256 at most, as a mix of queries, sentences and passages has.
    """
    text = (_ROOT / "LICENSE-APACHE").read_text() + (_ROOT / "README.md").read_text()
    words = re.findall(r"[A-Za-z][A-Za-z,.']*", text)
    draw = random.Random(seed)  # noqa: S311  # the same texts every time
    texts = []
    for _ in range(count):
        length = min(180, max(2, round(draw.lognormvariate(2.95, 0.95))))
        start = draw.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return texts
