"""A lone text's time, and a query's beside bulk."""

from __future__ import annotations

from pathlib import Path

from tests.gpu.load import Load, Loading, Rate
from tests.gpu.place import FP16, FP32, Place
from tests.gpu.results import Results
from tests.gpu.server import serving

ONE = Load("short", 1, 1, processes=1)
BULK_TEXTS = 256  # of a request


def run(place: Place, results: Results, log: Path) -> None:
    """First alone, then beside an indexer."""
    for model in (FP32, FP16):
        results.attempt(model, _of, place, model, log)


def _of(place: Place, model: str, log: Path) -> dict[str, object]:
    with serving(place, model, log=log) as server:
        lone = Loading(place, server.port, model, ONE, place.seconds).rate()
        load = Load("mixed", place.count(BULK_TEXTS), 8, processes=4)
        bulk = Loading(place, server.port, model, load, 2 * place.seconds + 1)
        beside = Loading(place, server.port, model, ONE, place.seconds).rate()
        texts = round(bulk.rate().texts)
    return {"lone": _ms(lone), "beside bulk": _ms(beside), "bulk_texts": texts}


def _ms(rate: Rate) -> dict[str, float]:
    return {"p50_ms": round(1e3 * rate.p50, 3), "p99_ms": round(1e3 * rate.p99, 3)}
