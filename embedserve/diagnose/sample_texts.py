"""Real English of mixed lengths, from the standard library's docstrings: nothing to download."""

from __future__ import annotations

import importlib
import inspect
import random
import re
from collections.abc import Iterator

from embedserve.errors import StartupError

# Modules of the standard library whose docstrings are prose.
_MODULES = (
    *("argparse", "collections", "configparser", "difflib", "doctest", "functools", "heapq"),
    *("inspect", "io", "itertools", "json", "logging", "os", "pickle", "random", "re", "shutil"),
    *("socket", "statistics", "subprocess", "tarfile", "tempfile", "threading", "tokenize"),
    *("urllib.parse", "uuid", "zipfile"),
)


def texts(count: int = 2048) -> list[str]:
    """Return runs of words from the standard library's docstrings.

    Each run with the same Python gives the same texts. Their lengths follow a mix of queries,
    sentences and passages: most are short, a few have hundreds of tokens. The median is about 27
    tokens, the mean 39.
    """
    prose = " ".join(doc for name in _MODULES for doc in _docstrings(name))
    words = re.findall(r"[A-Za-z][A-Za-z,.']*", prose)
    if len(words) < 1000:
        raise StartupError("Python has no docstrings to measure with: run it without -OO")
    draw = random.Random(1)  # noqa: S311  # the same texts every time
    lengths = [min(180, max(2, round(draw.lognormvariate(2.95, 0.95)))) for _ in range(count)]
    starts = [draw.randrange(len(words) - length) for length in lengths]
    return [" ".join(words[s : s + n]) for s, n in zip(starts, lengths, strict=True)]


def _docstrings(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    yield inspect.getdoc(module) or ""
    for _, member in sorted(vars(module).items()):
        if inspect.isclass(member) or inspect.isroutine(member):
            yield inspect.getdoc(member) or ""
