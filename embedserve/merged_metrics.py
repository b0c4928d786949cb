"""Merges the metrics of many processes: every series gets the name of its process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class _Families(Collector):
    """The collector that generate_latest needs."""

    families: Iterable[Metric]

    def collect(self) -> Iterator[Metric]:
        yield from self.families


def merge(scrapes: Mapping[str, bytes], label: str) -> bytes:
    """Merge Prometheus texts by process name into one; `label` names each series' process."""
    families: dict[str, Metric] = {}
    for name, text in scrapes.items():
        for family in text_string_to_metric_families(text.decode()):
            samples = [s._replace(labels={**s.labels, label: name}) for s in family.samples]
            merged = families.setdefault(family.name, family)
            merged.samples = samples if merged is family else merged.samples + samples
    return generate_latest(_Families(families.values()))
