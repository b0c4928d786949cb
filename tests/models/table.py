"""The tables of docs/models.md: python -m tests.models.table

What was seen of each model of the catalogue is from the last runs: results.json, speed.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from export import catalogue
from export.catalogue import Catalogue
from export.families.registry import FAMILIES
from tests.models import records
from tests.models.records import Record, Results

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
SPEED = Path(__file__).with_name("speed.json")
BEGIN = "<!-- made by python -m tests.models.table: begin -->\n"
END = "<!-- made by python -m tests.models.table: end -->\n"
_FAMILY_ROW = re.compile(r"^\| `model_type` \|.*$", re.MULTILINE)
_LENGTHS = ("64", "384", "2048", "mixed")


def page(text: str, known: Catalogue, results: Results, speed: Mapping[str, Any]) -> str:
    """The page with its tables as they should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    families = f"| `model_type` | {', '.join(f'`{name}`' for name in sorted(FAMILIES))} |"
    before = _FAMILY_ROW.sub(lambda _: families, before, count=1)
    tables = "\n".join([*_models(known, results, speed), "", *_refused(known), "", *_speed(speed)])
    return f"{before}{BEGIN}\n{tables}\n\n{END}{after}"


def _models(known: Catalogue, results: Results, speed: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"By `{results.command}` of {results.date}, with "
        f"{', '.join(f'{name} {version}' for name, version in results.versions.items())}, "
        f"on {results.processor}:"
    )
    yield ""
    yield "| model | shape | as published | saved again by today's libraries | against torch |"
    yield "|---|---|---|---|---|"
    for name, entry in known.models.items():
        published = results.shapes[entry.shape]
        seen = _seen(published)
        real = results.real.get(name.rpartition("/")[2])
        if real is not None:
            seen = f"its real weights: {_seen(real)}"
        again = results.resaved.get(entry.shape)
        cells = [
            name,
            entry.shape,
            seen,
            "" if again is None else _seen(again),
            _ratios(speed, published.model_type),
        ]
        yield f"| {' | '.join(cells)} |"


def _seen(record: Record) -> str:
    if record.outcome == "proven":
        return f"{record.max_difference:.1e}"
    return f"{record.outcome}: {record.line}".replace("|", "\\|")


def _ratios(speed: Mapping[str, Any], model_type: str) -> str:
    """The server's texts a second over torch's, by length, where the family was measured."""
    figures = speed.get("families", {}).get(model_type)
    if figures is None:
        return ""
    return ", ".join(f"{figures[kind]['ratio']:.2f}" for kind in _LENGTHS if kind in figures)


def _refused(known: Catalogue) -> Iterator[str]:
    yield "| known not to work | reason |"
    yield "|---|---|"
    for name, reason in known.refused.items():
        yield f"| {name} | {reason} |"


def _speed(speed: Mapping[str, Any]) -> Iterator[str]:
    if not speed:
        return
    yield (
        f"Texts a second, server / torch, by `{speed['command']}` of {speed['date']}: "
        f"{speed['cores']} cores of {speed['processor']}, hidden size {speed['hidden_size']}, "
        f"{speed['layers']} layers, "
        f"{', '.join(f'{name} {version}' for name, version in speed['versions'].items())}:"
    )
    yield ""
    yield "| family | 64 tokens | 384 tokens | 2,048 tokens | mixed |"
    yield "|---|---|---|---|---|"
    for family, kinds in speed["families"].items():
        cells = (
            f"{kinds[kind]['server']:.1f} / {kinds[kind]['torch']:.1f} = {kinds[kind]['ratio']:.2f}"
            for kind in _LENGTHS
        )
        yield f"| {family} | {' | '.join(cells)} |"


def current() -> str:
    """The page as it should be now."""
    speed = json.loads(SPEED.read_text(encoding="utf-8")) if SPEED.exists() else {}
    text = PAGE.read_text(encoding="utf-8")
    return page(text, catalogue.read(), records.read(), speed)


if __name__ == "__main__":
    PAGE.write_text(current(), encoding="utf-8")
