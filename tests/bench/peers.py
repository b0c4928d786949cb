"""What is measured side by side: name -> how it is started, on the same model files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench.corpus import MODEL

ROOT = Path(__file__).parent.parent.parent
# Where what the peers need is made, once: `make clean` removes it.
SCRATCH = ROOT / "build" / "bench"
FOLDER = SCRATCH / MODEL
URL = "/v1/embeddings"

OWN, RAW, REPLACED, TORCH, ONNX = "embedserve", "raw", "replaced", "infinity-torch", "infinity-onnx"

MEANING: Mapping[str, str] = {
    OWN: "embedserve over HTTP",
    RAW: "onnxruntime in a loop, the best fixed schedule, no HTTP",
    REPLACED: "sentence-transformers + FastAPI",
    TORCH: "Infinity 0.0.78, engine torch",
    ONNX: "Infinity 0.0.78, engine optimum, the same graph",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """A program: its command (`{port}` is filled in), where it runs, and whether it has a port."""

    name: str
    command: tuple[str, ...]
    folder: Path = ROOT
    served: bool = True

    def environment(self) -> dict[str, str]:
        """What its process gets: nothing of the caller's but PATH; no network, no telemetry."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(SCRATCH),
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
            "INFINITY_ANONYMOUS_USAGE_STATS": "0",
            "TORCHINDUCTOR_CACHE_DIR": str(SCRATCH / "inductor"),
            "ORT_DISABLE_TELEMETRY": "1",
        }


def table(quick: bool) -> dict[str, Peer]:
    """All peers, or those that need no torch."""
    serve, bench = ROOT / ".venv" / "bin", ROOT / ".venv-bench" / "bin"
    own = Peer(
        OWN,
        (f"{serve}/embedserve", "serve", "--port", "{port}", "--model", MODEL, "--no-access-log"),
    )
    raw = Peer(RAW, (f"{serve}/python", "-m", "tests.bench.raw"), served=False)
    replaced = Peer(
        REPLACED, (f"{bench}/python", "-m", "tests.bench.replaced_server", str(FOLDER), "{port}")
    )
    # Its optimum engine finds a graph only in the folder it runs in; CLS pooling is its default.
    infinity = (
        *(f"{bench}/infinity_emb", "v2", "--model-id", ".", "--served-model-name", MODEL),
        *("--device", "cpu", "--host", "127.0.0.1", "--port", "{port}"),
        *("--url-prefix", "/v1", "--log-level", "warning"),
    )
    torch = Peer(TORCH, (*infinity, "--engine", "torch"), FOLDER)
    onnx = Peer(ONNX, (*infinity, "--engine", "optimum", "--pooling-method", "mean"), FOLDER)
    chosen = (own, raw) if quick else (replaced, torch, onnx, own, raw)
    return {peer.name: peer for peer in chosen}
