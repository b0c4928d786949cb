"""The Grafana dashboard as what it asks and where it shows it: deploy/grafana/embedserve.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PATH = ROOT / "deploy" / "grafana" / "embedserve.json"
COLUMNS = 24  # of Grafana's grid


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel. `legend`: Grafana's template of a series' name."""

    name: str
    expression: str
    legend: str
    instant: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel, or a row's heading. `x`, `y`, `width`, `height` in the grid's units."""

    number: int
    kind: str
    title: str
    description: str
    x: int
    y: int
    width: int
    height: int
    queries: tuple[Query, ...]
    content: Mapping[str, Any]

    @property
    def unit(self) -> str:
        """Grafana's name of the unit of its values."""
        return str(self.defaults.get("unit", ""))

    @property
    def defaults(self) -> Mapping[str, Any]:
        """How its values are shown."""
        found: Mapping[str, Any] = self.content.get("fieldConfig", {}).get("defaults", {})
        return found


def content() -> Mapping[str, Any]:
    """The file's JSON."""
    read: Mapping[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return read


def panels() -> list[Panel]:
    """All panels in the file's order."""
    return [*_panels(content())]


def expand(expression: str, window: str) -> str:
    """A query as Grafana sends it: every variable set to All, rates over `window`."""
    for variable in content()["templating"]["list"]:
        if variable["type"] == "query":
            expression = re.sub(rf"\${variable['name']}\b", variable["allValue"], expression)
    return expression.replace("$__rate_interval", window)


def named(legend: str, labels: Mapping[str, str]) -> str:
    """A series' name by its legend's template."""
    return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), legend)


def _panels(dashboard: Mapping[str, Any]) -> Iterator[Panel]:
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        queries = [
            Query(q["refId"], q["expr"], q["legendFormat"], q.get("instant", False))
            for q in panel.get("targets", ())
        ]
        yield Panel(
            panel["id"],
            panel["type"],
            panel["title"],
            panel.get("description", ""),
            place["x"],
            place["y"],
            place["w"],
            place["h"],
            tuple(queries),
            panel,
        )
