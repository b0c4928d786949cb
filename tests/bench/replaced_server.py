"""The service that embedserve replaces, in its plainest form: FastAPI's role played by starlette.

    python -m tests.bench.replaced_server        (in .venv-export, with starlette and uvicorn)

One sentence-transformers model, `encode` in a thread for each request, JSON by the standard
library, as such services are written. Prints its port.
"""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import uvicorn
from sentence_transformers import SentenceTransformer
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from embedserve import config
from export import sources

NAME = "all-MiniLM-L6-v2"


def main() -> None:
    """Load, then serve until terminated."""
    spec = config.read(Path("models.toml")).models[NAME]
    with tempfile.TemporaryDirectory() as scratch:
        source = sources.open(spec, None, Path(scratch))
        model = SentenceTransformer(str(source.directory), device="cpu", local_files_only=True)

    async def embed(request: Request) -> JSONResponse:
        body = await request.json()
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        rows = await run_in_threadpool(model.encode, texts)
        data = [
            {"object": "embedding", "index": i, "dims": len(row), "embedding": row.tolist()}
            for i, row in enumerate(rows)
        ]
        return JSONResponse({"object": "list", "data": data, "model": NAME})

    app = Starlette(routes=[Route("/v1/embeddings", embed, methods=["POST"])])
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning")).run([listener])


if __name__ == "__main__":
    main()
