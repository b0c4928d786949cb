"""Memory on the device: after load, after long texts, after many shapes; whether it grows."""

from __future__ import annotations

from pathlib import Path

from tests.gpu import texts
from tests.gpu.load import Load, Loading
from tests.gpu.place import FP16, FP32, NOMIC, Place
from tests.gpu.results import Results
from tests.gpu.server import Server, serving
from tests.gpu.steps.versions import nvidia_smi

# A text at nomic's limit, and one past that of all-MiniLM-L6-v2.
LONG = {FP32: 260, FP16: 260, NOMIC: 8_300}
CASES = [(FP16, 16_384), (NOMIC, 16_384), (FP32, 16_384), (FP16, 131_072)]


def used_mb() -> str:
    """Of the whole device, by nvidia-smi."""
    return nvidia_smi("memory.used")


def run(place: Place, results: Results, log: Path) -> None:
    """One server after the other."""
    results.add(without_server=used_mb())
    for model, tokens in CASES[: place.count(len(CASES))]:
        name = f"{model} at {tokens} tokens a pass"
        results.attempt(name, _of, place, model, tokens, log)
    results.add(without_server_again=used_mb())


def _of(place: Place, model: str, tokens: int, log: Path) -> dict[str, object]:
    flags = ("--tokens-per-pass", str(tokens), "--lanes", "2")
    found: dict[str, object] = {}
    with serving(place, model, *flags, log=log) as server:
        found |= {"after load": used_mb(), "host after load": round(server.resident_mb())}
        for turn in (1, 2):
            found[f"statuses, turn {turn}"] = _long_texts(server, LONG[model])
            found[f"after long texts, turn {turn}"] = used_mb()
        for turn in (1, 2, 3):
            found[f"mixed texts a second, turn {turn}"] = round(_mixed(place, server))
            found[f"after mixed texts, turn {turn}"] = used_mb()
        found["host after all"] = round(server.resident_mb())
    return found


def _long_texts(server: Server, words: int) -> list[int]:
    """Requests that fill passes with long texts."""
    return [
        server.embed(texts.long(server.place.count(words), server.place.count(64)))[0]
        for _ in range(3)
    ]


def _mixed(place: Place, server: Server) -> float:
    load = Load("mixed", place.count(32), 32)
    return Loading(place, server.port, server.model, load, place.seconds).rate().texts
