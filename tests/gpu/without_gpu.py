"""The whole server, but a pass takes no time: python -m tests.gpu.without_gpu serve ...

What it reaches is the limit of everything beside the GPU: HTTP, JSON, tokenizing, scheduling.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, cast

import numpy as np

from embedserve import cli
from embedserve.arrays.batch import Batch
from embedserve.arrays.types import Floats
from embedserve.model import loading, providers
from embedserve.model.onnx_backend import OnnxBackend
from embedserve.model.providers import PROVIDERS


def embed(self: OnnxBackend, batch: Batch, *_: object) -> Floats:
    """One unit row for each sequence."""
    rows = np.zeros((len(batch.input_ids), self.manifest.dimension), np.float32)
    rows[:, 0] = 1.0
    return rows


def main() -> None:
    """Serve with CUDA's lanes and passes, and a constant in the place of each."""
    cuda, cpu = PROVIDERS["cuda"], PROVIDERS["cpu"]
    row = replace(cuda, name=cpu.name, options={}, device=cpu.device, check=cpu.check)
    cast(dict[str, Any], providers.PROVIDERS)["cuda"] = row
    tokenizing = providers.tokenizing
    providers.tokenizing = lambda provider, cores: tokenizing(cuda, cores)
    OnnxBackend.embed = embed  # type: ignore[method-assign,assignment]
    loading.check_golden = lambda *_: (0.0, 1e7)
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
