"""The service that embedserve replaces, in its plainest form: sentence-transformers and FastAPI.

    python -m tests.bench.replaced_server FOLDER PORT        (in .venv-bench)

One model, `encode` in FastAPI's thread pool for each request, lists of numbers as the answer, as
such services are written.
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

from tests.bench.corpus import MODEL


class Body(BaseModel):
    """What a client sends."""

    input: str | list[str]
    model: str = MODEL


def main(folder: str, port: str) -> None:
    """Load, then serve until terminated."""
    model = SentenceTransformer(folder, device="cpu", local_files_only=True)
    app = FastAPI()

    @app.post("/v1/embeddings")  # type: ignore[untyped-decorator,unused-ignore]  # in .venv-bench
    def embed(body: Body) -> dict[str, object]:
        texts = [body.input] if isinstance(body.input, str) else body.input
        data = [
            {"object": "embedding", "index": i, "dims": len(row), "embedding": row.tolist()}
            for i, row in enumerate(model.encode(texts))
        ]
        return {"object": "list", "data": data, "model": MODEL}

    uvicorn.run(app, host="127.0.0.1", port=int(port), access_log=False, log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
