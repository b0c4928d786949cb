"""What a user would pick instead: sentence-transformers in fp16, and bare onnxruntime in a loop."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime

from embedserve.arrays import finishing
from embedserve.arrays.batch import pad
from embedserve.arrays.pooling import pool
from embedserve.arrays.types import Ints
from embedserve.artifact import GRAPH
from tests.gpu import texts
from tests.gpu.place import FP16, Place
from tests.gpu.results import Results
from tests.gpu.steps.engine import Engine, feed, open_engine

TEXTS = {"short": 4096, "mixed": 4096, "long": 1024}
BATCH_SIZES = (32, 128, 512)
BUDGETS, THREADS = (4_096, 16_384), (1, 2)
# Torch plans each new shape, too: so many seconds, that it has seen those of the requests.
WARM_UP = 4.0


def run(place: Place, results: Results, log: Path) -> None:
    """Both on the same GPU, with the same weights and the same texts."""
    results.attempt("sentence-transformers, fp16", _sentence_transformers, place)
    for kind in texts.KINDS:
        results.attempt(f"bare onnxruntime, fp16, {kind}", _bare, place, kind)
    engine = open_engine(place, FP16)
    for kind in texts.KINDS:
        name = f"backend in a loop, fp16, {kind}"
        results.attempt(name, _by_schedule, place, engine, kind, engine.rows)
        many = texts.many(kind, place.count(TEXTS[kind]))
        seconds = _once(partial(engine.ids, many))
        results.add(**{f"tokenizing on all cores, {kind}": round(len(many) / seconds)})
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        seconds = _once(partial(engine.ids, many))
        results.add(**{f"tokenizing on one core, {kind}": round(len(many) / seconds)})
        os.environ["TOKENIZERS_PARALLELISM"] = "true"


def _once(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def rate(
    turns: Iterator[Sequence[object]],
    encode: Callable[[Any], object],
    seconds: float,
    warm_up: float = 0.0,
) -> int:
    """Texts a second of one call after the other, after a warm-up of at least one."""
    begin = time.perf_counter()
    encode(next(turns))
    while time.perf_counter() - begin < warm_up:
        encode(next(turns))
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        part = next(turns)
        encode(part)
        done += len(part)
    return round(done / spent)


def _sentence_transformers(place: Place) -> dict[str, int]:
    """Requests of 32 texts one after the other, and all texts in one call by batch size."""
    import torch
    from sentence_transformers import SentenceTransformer

    device = "cuda" if place.provider == "cuda" else "cpu"
    model: Any = SentenceTransformer(
        str(place.checkpoint),
        device=device,
        local_files_only=True,
        model_kwargs={"dtype": torch.float16},
    )
    found = {}
    for kind in texts.KINDS:
        requests = itertools.cycle(texts.requests(kind, place.count(32), 64))
        found[f"{kind}, 32 texts a call"] = rate(
            requests,
            partial(model.encode, batch_size=32, show_progress_bar=False),
            place.seconds,
            min(WARM_UP, 2 * place.seconds),
        )
        many = itertools.repeat(texts.many(kind, place.count(TEXTS[kind])))
        for size in BATCH_SIZES:
            found[f"{kind}, all, batches of {size}"] = rate(
                many,
                partial(model.encode, batch_size=size, show_progress_bar=False),
                place.seconds / 3,
            )
    return found


def _passes(place: Place, engine: Engine, kind: str, budget: int) -> list[list[Ints]]:
    """All texts in passes of near lengths."""
    ids = sorted(engine.ids(texts.many(kind, place.count(TEXTS[kind]))), key=len)
    passes: list[list[Ints]] = []
    while ids:
        count = max(1, budget // len(ids[-1]))
        passes.append(ids[-count:])
        del ids[-count:]
    return passes


def _by_schedule(
    place: Place, engine: Engine, kind: str, embed: Callable[[list[Ints]], object]
) -> dict[str, int]:
    """Texts a second by tokens a pass and threads; tokenizing is not in it."""
    found = {}
    for budget, threads in itertools.product(BUDGETS, THREADS):
        passes = _passes(place, engine, kind, budget)
        with ThreadPoolExecutor(threads) as lanes:
            turns = itertools.repeat(range(place.count(TEXTS[kind])))
            once = partial(_run_all, lanes, embed, passes)
            found[f"{budget} tokens, {threads} threads"] = rate(turns, once, place.seconds / 5)
    return found


def _run_all(
    lanes: ThreadPoolExecutor,
    embed: Callable[[list[Ints]], object],
    passes: list[list[Ints]],
    _: object,
) -> None:
    """Run every pass once, and wait for the last."""
    for _row in lanes.map(embed, passes):
        pass


def _bare(place: Place, kind: str) -> dict[str, int]:
    """A session with onnxruntime's own defaults; token embeddings come back and numpy pools."""
    engine = open_engine(place, FP16)
    manifest = engine.backend.manifest
    opened = onnxruntime.InferenceSession(
        str(place.artifact(FP16) / GRAPH),
        providers=["CUDAExecutionProvider"] * (place.provider == "cuda") + ["CPUExecutionProvider"],
    )

    def embed(part: list[Ints]) -> object:
        batch = pad(part, manifest.pad_token_id, manifest.padding_side)
        hidden = opened.run(None, feed(opened, batch))[0]
        return finishing.normalize(pool(manifest.pooling, hidden, batch.attention_mask))

    return _by_schedule(place, engine, kind, embed)
