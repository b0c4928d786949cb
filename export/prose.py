"""A fixed corpus of real English: queries, and passages to search, from Python's documentation.

prose.txt.gz has a text a line, the queries first. They are sentences and short runs of sentences
from Python 3.11's documentation strings and language reference, which have the PSF license
(prose.license.txt). No query is part of a passage.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("prose.txt.gz")
QUERIES = 500


@dataclass(frozen=True, slots=True)
class Prose:
    """The corpus, and the sha256 of its text."""

    queries: tuple[str, ...]
    passages: tuple[str, ...]
    digest: str

    @property
    def texts(self) -> tuple[str, ...]:
        """Queries, then passages."""
        return self.queries + self.passages


def read() -> Prose:
    """Read the corpus."""
    content = gzip.decompress(FILE.read_bytes())
    lines = tuple(content.decode("ascii").splitlines())
    return Prose(lines[:QUERIES], lines[QUERIES:], hashlib.sha256(content).hexdigest())
