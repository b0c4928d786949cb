"""These tests run in the export environment: torch, transformers, sentence-transformers."""

from importlib.util import find_spec

import export  # noqa: F401  # sets what the libraries read at import

# `make test` runs them with the export environment's Python; elsewhere there is nothing to import.
collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]
