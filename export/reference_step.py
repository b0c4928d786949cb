"""Today's sentence-transformers on a model: its limit, its tokenizer, ids and vectors of texts.

Runs in a process of its own (export.steps), on the newest versions that the environment has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.arrays.types import Ints
from embedserve.errors import Exit, StartupError
from export.libraries import quiet, versions
from export.reference import ARRAYS, TOKENIZER, Case, CaseAnswer
from export.steps import Json

LIBRARIES = ("sentence-transformers", "transformers", "torch", "tokenizers", "numpy")

# Texts of more tokens use all threads. With fewer, on a busy machine, two threads wait for each
# other (78 texts of MiniLM: 22 s, with one thread 2.4 s).
_LONG = 1024


def load() -> None:
    """Import what a run needs."""
    with quiet():
        import sentence_transformers  # noqa: F401


def run(job: Json) -> Json:
    """Write the tokenizer, and all ids and vectors; return the libraries' versions."""
    scratch = Path(job["scratch"])
    with quiet():
        reference = _Reference(Path(job["directory"]), job["added"])
        reference.set_limit(job["limit"], job["max_tokens"])
        (scratch / TOKENIZER).write_text(reference.tokenizer(), encoding="utf-8")
        answers = [reference.answer(Case(*case), job["matryoshka"]) for case in job["cases"]]
        ids = [answer.ids for answer in answers]
        ids += [reference.ids(Case(text)) for text in job["texts"]]
    columns = zip(*(answer.vectors for answer in answers), strict=True)
    vectors = {f"vectors-{i}": np.stack(column) for i, column in enumerate(columns)}
    lengths = np.array([len(one) for one in ids])
    arrays: dict[str, Any] = {"ids": np.concatenate(ids), "lengths": lengths, **vectors}
    np.savez(scratch / ARRAYS, **arrays)
    return {"versions": versions(LIBRARIES)}


class _Reference:
    """sentence-transformers with one model, on the CPU in float32, one text at a time."""

    def __init__(self, directory: Path, added: Sequence[tuple[str, float]]) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        self._threads = torch.get_num_threads()
        self._directory = directory
        self._added = added
        self._model: Any = SentenceTransformer(
            str(directory),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": "float32", "use_safetensors": True},
        )
        # Modules besides the Transformer keep their files' precision.
        self._model.float().eval()

    def set_limit(self, limit: int | None, max_tokens: int) -> None:
        """Refuse a `limit` that is not sentence-transformers' own; truncate at `max_tokens`."""
        found = self._model.max_seq_length
        if limit is not None and found != limit:
            raise StartupError(
                f"{self._directory}: sentence-transformers cuts at {found} tokens, but the files "
                f"were read as {limit}; nothing was published",
                Exit.SOFTWARE,
            )
        if limit is not None and limit != max_tokens:
            self._model.max_seq_length = max_tokens

    def tokenizer(self) -> str:
        """The tokenizer as the libraries have built it, as JSON."""
        tokenizer = self._model.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not hasattr(backend, "to_str"):
            raise StartupError(
                f"{self._directory / 'tokenizer_config.json'}: tokenizer_class = "
                f"{type(tokenizer).__name__!r} does not use tokenizer.json; not supported",
                Exit.DATAERR,
            )
        text: str = backend.to_str()
        return text

    def ids(self, case: Case) -> Ints:
        """Token ids (t,), cut at the limit."""
        features = self._model.preprocess([case.text], prompt=case.prompt or None)
        ids: Ints = features["input_ids"].reshape(-1).numpy().astype(np.int64)
        return ids

    def answer(self, case: Case, matryoshka: Sequence[int]) -> CaseAnswer:
        """The ids, the final vector, and a vector for each smaller Matryoshka dimension."""
        import torch

        ids = self.ids(case)
        torch.set_num_threads(1 if len(ids) <= _LONG else self._threads)
        # prompt="", not None: None would mean the model's default prompt.
        pooled = self._model.encode(
            case.text, prompt=case.prompt, convert_to_tensor=True, show_progress_bar=False
        )
        rows = pooled[None].to(torch.float32)
        vectors = [self._card(rows, None)]
        vectors += [self._card(rows, size) for size in matryoshka if size < rows.shape[1]]
        return CaseAnswer(ids, tuple(vector[0].numpy() for vector in vectors))

    def _card(self, rows: Any, size: int | None) -> Any:
        """What a model's card does after pooling: layer_norm, cut to `size`, normalize."""
        from torch.nn.functional import layer_norm, normalize

        for kind, eps in self._added:
            if kind == "layer_norm":
                rows = layer_norm(rows, normalized_shape=(rows.shape[1],), eps=eps)
        if size is not None:
            return normalize(rows[:, :size], p=2, dim=1)
        if any(kind == "normalize" for kind, _ in self._added):
            rows = normalize(rows, p=2, dim=1)
        return rows
