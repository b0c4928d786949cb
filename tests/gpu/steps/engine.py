"""The server's backend without a server, for steps that look at vectors and at passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnxruntime

from embedserve import artifact
from embedserve.arrays.batch import Batch, pad
from embedserve.arrays.types import Floats, Ints
from embedserve.model.onnx_backend import OnnxBackend
from embedserve.model.tokenizer import Tokenizer
from tests.gpu.place import Place


def feed(session: onnxruntime.InferenceSession, batch: Batch) -> dict[str, Ints]:
    """What the graph asks for, as the server gives it."""
    given = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "token_type_ids": np.zeros_like(batch.input_ids),
    }
    return {each.name: given[each.name] for each in session.get_inputs()}


class Engine(NamedTuple):
    """A model on a provider."""

    tokenizer: Tokenizer
    backend: OnnxBackend

    def ids(self, texts: Sequence[str]) -> list[Ints]:
        """Token ids of texts, each (t_i,)."""
        return self.tokenizer.encode(texts).sequences

    def rows(self, sequences: list[Ints], length: int = 0) -> Floats:
        """One pass, padded to `length` tokens if that is more: (n, dim)."""
        manifest = self.backend.manifest
        longer = [*sequences, np.zeros(length, np.int64)] if length else sequences
        batch = pad(longer, manifest.pad_token_id, manifest.padding_side)
        if length:
            batch = type(batch)(batch.input_ids[:-1], batch.attention_mask[:-1])
        return self.backend.embed(batch)

    def in_passes(self, sequences: Sequence[Ints], budget: int) -> Floats:
        """All rows in their order, by passes of near lengths and at most `budget` tokens."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        rows: dict[int, Floats] = {}
        while order:
            longest = len(sequences[order[-1]])
            part = order[-max(1, budget // longest) :]
            made = self.rows([sequences[i] for i in part])
            rows.update(zip(part, made, strict=True))
            del order[-len(part) :]
        return np.stack([rows[i] for i in range(len(sequences))])


def open_engine(place: Place, model: str, provider: str | None = None, threads: int = 1) -> Engine:
    """Load an artifact."""
    directory = place.artifact(model)
    manifest = artifact.read(directory)
    backend = OnnxBackend(directory, manifest, provider or place.provider, threads)
    return Engine(Tokenizer(directory, manifest), backend)
