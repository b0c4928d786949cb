"""These tests run in the export environment: torch, transformers, sentence-transformers."""

import pytest

pytest.importorskip("torch", reason="tests/export runs in the export environment")

import export  # noqa: F401  # sets what the libraries read at import
