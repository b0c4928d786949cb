"""Families and variants of tests/export, exported, with what sentence-transformers gives.

    python -m tests.reference.family_artifacts OUT NAME ...        (in .venv-export)

writes OUT/artifacts/NAME, and OUT/NAME.npz: vectors (n, dim) float32, and counts (n,) int64 of the
tokens of each text of OUT/texts.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from embedserve.config.models_toml import ModelSpec
from export import build
from export.steps import Nurseries
from tests.export.test_families import FAMILIES, VARIANTS, random_texts


def main(out: str, *names: str) -> None:
    """Export and encode, a text at a time."""
    with Nurseries() as nurseries:
        _main(out, names, nurseries)


def _main(out: str, names: Sequence[str], nurseries: Nurseries) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    texts = random_texts(100)
    root = Path(out)
    (root / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    makers = {name: make for name, (make, _) in FAMILIES.items()} | VARIANTS
    for name in names:
        make = makers[name]
        with tempfile.TemporaryDirectory() as scratch:
            source = make(Path(scratch) / "model")
            spec = ModelSpec(name=name)
            build.export(spec, root / "artifacts", source, False, lambda _: None, nurseries)
            model = SentenceTransformer(str(source), device="cpu", local_files_only=True)
            vectors = [model.encode(text, show_progress_bar=False) for text in texts]
            prompt = model.prompts.get(model.default_prompt_name or "", "")
            counts = [len(model.preprocess([prompt + text])["input_ids"][0]) for text in texts]
        np.savez(root / f"{name}.npz", vectors=np.stack(vectors), counts=np.array(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
