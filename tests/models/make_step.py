"""Write the files of a shape, as the libraries of their time did. Runs in a process of its own."""

from __future__ import annotations

import importlib
from pathlib import Path

from export.libraries import quiet
from export.steps import Json


def load() -> None:
    """Import what a run needs."""
    with quiet():
        import transformers  # noqa: F401


def run(job: Json) -> Json:
    """Call the shape's maker; return transformers' version."""
    import transformers

    module, function = job["maker"].split(".")
    makers = importlib.import_module(f"tests.models.makers.{module}")
    with quiet():
        getattr(makers, function)(Path(job["directory"]))
    return {"transformers": transformers.__version__}
