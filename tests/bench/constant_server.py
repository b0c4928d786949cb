"""A server whose engine is a constant: python -m tests.bench.constant_server embedserve|bare DIM

`bare` is uvicorn and starlette alone, with the same settings, answering the same bytes. Prints its
port. The constant is one row of DIM float32 a text.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from embedserve import logs
from embedserve.api import embeddings, render
from embedserve.api.app import create_app
from embedserve.arrays.finishing import normalize
from embedserve.arrays.types import Floats
from embedserve.config.models_toml import ModelSpec
from embedserve.config.settings import Settings
from embedserve.engine.embed import Embedded
from embedserve.http import server
from embedserve.http.listener import bind
from embedserve.http.readiness import Readiness
from embedserve.metrics import Metrics
from embedserve.model.loading import load_model
from embedserve.model.model import Model
from embedserve.model.registry import ModelRegistry
from embedserve.model.request import EmbeddingsRequest
from tests import tiny


def rows(n: int, dim: int) -> Floats:
    """Unit rows as a model gives them."""
    made = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)
    return normalize(made)


def constant_app(settings: Settings, dim: int) -> ASGIApp:
    """embedserve's own application, all but the engine."""
    answers = functools.cache(functools.partial(rows, dim=dim))

    async def embed(_: Model, request: EmbeddingsRequest, *rest: Any) -> Embedded:
        texts = request.texts or []
        now = time.perf_counter()
        return Embedded(answers(len(texts)), 6 * len(texts), [], 0.0, 0.0, 0.0, now, now)

    with tempfile.TemporaryDirectory() as scratch:
        tiny.write(Path(scratch) / "tiny")
        model, _ = load_model(ModelSpec("tiny"), Path(scratch) / "tiny", "cpu")
    vars(embeddings)["embed"] = embed  # the constant in the engine's place
    return create_app(settings, ModelRegistry([model]), 1)


def bare_app(dim: int) -> ASGIApp:
    """starlette reading the body and answering the same bytes."""
    content = b"".join(render.embeddings_parts("tiny", rows(1, dim), 6, [], "float"))

    async def answer(request: Request) -> Response:
        await request.body()
        return Response(content, media_type="application/json")

    return Starlette(routes=[Route("/v1/embeddings", answer, methods=["POST"])])


def main(kind: str, dim: str) -> None:
    """Serve until terminated."""
    settings = Settings(port=0, log_level="warning")
    logs.configure(settings)
    listener = bind(settings)
    print(listener.getsockname()[1], flush=True)
    app = bare_app(int(dim)) if kind == "bare" else constant_app(settings, int(dim))
    server.run(app, settings, listener, Readiness(), Metrics())


if __name__ == "__main__":
    main(*sys.argv[1:])
