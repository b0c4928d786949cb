"""results.json: what was seen of each shape, and with which command, versions and machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
    versions: Mapping[str, str]
    processor: str
    shapes: Mapping[str, Record]
    resaved: Mapping[str, Record]
    real: Mapping[str, Record]


def read(path: Path = PATH) -> Results:
    """Read a run's file."""
    document: Json = json.loads(path.read_text(encoding="utf-8"))
    for part in ("shapes", "resaved", "real"):
        document[part] = {name: Record(**record) for name, record in document[part].items()}
    return Results(**document)


def write(results: Results, path: Path = PATH) -> None:
    path.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
