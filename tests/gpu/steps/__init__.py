"""What is measured, in this order; each step has its own limit, and leaves what it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Step(NamedTuple):
    """A module of this folder with `run(place, results, log)`. `seconds`: its limit."""

    seconds: float
    shows: str


STEPS: Mapping[str, Step] = {
    "versions": Step(30, "the GPU, the driver and the versions of all libraries"),
    "start": Step(90, "the server starts and proves its golden vectors; what it refuses"),
    "parity": Step(60, "vectors against those of the CPU's artifact"),
    "families": Step(90, "vectors of small models, one of each architecture"),
    "company": Step(45, "whether a text's bits depend on what shares its pass"),
    "memory": Step(60, "memory on the device after load and after long texts"),
    "exhaustion": Step(60, "another process takes the memory: answers, and life"),
    "throughput": Step(200, "texts a second through HTTP, by tokens a pass and lanes"),
    "latency": Step(45, "a lone text, and a query beside bulk"),
    "indexing": Step(60, "a file of texts without a server"),
    "rivals": Step(85, "sentence-transformers in fp16, and bare onnxruntime in a loop"),
    "passes": Step(75, "milliseconds of a pass by shape, and by how it is run"),
}
