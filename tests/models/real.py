"""Models of models.toml whose real weights come in packages."""

from __future__ import annotations

from pathlib import Path

from embedserve.config import models_toml
from export import build, sources
from export.steps import Nurseries
from tests.models.examination import prove
from tests.models.records import Record

ROOT = Path(__file__).parents[2]
MODELS = ("all-MiniLM-L6-v2", "all-mpnet-base-v2")


def examine(name: str, directory: Path, nurseries: Nurseries) -> Record:
    """Fetch a model's files, export them, and compare with sentence-transformers on them."""
    spec = models_toml.read(ROOT / "models.toml").models[name]
    directory.mkdir(parents=True)
    source = sources.open(spec, None, directory).directory

    def export(out: Path) -> None:
        build.export(spec, out, source, True, lambda _: None, nurseries)

    return prove(export, {}, source, directory / "work", nurseries, name)
