"""results.json: what was seen of each shape, and with which command, versions and machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("results.json")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one model. `outcome`: proven, refused, wrong or failed.

    `line` is what the export or the comparison said, "" of a proven one. `graph`: optimum or
    family. `seconds` are those of the export.
    """

    outcome: str
    line: str = ""
    model_type: str = ""
    graph: str = ""
    masked_up_to: int | None = None
    max_difference: float | None = None
    min_cosine: float | None = None
    texts: int = 0
    longest: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run: `shapes` and `resaved` by the shape's name, `real` by the model's."""

    command: str
    date: str
    versions: dict[str, str]
    processor: str
    shapes: dict[str, Record]
    resaved: dict[str, Record]
    real: dict[str, Record]


def read(path: Path = PATH) -> Results:
    """Read a run's file."""
    document: Json = json.loads(path.read_text(encoding="utf-8"))
    for part in ("shapes", "resaved", "real"):
        document[part] = {name: Record(**record) for name, record in document[part].items()}
    return Results(**document)


def updated(old: Results, new: Results, order: Sequence[str]) -> Results:
    """The old run with the records of a newer, partial one; its shapes in `order`.

    Of other versions or another machine a run is made whole: ValueError.
    """
    if (old.versions, old.processor) != (new.versions, new.processor):
        raise ValueError("results.json is of other versions or another processor: run all shapes")
    shapes, resaved = old.shapes | new.shapes, old.resaved | new.resaved
    return replace(
        old,
        date=new.date,
        shapes={name: shapes[name] for name in order if name in shapes},
        resaved={name: resaved[name] for name in order if name in resaved},
        real=old.real | new.real,
    )


def write(results: Results, path: Path = PATH) -> None:
    path.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
