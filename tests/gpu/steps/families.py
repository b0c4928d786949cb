"""Small models, one of each architecture: their vectors against those of the CPU in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.gpu import texts
from tests.gpu.place import FAMILIES, Place
from tests.gpu.results import Results
from tests.gpu.steps.engine import open_engine
from tests.gpu.steps.parity import compared

TEXTS, BUDGET = 64, 2_048


def run(place: Place, results: Results, log: Path) -> None:
    """What one precision of one model cannot do is said, and the next is tried."""
    for family in FAMILIES:
        for precision in ("fp32", "fp16"):
            name = f"{family}-{precision}"
            if place.artifact(name).exists():
                results.attempt(name, _of, place, family, name)
            else:
                results.add(**{name: "no artifact"})


def _of(place: Place, family: str, name: str) -> dict[str, float]:
    cpu = open_engine(place, f"{family}-fp32", "cpu")
    ids = cpu.ids(texts.many("mixed", place.count(TEXTS)))
    expected = np.concatenate([cpu.rows([row]) for row in ids])
    return compared(open_engine(place, name).in_passes(ids, BUDGET), expected)
