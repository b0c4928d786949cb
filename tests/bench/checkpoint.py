"""A model's files as the peers want them: python -m tests.bench.checkpoint FOLDER (in .venv-bench)

sentence-transformers' files, and beside them the artifact's own graph and weights: every engine
runs the same numbers, and every ONNX engine the same graph.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from embedserve.config import models_toml
from export import sources
from tests.bench.corpus import MODEL

GRAPH = ("model.onnx", "weights.bin")


def make(folder: Path) -> None:
    """Put the files into `folder`, which appears whole or not at all."""
    spec = models_toml.read(Path("models.toml")).models[MODEL]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        source = sources.open(spec, None, Path(scratch), lambda line: print(line, file=sys.stderr))
        made = Path(scratch) / "made"
        shutil.copytree(source.directory, made, ignore=shutil.ignore_patterns("onnx", "openvino"))
        for name in GRAPH:
            shutil.copy(Path("artifacts") / MODEL / name, made / name)
        made.rename(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
