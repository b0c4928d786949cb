"""sentence-transformers' answers to a list of texts, in float32. In a process of its own.

It shares nothing with the reference of the export but the library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from export.libraries import quiet
from export.steps import Json


def load() -> None:
    """Import what a run needs."""
    with quiet():
        import sentence_transformers  # noqa: F401


def run(job: Json) -> Json:
    """Write job["answers"] (.npz): ids, their lengths, and vectors of job["cases"].

    A case is a text and a prompt; every text runs alone. job["finishing"] is what the card does
    with a vector after the model's own modules.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from torch.nn import functional

    torch.set_num_threads(1)
    steps: dict[str, Any] = {
        "layer_norm": lambda rows: functional.layer_norm(rows, rows.shape[-1:]),
        "normalize": lambda rows: functional.normalize(rows, dim=-1),
    }
    ids, rows = [], []
    with quiet(), torch.inference_mode():
        model = SentenceTransformer(
            job["directory"],
            device="cpu",
            local_files_only=True,
            model_kwargs={"dtype": torch.float32},
        )
        if job["max_tokens"] is not None:
            model.max_seq_length = job["max_tokens"]
        for text, prompt in job["cases"]:
            features = model.preprocess([prompt + text])
            ids.append(features["input_ids"].numpy().reshape(-1))
            row = model.encode([prompt + text], prompt="", convert_to_tensor=True)
            for step in job["finishing"]:
                row = steps[step](row)
            rows.append(row.numpy())
    lengths = np.array([len(one) for one in ids])
    arrays: dict[str, Any] = {"ids": np.concatenate(ids), "vectors": np.concatenate(rows)}
    np.savez(Path(job["answers"]), lengths=lengths, **arrays)
    return {}
