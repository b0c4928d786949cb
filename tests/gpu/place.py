"""Where the unpacked parts lie, which models they hold, and which provider is measured."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FP32, FP16, NOMIC = "minilm-fp32", "minilm-fp16", "nomic-small"
DECODER = "qwen3-embedding-fp32"
# Shapes of tests/models/shapes.py: one of each architecture.
FAMILIES = (
    *("bert-cls-bge", "distilbert-mean", "electra", "albert", "mpnet", "xlmr-mean-e5"),
    *("deberta-v3", "t5-gtr", "modernbert-gte", "nomic-v15", "gte-new", "jina-v3"),
    *("qwen3-embedding", "qwen2-gte-kalm", "mistral-e5", "llama-scaled", "eurobert", "gemma"),
    *("gemma2-bge-multilingual", "embeddinggemma", "potion-base-8m"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of the unpacked parts.

    `seconds`: how long a rate is measured. `scale`: 1, or less for a rehearsal without a GPU.
    """

    folder: Path
    provider: str
    seconds: float
    scale: float

    @classmethod
    def from_environment(cls) -> Place:
        """As run.sh sets it."""
        return cls(
            Path(os.environ["GPU_FOLDER"]),
            os.environ.get("GPU_PROVIDER", "cuda"),
            float(os.environ.get("GPU_SECONDS", "2.5")),
            float(os.environ.get("GPU_SCALE", "1")),
        )

    @property
    def models(self) -> Path:
        return self.folder / "models.toml"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def count(self, number: int) -> int:
        """So many, or fewer in a rehearsal."""
        return max(1, round(number * self.scale))

    def artifact(self, model: str) -> Path:
        return self.folder / "artifacts" / model

    def command(self, *arguments: str, module: str = "embedserve") -> list[str]:
        """embedserve's command line; `serve` and the like come first."""
        first, *rest = arguments
        folders = ["--models", str(self.models), "--artifacts", str(self.folder / "artifacts")]
        return [sys.executable, "-m", module, first, *folders, *rest]

    def environment(self, **variables: str) -> Mapping[str, str]:
        """This process' environment with the repository in Python's path."""
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return {**os.environ, "PYTHONPATH": path, **variables}
