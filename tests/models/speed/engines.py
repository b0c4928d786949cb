"""One engine in a process: reads a line of JSON with texts, embeds them, answers the seconds.

python -m tests.models.speed.engines server DIRECTORY        (in .venv)
python -m tests.models.speed.engines torch DIRECTORY         (in .venv-export)
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Texts, and the batch size, which is the server's own in its case -> seconds.
Run = Callable[[list[str], int], float]


def server(directory: Path) -> Run:
    """The server's engine with its own settings for the CPU: requests as they come from its API."""
    from embedserve.config.models_toml import ModelSpec
    from embedserve.engine.cancellation import Cancellation
    from embedserve.engine.embed import Call, embed
    from embedserve.engine.scheduler import Scheduler
    from embedserve.metrics import Metrics
    from embedserve.model.loading import load_model
    from embedserve.model.providers import PROVIDERS
    from embedserve.model.request import EmbeddingsRequest

    cores = len(os.sched_getaffinity(0))
    provider = PROVIDERS["cpu"]
    model, _ = load_model(ModelSpec(name="m"), directory, "cpu", cores)
    loop = asyncio.new_event_loop()
    lanes = provider.lanes or cores
    metrics = Metrics()

    async def make() -> Scheduler:
        return Scheduler({"m": model.encoder}, lanes, provider.tokens_per_pass, 1e9, metrics)

    scheduler = loop.run_until_complete(make())

    async def one(request: EmbeddingsRequest) -> None:
        stays = Cancellation(loop.create_future(), loop.time() + 3600)
        try:
            await embed(Call(model, request, scheduler, 10**9, stays, lambda _: None))
        finally:
            stays.end()

    def run(texts: list[str], _: int) -> float:
        request = EmbeddingsRequest(None, texts, None)
        start = time.perf_counter()
        loop.run_until_complete(one(request))
        return time.perf_counter() - start

    return run


def torch(directory: Path) -> Run:
    """sentence-transformers on all cores."""
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(
        str(directory), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"}
    )

    def run(texts: list[str], batch_size: int) -> float:
        start = time.perf_counter()
        model.encode(texts, batch_size=batch_size, show_progress_bar=False)
        return time.perf_counter() - start

    return run


ENGINES: dict[str, Callable[[Path], Run]] = {"server": server, "torch": torch}


def main(arguments: list[str]) -> None:
    run = ENGINES[arguments[0]](Path(arguments[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(run(request["texts"], request["batch_size"]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
