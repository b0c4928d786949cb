"""One served model: its facts, its tokenizer, and what computes its vectors."""

from __future__ import annotations

import math

from embedserve.artifact import Manifest
from embedserve.config.models_toml import ModelSpec
from embedserve.model.cost import Shape
from embedserve.model.encoder import Encoder
from embedserve.model.onnx_backend import OnnxBackend
from embedserve.model.tokenizer import (
    Tokenizer,
)


class Model:
    """One served model: facts, tokenizer and engine. Owned by the event loop."""

    def __init__(
        self, spec: ModelSpec, manifest: Manifest, tokenizer: Tokenizer, backend: OnnxBackend
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.provider = backend.provider
        self.encoder = Encoder(
            name=spec.name,
            fingerprint=manifest.fingerprint,
            backend=backend,
            # Attention's share of a transformer layer's work is t / (6 h): 2 * t * h products of
            # scores and values per token against 12 * h * h of the projections.
            shape=Shape(
                spec.name,
                math.inf if manifest.is_bag else 6.0 * manifest.hidden_size,
                manifest.masked_up_to,
            ),
            dimension=manifest.dimension,
            pad_token_id=manifest.pad_token_id,
            padding_side=manifest.padding_side,
            is_bag=manifest.is_bag,
        )
