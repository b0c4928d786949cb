"""What sentence-transformers gives for texts: token ids and vectors. Run in .venv-export.

    python -m tests.reference.sentence_transformers_reference MODEL TEXTS.json OUT.npz

MODEL is a name of models.toml. Each text is encoded alone, so that padding plays no part.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from embedserve.config import models_toml
from export import sources


def main(name: str, texts_path: str, out: str) -> None:
    """Write OUT.npz: vectors (n, dim) float32, ids (flat) and lengths (n,) int64."""
    texts = json.loads(Path(texts_path).read_text(encoding="utf-8"))
    spec = models_toml.read(Path("models.toml")).models[name]
    with tempfile.TemporaryDirectory() as scratch:
        source = sources.open(spec, None, Path(scratch))
        model = SentenceTransformer(str(source.directory), device="cpu", local_files_only=True)
        vectors = np.stack([model.encode(text, convert_to_numpy=True) for text in texts])
        limit = model.max_seq_length
        ids = [
            model.tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in texts
        ]
    np.savez(
        out,
        vectors=vectors.astype(np.float32),
        ids=np.concatenate([np.array(i, np.int64) for i in ids]),
        lengths=np.array([len(i) for i in ids], np.int64),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
