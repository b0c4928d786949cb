"""Prometheus' rules as rows, and which series an expression asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from embedserve.metrics import METRICS
from tests.conftest import ROOT

FOLDER = ROOT / "deploy" / "prometheus"
RULES, TESTS, CONFIG = FOLDER / "rules.yml", FOLDER / "rules.test.yml", FOLDER / "prometheus.yml"
# What prometheus_client has of the process, and what Prometheus has of each target and alert.
PROCESS = frozenset(
    "process_" + name
    for name in (
        *("cpu_seconds_total", "max_fds", "open_fds", "resident_memory_bytes"),
        *("start_time_seconds", "virtual_memory_bytes"),
    )
)
PROMETHEUS = frozenset(("up", "ALERTS"))
# A name that is no function, no keyword and no label: what braces, a range or an operator follows.
_SELECTOR = re.compile(r"(?<![\w:.\"])([a-zA-Z_:][\w:]*)(\{[^}]*\})?(?![\w:]|\s*\()")
_WORDS = frozenset(("and", "or", "unless", "bool", "Inf"))


@dataclass(frozen=True, slots=True)
class Rule:
    """A recording rule (`severity` is empty) or an alert."""

    name: str
    expression: str
    severity: str
    annotations: Mapping[str, str]


def read() -> list[Rule]:
    """Every rule in the file's order."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [_rule(rule) for group in groups for rule in group["rules"]]


def records() -> list[Rule]:
    """The recording rules."""
    return [rule for rule in read() if not rule.severity]


def alerts() -> list[Rule]:
    """The alerts."""
    return [rule for rule in read() if rule.severity]


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """Each metric that an expression asks for, with its braces."""
    text = re.sub(r"\b(by|without|on|ignoring) \([^)]*\)", "", expression)
    text = re.sub(r"\[[^\]]*\]", "", text)
    found = {(m[1], m[2] or "") for m in _SELECTOR.finditer(text) if m[1] not in _WORDS}
    yield from found


def known() -> dict[str, frozenset[str]]:
    """Every metric there may be, by the name of its series, with its labels; None of others'."""
    series: dict[str, frozenset[str]] = {name: frozenset() for name in PROCESS}
    for row in METRICS:
        name, labels = f"embedserve_{row.name}", frozenset(row.labels)
        if row.buckets:
            series[f"{name}_bucket"] = labels | {"le"}
            series[f"{name}_sum"] = series[f"{name}_count"] = labels
        else:
            series[name] = labels
    return series


def _rule(rule: Mapping[str, Any]) -> Rule:
    severity = rule.get("labels", {}).get("severity", "")
    name = rule.get("record") or rule["alert"]
    return Rule(name, rule["expr"], severity, rule.get("annotations", {}))
