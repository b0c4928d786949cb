"""The installed libraries: their versions, and quiet while they work."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version


def versions(names: Sequence[str]) -> dict[str, str]:
    """The versions of those of `names` that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' warnings, such as deprecations."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(previous)
