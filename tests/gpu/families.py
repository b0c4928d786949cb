"""Artifacts of small models, one of each architecture, in both precisions (in .venv-export).

python -m tests.gpu.families FOLDER makes FOLDER/SHAPE-fp32 and FOLDER/SHAPE-fp16.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import export  # noqa: F401  # sets what the libraries read at import
from embedserve.config.models_toml import ModelSpec
from embedserve.errors import StartupError
from export import build
from export.steps import Nurseries
from tests.gpu.place import FAMILIES
from tests.models import examination
from tests.models.shapes import SHAPES


def make(folder: Path, nurseries: Nurseries) -> None:
    """What cannot be exported in a precision is said, and left out."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for name in FAMILIES:
            shape = SHAPES[name]
            files = examination.make(shape, Path(scratch) / name, nurseries)
            spec = ModelSpec(name=f"{name}-fp32", **shape.wishes)  # type: ignore[arg-type]
            for one in (spec, replace(spec, name=f"{name}-fp16", precision="fp16")):
                try:
                    build.export(one, folder, files.published, True, lambda _: None, nurseries)
                except StartupError as error:
                    print(f"{one.name}: {error}", file=sys.stderr)


if __name__ == "__main__":
    with Nurseries() as opened:
        make(Path(sys.argv[1]), opened)
