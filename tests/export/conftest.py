"""These tests run in the export environment: torch, transformers, sentence-transformers."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import pytest

import export  # noqa: F401  # sets what the libraries read at import
from embedserve.config.models_toml import ModelSpec
from export import build
from export.build import Progress, Result
from export.steps import Nurseries

# `make test` runs them with the export environment's Python; elsewhere there is nothing to import.
collect_ignore_glob = [] if find_spec("torch") else ["test_*.py", "families/test_*.py"]


class Export(Protocol):
    """build.export with nurseries that live as long as the tests."""

    def __call__(
        self,
        spec: ModelSpec,
        out: Path,
        source: Path | None,
        force: bool = False,
        progress: Progress = print,
    ) -> Result: ...


@pytest.fixture(scope="session")
def nurseries() -> Iterator[Nurseries]:
    """Processes with the libraries loaded, for all tests."""
    with Nurseries() as started:
        yield started


@pytest.fixture(scope="session")
def export_model(nurseries: Nurseries) -> Export:
    """Make an artifact, its steps forked from the nurseries."""

    def make(
        spec: ModelSpec,
        out: Path,
        source: Path | None,
        force: bool = False,
        progress: Progress = print,
    ) -> Result:
        return build.export(spec, out, source, force, progress, nurseries)

    return make
