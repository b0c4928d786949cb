"""What an export loads, for processes that are forked from one that has it."""

import importlib
import warnings

from export import build

# One step after the other, so that the operations on files come in one order.
build.TOGETHER_BYTES = 0

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for name in (
        "export.cli",  # first: it sets what the libraries read at import
        "export.facts",
        "export.graph",
        "export.tokenizer",
        "export.verify",
        "tests.export.checkpoints",
    ):
        importlib.import_module(name)
    # Loaded here, they are forked from the process that exports (export/steps.py).
    for name in ("export.family_graph", "export.reference_step"):
        importlib.import_module(name).load()
