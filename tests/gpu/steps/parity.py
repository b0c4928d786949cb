"""Vectors of the provider against those that the CPU gives for the fp32 artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.gpu import texts
from tests.gpu.place import FP16, FP32, NOMIC, Place
from tests.gpu.results import Results
from tests.gpu.steps.engine import open_engine

COUNTS = {"mixed": 384, "long": 32}
BUDGETS = (1, 16_384)  # a pass of one text, and full ones


def run(place: Place, results: Results, log: Path) -> None:
    """Compare both precisions, alone and in full passes."""
    for reference, models in {FP32: (FP32, FP16), NOMIC: (NOMIC,)}.items():
        cpu = open_engine(place, reference, "cpu")
        ids = cpu.ids([t for kind, n in COUNTS.items() for t in texts.many(kind, place.count(n))])
        expected = np.concatenate([cpu.rows([row]) for row in ids])
        for model in models:
            engine = open_engine(place, model)
            for budget in BUDGETS:
                found = compared(engine.in_passes(ids, budget), expected)
                results.add(**{f"{model} at {budget} tokens a pass": found})


def compared(rows: NDArray[Any], expected: NDArray[Any]) -> dict[str, float]:
    """The largest difference of a component, and the least and mean cosine."""
    rows, expected = rows.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = np.einsum("nd,nd->n", rows, expected) / norms
    return {
        "texts": len(rows),
        "largest_difference": float(np.abs(rows - expected).max()),
        "least_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
    }
