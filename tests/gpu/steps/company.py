"""Whether a text's bits depend on what shares its pass, and on which part of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from embedserve.arrays.types import Floats, Ints
from tests.gpu import texts
from tests.gpu.place import FP16, FP32, Place
from tests.gpu.results import Results
from tests.gpu.steps.engine import Engine, open_engine

SAMPLE = 24
MATES = 31
Row = Callable[[Engine, Ints, list[Ints]], Floats]


def run(place: Place, results: Results, log: Path) -> None:
    """For each kind of company: how many rows keep their bits, and how far the others move."""
    for model in (FP32, FP16):
        engine = open_engine(place, model)
        ids = engine.ids(texts.many("mixed", 4096))
        by_length: dict[int, list[Ints]] = {}
        for row in ids:
            by_length.setdefault(len(row), []).append(row)
        full = [rows for rows in by_length.values() if len(rows) > 2 * MATES]
        sample = [(rows[0], rows[1:]) for rows in full[: place.count(SAMPLE)]]
        alone = [engine.rows([row])[0] for row, _ in sample]
        for name, given in _companies():
            found = [given(engine, row, mates)[0] for row, mates in sample]
            results.add(**{f"{model}, {name}": _held(found, alone)})
        _same_shape(engine, sample, model, results)


def _companies() -> Iterator[tuple[str, Row]]:
    """How a text may be run, against alone."""
    yield "alone again", lambda engine, row, _: engine.rows([row])
    for count in (1, 7, MATES):

        def equal(engine: Engine, row: Ints, mates: list[Ints], count: int = count) -> Floats:
            return engine.rows([row, *mates[:count]])

        yield f"{count} mates of its length", equal
    for more in (1, 8, 64):

        def longer(engine: Engine, row: Ints, _: list[Ints], more: int = more) -> Floats:
            return engine.rows([row], len(row) + more)

        yield f"padded by {more} tokens", longer


def _same_shape(
    engine: Engine, sample: list[tuple[Ints, list[Ints]]], model: str, results: Results
) -> None:
    """The shape of the pass stays, and the mates or the place change."""
    first, mates, place = [], [], []
    for row, others in sample:
        first.append(engine.rows([row, *others[:MATES]])[0])
        mates.append(engine.rows([row, *others[MATES : 2 * MATES]])[0])
        place.append(engine.rows([*others[:MATES], row])[-1])
    results.add(**{f"{model}, one shape, other mates": _held(mates, first)})
    results.add(**{f"{model}, one shape, other place": _held(place, first)})


def _held(found: list[Floats], expected: list[Floats]) -> dict[str, object]:
    equal = [np.array_equal(a, b) for a, b in zip(found, expected, strict=True)]
    moved = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    return {"texts": len(equal), "equal_bits": sum(equal), "largest_difference": moved}
