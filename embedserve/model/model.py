"""One served model: its facts, its tokenizer, and what computes its vectors."""

from __future__ import annotations

from embedserve.artifact import Manifest
from embedserve.config.models_toml import ModelSpec
from embedserve.model.encoder import Encoder
from embedserve.model.onnx_backend import OnnxBackend
from embedserve.model.tokenizer import Tokenizer


class Model:
    """One served model: facts, tokenizer and encoder. Owned by the event loop."""

    def __init__(
        self, spec: ModelSpec, manifest: Manifest, tokenizer: Tokenizer, backend: OnnxBackend
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.provider = backend.provider
        self.encoder = Encoder.of(spec.name, manifest, backend)
