"""These tests run in the export environment: torch, transformers, sentence-transformers."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

import export  # noqa: F401  # sets what the libraries read at import
from export.steps import Nurseries

# `make test` runs them with the export environment's Python; elsewhere there is nothing to import.
collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


@pytest.fixture(scope="session")
def nurseries() -> Iterator[Nurseries]:
    """The processes in which graphs and references are made; libraries are loaded once."""
    with Nurseries() as started:
        yield started
