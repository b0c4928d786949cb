"""The Grafana dashboard, panel by panel: python -m tests.observe.dashboard writes its JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PATH = ROOT / "deploy" / "grafana" / "embedserve.json"

# What every query is restricted to; `$model` where the metric has that label.
WHERE = 'job="$job",instance=~"$instance"'
MODEL = f'{WHERE},model=~"$model"'
RATE = "$__rate_interval"
COLUMNS = 24
HEIGHT = 8


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: title, unit, (query, legend) pairs, what it tells; `kind` is Grafana's."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    tells: str
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    most: float | None = None
    thresholds: tuple[tuple[float | None, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A row of panels."""

    title: str
    panels: tuple[Panel, ...] = field(default_factory=tuple)


def _rate(metric: str, by: str, where: str = MODEL) -> str:
    return f"sum by ({by}) (rate(embedserve_{metric}{{{where}}}[{RATE}]))"


def _quantile(part: float, metric: str) -> str:
    return f"histogram_quantile({part}, {_rate(f'{metric}_bucket', 'le')})"


def _mean(metric: str, by: str = "model") -> str:
    return f"{_rate(f'{metric}_sum', by)} / {_rate(f'{metric}_count', by)}"


def _latency(title: str, metric: str, tells: str) -> Panel:
    quantiles = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    return Panel(title, "s", tuple((_quantile(q, metric), name) for q, name in quantiles), tells)


GREEN_RED = ((None, "red"), (1.0, "green"))
FULL = ((None, "green"), (0.7, "yellow"), (0.9, "red"))

ROWS: tuple[Row, ...] = (
    Row(
        "At a glance",
        (
            Panel(
                "Replicas ready",
                "none",
                ((f"sum(embedserve_ready{{{WHERE}}})", "ready"),),
                "Replicas that say they want traffic. Less than you run: see EmbedserveNotReady.",
                kind="stat",
                width=4,
                thresholds=GREEN_RED,
            ),
            Panel(
                "Requests/s answered",
                "reqps",
                (
                    (
                        f'sum(rate(embedserve_requests_total{{{MODEL},outcome="ok"}}[{RATE}]))',
                        "answered",
                    ),
                ),
                "Requests that got their vectors.",
                kind="stat",
                width=4,
            ),
            Panel(
                "Not answered",
                "percentunit",
                (
                    (
                        'max(embedserve:unanswered:ratio_rate5m{job="$job"})',
                        "of those that were not the client's fault",
                    ),
                ),
                "The objective is 0.5 %. 429 counts: whoever got it has no vectors.",
                kind="stat",
                width=4,
                thresholds=((None, "green"), (0.005, "yellow"), (0.072, "red")),
            ),
            Panel(
                "Saturation",
                "percentunit",
                (
                    (
                        f"sum(rate(embedserve_inference_duration_seconds_sum{{{WHERE}}}[{RATE}]))"
                        f" / sum(embedserve_lanes{{{WHERE}}})",
                        "lanes computing",
                    ),
                ),
                "The part of the time that lanes compute. Past 70 % queues grow with each burst.",
                kind="gauge",
                width=4,
                most=1.0,
                thresholds=FULL,
            ),
            Panel(
                "Predicted wait",
                "s",
                ((f"max(embedserve_predicted_wait_seconds{{{WHERE}}})", "worst replica"),),
                "Until all that waits now is done. At max_wait requests get 429.",
                kind="stat",
                width=4,
            ),
            Panel(
                "Memory of the limit",
                "percentunit",
                (
                    (
                        f"max(process_resident_memory_bytes{{{WHERE}}}"
                        f" / (embedserve_memory_limit_bytes{{{WHERE}}} > 0))",
                        "worst replica",
                    ),
                ),
                "Resident memory against what the process may use.",
                kind="gauge",
                width=4,
                most=1.0,
                thresholds=FULL,
            ),
        ),
    ),
    Row(
        "Traffic and errors",
        (
            Panel(
                "Requests by model",
                "reqps",
                ((_rate("requests_total", "model"), "{{model}}"),),
                "All requests. Without a name: they named no model that is served.",
                stacked=True,
            ),
            Panel(
                "Errors by code",
                "reqps",
                (
                    (
                        f'sum by (outcome) (rate(embedserve_requests_total{{{WHERE},outcome!="ok"}}'
                        f"[{RATE}])) > 0",
                        "{{outcome}}",
                    ),
                    (
                        f"{_rate('refusals_total', 'code', WHERE)} > 0",
                        "{{code}} (no whole request)",
                    ),
                ),
                "queue_full: more work than lanes. 4xx codes: a client sends what is not accepted. "
                "5xx codes: the log has the reason.",
            ),
            Panel(
                "In flight",
                "none",
                (
                    (
                        f"sum by (model) (embedserve_requests_in_flight{{{MODEL}}})",
                        "{{model}}",
                    ),
                ),
                "Embedding requests being answered.",
                stacked=True,
            ),
            Panel(
                "Texts/s",
                "cps",
                (
                    (_rate("texts_total", "model"), "{{model}}"),
                    (_rate("truncated_texts_total", "model"), "{{model}}, cut to its limit"),
                ),
                "Cut texts lose their end: clients should split them, or a model with a longer "
                "limit should take them.",
            ),
            Panel(
                "Tokens/s",
                "cps",
                (
                    (_rate("tokens_total", "model"), "{{model}}"),
                    (_rate("padding_tokens_total", "model"), "{{model}}, padding"),
                ),
                "What the processor computes: the measure of capacity.",
            ),
            Panel(
                "Cache",
                "percentunit",
                (
                    (
                        f"{_rate('cache_hits_total', 'model')} / ({_rate('cache_hits_total', 'model')}"
                        f" + {_rate('cache_misses_total', 'model')})",
                        "{{model}}",
                    ),
                ),
                "Texts whose vector was in the cache; nothing while cache_mb is 0.",
                most=1.0,
            ),
        ),
    ),
    Row(
        "Latency by stage",
        (
            _latency(
                "Request",
                "request_duration_seconds",
                "From the first byte read to the last byte handed over: large requests take longer.",
            ),
            _latency(
                "Queue",
                "queue_wait_seconds",
                "Until a request's first pass begins. The objective: 95 % within 1 s.",
            ),
            Panel(
                "Mean by stage",
                "s",
                (
                    (_mean("tokenization_duration_seconds"), "{{model}}, tokenize"),
                    (_mean("queue_wait_seconds"), "{{model}}, queue"),
                    (_mean("inference_duration_seconds"), "{{model}}, one pass"),
                ),
                "Which stage is the slow one.",
            ),
        ),
    ),
    Row(
        "Queue and passes",
        (
            Panel(
                "Sequences that wait",
                "none",
                ((f"sum by (model) (embedserve_queue_depth{{{MODEL}}})", "{{model}}"),),
                "Each text of a request is one.",
                stacked=True,
            ),
            Panel(
                "Predicted wait against its limit",
                "s",
                (
                    (f"embedserve_predicted_wait_seconds{{{WHERE}}}", "{{instance}}"),
                    (f"max(embedserve_max_wait_seconds{{{WHERE}}})", "max_wait: 429 from here on"),
                ),
                "The scale-out signal: it grows before anybody is refused.",
            ),
            Panel(
                "Lanes computing",
                "percentunit",
                (
                    (
                        f"sum by (instance) (rate(embedserve_inference_duration_seconds_sum{{{WHERE}}}"
                        f"[{RATE}])) / sum by (instance) (embedserve_lanes{{{WHERE}}})",
                        "{{instance}}",
                    ),
                    (
                        f"max(embedserve_lane_stop_seconds{{{WHERE}}}) > 0",
                        "seconds a pass takes to stop",
                    ),
                ),
                "1: every lane computes all the time. A pass that does not stop for 30 s is a lost "
                "lane.",
            ),
            Panel(
                "Texts in a pass",
                "none",
                ((_mean("batch_size"), "{{model}}, mean"), (_quantile(0.95, "batch_size"), "p95")),
                "More under load: passes are shared.",
            ),
            Panel(
                "Tokens in a pass",
                "none",
                (
                    (_mean("batch_tokens"), "{{model}}, mean"),
                    (_quantile(0.95, "batch_tokens"), "p95"),
                ),
                "With padding; at most tokens_per_pass, or one long text.",
            ),
            Panel(
                "Padding of a pass",
                "percentunit",
                (
                    (_mean("padding_ratio"), "{{model}}, mean"),
                    (_quantile(0.95, "padding_ratio"), "p95"),
                ),
                "Computed for nothing; at most a fifth, or a few tokens.",
                most=1.0,
            ),
        ),
    ),
    Row(
        "Process",
        (
            Panel(
                "Memory",
                "bytes",
                (
                    (f"process_resident_memory_bytes{{{WHERE}}}", "{{instance}}"),
                    (f"max(embedserve_memory_bound_bytes{{{WHERE}}})", "bound printed at start"),
                    (f"max(embedserve_memory_limit_bytes{{{WHERE}}} > 0)", "limit of the process"),
                ),
                "Resident memory stays below the bound; the bound should be below the limit.",
            ),
            Panel(
                "Held by requests",
                "bytes",
                (
                    (f"sum(embedserve_pending_bytes{{{WHERE}}})", "requests in flight"),
                    (f"sum(embedserve_cache_bytes{{{WHERE}}})", "cache of vectors"),
                ),
                "Bodies and answers in flight, bounded by max_pending_mb; the cache by cache_mb.",
            ),
            Panel(
                "Processor and descriptors",
                "none",
                (
                    (f"rate(process_cpu_seconds_total{{{WHERE}}}[{RATE}])", "{{instance}}, cores"),
                    (
                        f"process_open_fds{{{WHERE}}} / process_max_fds{{{WHERE}}}",
                        "descriptors, of 1",
                    ),
                ),
                "Cores in use, and the part of the file descriptors that are open.",
            ),
            Panel(
                "Failed passes",
                "none",
                (
                    (
                        f"sum by (model) (increase(embedserve_failed_passes_total{{{MODEL}}}[1h]))",
                        "{{model}}, in an hour",
                    ),
                ),
                "A text on which the model raised an error: the log has it.",
            ),
            Panel(
                "Models",
                "none",
                ((f"embedserve_model_info{{{MODEL}}}", ""),),
                "One line a replica and model. Two fingerprints of one model: vectors differ between "
                "replicas.",
                kind="table",
                width=16,
            ),
        ),
    ),
)


def build() -> dict[str, object]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, object]] = []
    y = 0
    for row in ROWS:
        panels.append(_placed({"type": "row", "title": row.title, "panels": []}, 0, y, COLUMNS, 1))
        x, y = 0, y + 1
        for panel in row.panels:
            height = 5 if panel.kind in ("stat", "gauge") else HEIGHT
            if x + panel.width > COLUMNS:
                x, y = 0, y + height
            panels.append(_placed(_panel(panel), x, y, panel.width, height))
            x += panel.width
        y += height
    for number, made in enumerate(panels, 1):
        made["id"] = number
    return {
        "title": "embedserve",
        "uid": "embedserve",
        "tags": ["embeddings"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _placed(panel: dict[str, object], x: int, y: int, w: int, h: int) -> dict[str, object]:
    return {**panel, "gridPos": {"x": x, "y": y, "w": w, "h": h}}


def _panel(panel: Panel) -> dict[str, object]:
    source = {"type": "prometheus", "uid": "$datasource"}
    steps = [{"value": value, "color": color} for value, color in panel.thresholds]
    defaults: dict[str, object] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    if steps:
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none"}
        defaults["custom"] = {"fillOpacity": 20 if panel.stacked else 5, "stacking": stacking}
    made: dict[str, object] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.tells,
        "datasource": source,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "expr": query,
                "legendFormat": legend,
                "datasource": source,
                **({"format": "table", "instant": True} if panel.kind == "table" else {}),
            }
            for i, (query, legend) in enumerate(panel.queries)
        ],
    }
    if panel.kind == "table":
        hidden = dict.fromkeys(("Time", "Value", "__name__", "job"), True)
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return made


def _variables() -> list[dict[str, object]]:
    source = {"type": "prometheus", "uid": "$datasource"}

    def asked(name: str, query: str, several: bool) -> dict[str, object]:
        return {
            "name": name,
            "type": "query",
            "datasource": source,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "multi": several,
            "includeAll": several,
            **({"allValue": ".*"} if several else {}),
        }

    info = "embedserve_model_info"
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        asked("job", f"label_values({info}, job)", several=False),
        asked("instance", f'label_values({info}{{job="$job"}}, instance)', several=True),
        asked("model", f'label_values({info}{{job="$job"}}, model)', several=True),
    ]


def text() -> str:
    """The file's content."""
    return json.dumps(build(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
