"""A server that computes nothing: python -m tests.bench.constant_server KIND

Prints its port. Kinds, from all to nothing of what a server of all-MiniLM-L6-v2 does:
- `passes`: everything, but a constant in the place of onnxruntime's session; it logs access;
- `engine`: a constant in the place of tokenizing, queue and lanes;
- `bare`: uvicorn and starlette alone, with the same settings, answering the same bytes.
"""

from __future__ import annotations

import functools
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from embedserve import logs
from embedserve.api import embeddings, render
from embedserve.api.app import create_app
from embedserve.arrays.batch import Batch
from embedserve.arrays.finishing import normalize
from embedserve.arrays.types import Floats
from embedserve.config.models_toml import ModelSpec
from embedserve.config.settings import Settings
from embedserve.engine.embed import Call, Embedded
from embedserve.http import server
from embedserve.http.listener import bind
from embedserve.http.readiness import Readiness
from embedserve.metrics import Metrics
from embedserve.model.loading import load_model
from embedserve.model.registry import ModelRegistry
from embedserve.model.stop import Stop
from embedserve.system import process

ROOT = Path(__file__).parent.parent.parent
MODEL, DIM, LANES = "all-MiniLM-L6-v2", 384, 2


def rows(n: int, dim: int) -> Floats:
    """Unit rows as a model gives them."""
    made = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)
    return normalize(made)


class Constant:
    """In the place of a model's sessions."""

    def __init__(self) -> None:
        self._rows = rows(256, DIM)

    def embed(self, batch: Batch, alone: bool, stop: Stop) -> Floats:
        """As many rows as sequences."""
        return self._rows[: len(batch.input_ids)]


def constant_app(settings: Settings, kind: str) -> ASGIApp:
    """embedserve's own application, less the passes or the whole engine."""
    answers = functools.cache(functools.partial(rows, dim=DIM))

    async def embed(call: Call) -> Embedded:
        texts = call.request.texts or []
        now = time.perf_counter()
        return Embedded(answers(len(texts)), 6 * len(texts), [], 0.0, 0.0, 0.0, now, now)

    model, _ = load_model(ModelSpec(MODEL), ROOT / "artifacts" / MODEL, "cpu")
    model.encoder = replace(model.encoder, backend=Constant())
    if kind == "engine":
        vars(embeddings)["embed"] = embed
    return create_app(settings, ModelRegistry([model]), LANES)


def bare_app() -> ASGIApp:
    """starlette reading the body and answering the same bytes."""
    content = b"".join(render.embeddings_parts(MODEL, rows(1, DIM), 6, [], "float"))

    async def answer(request: Request) -> Response:
        await request.body()
        return Response(content, media_type="application/json")

    return Starlette(routes=[Route("/v1/embeddings", answer, methods=["POST"])])


def main(kind: str) -> None:
    """Serve until terminated."""
    process.prepare()
    settings = Settings(port=0, log_level="info" if kind == "passes" else "warning")
    logs.configure(settings)
    listener = bind(settings)
    print(listener.getsockname()[1], flush=True)
    app = bare_app() if kind == "bare" else constant_app(settings, kind)
    server.run(app, settings, listener, Readiness(), Metrics())


if __name__ == "__main__":
    main(*sys.argv[1:])
