"""An artifact of nomic-embed-text-v1.5's form with random weights. Run in .venv-export.

    python -m tests.reference.nomic_artifact small|real OUT

writes OUT/nomic, proven as every artifact is.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from embedserve.config.models_toml import ModelSpec
from export import build
from export.steps import Nurseries
from tests.export.checkpoints import SMALL_NOMIC, nomic_bert
from tests.reference.nomic_checkpoint import REAL

SIZES = {"small": SMALL_NOMIC, "real": REAL}
SPEC = ModelSpec(
    name="nomic",
    finishing=("layer_norm", "normalize"),
    prompts={"search_query": "search_query: ", "search_document": "search_document: "},
)


def main(size: str, out: str) -> None:
    """Make the checkpoint and export it."""
    with tempfile.TemporaryDirectory() as scratch:
        source = nomic_bert(Path(scratch) / "model", 8192, SIZES[size])
        spec = replace(SPEC, matryoshka=(SIZES[size][1],))
        with Nurseries() as nurseries:
            build.export(spec, Path(out), source, True, print, nurseries)


if __name__ == "__main__":
    main(*sys.argv[1:])
