"""A real Prometheus, of Debian's package, that scrapes one server every half second."""

from __future__ import annotations

import contextlib
import math
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.faults.serving import NO_TLS, free_port, kill, until
from tests.observe import rules

SCRAPE = "500ms"
WINDOW = "3s"  # in place of Grafana's $__rate_interval: four scrapes and more


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: (time, value) pairs in time's order, both in seconds and numbers."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def finite(self) -> list[float]:
        """The values that are numbers."""
        return [value for _, value in self.points if math.isfinite(value)]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    client: httpx.Client

    def query(self, expression: str, **at: float) -> list[Series]:
        """Evaluate an expression now or at `time`."""
        return [
            Series(row["metric"], (_point(row["value"]),))
            for row in self._get("query", query=expression, **at)["result"]
        ]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """Evaluate it over a time."""
        asked = {"query": expression, "start": start, "end": end, "step": step}
        return [
            Series(row["metric"], tuple(map(_point, row["values"])))
            for row in self._get("query_range", **asked)["result"]
        ]

    def number(self, expression: str) -> float | None:
        """The value of an expression with one series; None when it has none."""
        found = self.query(expression)
        assert len(found) <= 1, expression
        return found[0].points[0][1] if found else None

    def label_values(self, label: str, selector: str) -> list[str]:
        """What Grafana's label_values(selector, label) asks for."""
        values: list[str] = self._get(f"label/{label}/values", **{"match[]": selector})
        return values

    def rules(self) -> list[Mapping[str, Any]]:
        """Each rule as Prometheus sees it: name, type, health, lastError; state of an alert."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def alerts(self) -> dict[str, str]:
        """Alerts that are pending or firing, by name."""
        return {a["labels"]["alertname"]: a["state"] for a in self._get("alerts")["alerts"]}

    def _get(self, path: str, **asked: Any) -> Any:
        answer = self.client.get(f"/api/v1/{path}", params=asked)
        content = answer.json()
        assert content["status"] == "success", (asked, content)
        return content["data"]


@contextlib.contextmanager
def scraping(folder: Path, target: str) -> Iterator[Prometheus]:
    """Run Prometheus with the shipped configuration, faster, and `target` in its place."""
    config = yaml.safe_load(rules.CONFIG.read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE}
    config["rule_files"] = [str(rules.RULES)]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    words = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(words, stderr=log, stdout=log)
    options: dict[str, Any] = {"trust_env": False, "verify": NO_TLS, "timeout": 30}
    try:
        with httpx.Client(base_url=f"http://{address}", **options) as client:
            until(lambda: _is_ready(process, client, folder / "prometheus.log"))
            yield Prometheus(client)
    finally:
        kill(process)


def promtool(*arguments: str | Path) -> str:
    """Run promtool to its end; what it says, which is asserted to be no error."""
    words = ["promtool", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _is_ready(process: subprocess.Popen[bytes], client: httpx.Client, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def _point(pair: tuple[float, str]) -> tuple[float, float]:
    return pair[0], float(pair[1])
