"""The server starts and proves its golden vectors; what it refuses, and how."""

from __future__ import annotations

import os
from pathlib import Path

from tests.gpu.place import DECODER, FP16, FP32, NOMIC, Place
from tests.gpu.results import Results
from tests.gpu.server import refused, serving

SEARCHED = "LD_LIBRARY_PATH"


def run(place: Place, results: Results, log: Path) -> None:
    """Start each model; then with what a machine may lack taken away."""
    for model in (FP32, FP16, NOMIC):
        results.attempt(model, _started, place, model, log)
    if place.provider == "cuda":
        folders = os.environ[SEARCHED].split(os.pathsep)
        without_cudnn = os.pathsep.join(f for f in folders if "cudnn" not in f)
        lacking = {
            "no visible GPU": {"CUDA_VISIBLE_DEVICES": ""},
            "no libraries": {SEARCHED: ""},
            "no cuDNN": {SEARCHED: without_cudnn},
        }
        for name, variables in lacking.items():
            results.attempt(name, refused, place, FP32, **variables)
        results.attempt("a decoder in fp32", refused, place, DECODER)


def _started(place: Place, model: str, log: Path) -> dict[str, object]:
    with serving(place, model, log=log) as server:
        status, answer = server.embed(["does it work", "yes"])
        found = {"ready_s": round(server.ready_after, 2), "status": status}
        found["components"] = len(answer["data"][0]["embedding"]) if status == 200 else answer
        found["resident_mb"] = round(server.resident_mb())
    return {
        **found,
        "said": [line for line in log.read_text().splitlines() if "golden" in line][-1:],
    }
