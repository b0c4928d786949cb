"""What each stage of a request costs: python -m tests.bench.stages

Processor microseconds per text of one request's way through embedserve, stage by stage, in one
thread, on the real all-MiniLM-L6-v2: a request of one short text, and one of 32 texts of mixed
lengths (mean 39 tokens) in passes as the server makes them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import ParamSpec, TypeVar

import numpy as np
import onnxruntime

from embedserve import artifact
from embedserve.api import parse, render
from embedserve.arrays import finishing
from embedserve.arrays.batch import pad
from embedserve.arrays.pooling import pool
from embedserve.arrays.types import Floats
from embedserve.config.models_toml import ModelSpec
from embedserve.diagnose.sample_texts import texts
from embedserve.engine.batch_queue import BatchQueue, Entry
from embedserve.model.loading import load_model
from embedserve.model.onnx_backend import options
from embedserve.model.providers import PROVIDERS

ROOT = Path(__file__).parent.parent.parent
MODEL = "all-MiniLM-L6-v2"
ROUNDS = 40
STAGES = ("parse", "tokenize", "queue", "pad", "run", "pool", "normalize", "render")
P = ParamSpec("P")
T = TypeVar("T")


def _rendered(rows: Floats, tokens: int) -> list[bytes]:
    """All parts of the answer: they are made one by one."""
    return list(render.embeddings_parts(MODEL, rows, tokens, [], "float"))


class Profile:
    """Processor seconds of each stage, one figure a round."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def begin(self) -> None:
        """Begin a round."""
        for rounds in self.seconds.values():
            rounds.append(0.0)

    def add(self, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a part of one stage: its time adds to what the round has of it."""
        start = time.process_time()
        made = function(*args, **kwargs)
        self.seconds[stage][-1] += time.process_time() - start
        return made


def measure(asked: list[str]) -> Profile:
    """Take one request of these texts through every stage, ROUNDS times."""
    directory = ROOT / "artifacts" / MODEL
    model, _ = load_model(ModelSpec(MODEL), directory, "cpu")
    session = onnxruntime.InferenceSession(directory / artifact.GRAPH, options(threads=1))
    manifest, shape = model.manifest, model.encoder.shape
    content = json.dumps({"model": MODEL, "input": asked}).encode()
    profile = Profile()
    for _ in range(ROUNDS):
        profile.begin()
        request = profile.add("parse", parse.parse_embeddings, content, 2048)
        encoded = profile.add("tokenize", model.tokenizer.encode, request.texts or [])
        queue = BatchQueue(PROVIDERS["cpu"].tokens_per_pass)
        profile.add("queue", queue.put, [Entry(ids, shape) for ids in encoded.sequences])
        parts = []
        while taken := profile.add("queue", queue.take):
            batch = profile.add("pad", pad, [e.ids for e in taken], manifest.pad_token_id, "right")
            feed = {**batch._asdict(), "token_type_ids": np.zeros_like(batch.input_ids)}
            hidden = profile.add("run", session.run, None, feed)[0]
            pooled = profile.add("pool", pool, manifest.pooling, hidden, batch.attention_mask)
            parts.append(profile.add("normalize", finishing.normalize, pooled))
        rows = np.concatenate(parts)
        profile.add("render", _rendered, rows, encoded.tokens)
    return profile


def main() -> None:
    """Print a row a stage."""
    mixed = [text for text in texts(64) if len(text) > 20][:32]
    columns = [measure(["how do I reset my password"]), measure(mixed)]
    print("us of one core per text      1 text   32 texts")
    for stage in STAGES:
        found = [median(c.seconds[stage]) * 1e6 for c in columns]
        print(f"{stage:24}{found[0]:11.1f}{found[1] / len(mixed):11.1f}")


if __name__ == "__main__":
    main()
