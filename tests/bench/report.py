"""Results as JSON, and the table of bars as Markdown: the one that README shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.bars import BARS, Bar, Outcome
from tests.bench.figures import Figures, middle, rounded
from tests.bench.peers import MEANING, ONNX, OWN, RAW, REPLACED

COLUMNS = {
    REPLACED: "against the replaced design",
    ONNX: "against Infinity with ONNX",
    RAW: "against raw onnxruntime",
}
# Of each scenario: measure, what it is called, and how it is written.
FIGURES = (
    ("clients.rate", "32 clients, requests/s", "{:,.0f}", 1.0),
    ("batches.texts", "4 clients x 32, texts/s", "{:,.0f}", 1.0),
    ("one.p50", "1 client, p50 ms", "{:.1f}", 1e3),
    ("beside.p50", "query beside bulk, p50 ms", "{:,.1f}", 1e3),
    ("beside.p99", "p99 ms", "{:,.1f}", 1e3),
    ("start.seconds", "first answer, s", "{:.1f}", 1.0),
    ("idle.rss", "memory idle, MB", "{:,.0f}", 1.0),
    ("loaded.rss", "after load, MB", "{:,.0f}", 1.0),
)


def results(
    figures: Figures, outcomes: Sequence[Outcome], facts: Mapping[str, object]
) -> dict[str, Any]:
    """All that was measured: facts of the run, medians, every round, the bars."""
    return {
        **facts,
        "figures": {
            peer: {
                measure: {
                    "median": rounded(middle(figures, peer, measure) or 0.0),
                    "rounds": [rounded(value) for value in values],
                }
                for measure, values in measures.items()
            }
            for peer, measures in figures.items()
        },
        "bars": [
            {
                "scenario": o.bar.scenario,
                "against": o.bar.column,
                "measure": o.bar.measure,
                "of": f"{OWN}: {o.bar.over}" if o.bar.over else f"{o.bar.column}: {o.bar.measure}",
                "bar": f"{o.bar.sign} {rounded(o.bar.limit)}",
                "value": rounded(o.value),
                "held": o.held,
            }
            for o in outcomes
        ],
    }


def markdown(found: Mapping[str, Any]) -> str:
    """Two tables of a run's results: the bars, then the figures behind them."""
    return "\n".join([*_facts(found), "", *_bars(found), "", *_figures(found)])


def _facts(found: Mapping[str, Any]) -> list[str]:
    machine, generator = found["machine"], found["generator"]
    return [
        f"`{found['command']}`, {found['date']}, {machine['processor']}, {machine['cores']} cores "
        f"({', '.join(machine['instructions'])}), fp32, all-MiniLM-L6-v2, medians of "
        f"{found['rounds']} interleaved rounds; largest difference between any two peers' vectors "
        f"{found['difference']:.0e}; the load generator took at most "
        f"{max(generator.values()):.0%} of the cores ({max(generator, key=generator.get)})."
    ]


def _bars(found: Mapping[str, Any]) -> list[str]:
    lines = [f"| scenario | {' | '.join(COLUMNS.values())} |", "|---" * 4 + "|"]
    measured = {(b["scenario"], b["against"], b["measure"]): b for b in found["bars"]}
    for scenario in dict.fromkeys(bar.scenario for bar in BARS):
        cells = []
        for column in COLUMNS:
            bars = [b for b in BARS if (b.scenario, b.column) == (scenario, column)]
            cells.append(
                "; ".join(_cell(b, measured.get((scenario, column, b.measure))) for b in bars)
            )
        lines.append(f"| {scenario} | {' | '.join(cells)} |")
    return lines


def _cell(bar: Bar, found: Mapping[str, Any] | None) -> str:
    limit = f"{bar.sign} {_ratio(bar, bar.limit)}"
    if found is None:
        return f"not measured ({limit})"
    value = (
        bar.says.format(_ratio(bar, found["value"])) if bar.says else _ratio(bar, found["value"])
    )
    return f"{value} ({limit}: {'held' if found['held'] else '**not held**'})"


def _ratio(bar: Bar, value: float) -> str:
    """As the bar is written: 5.2x, 1/2.6, 0.92."""
    if bar.over or bar.column == RAW:
        return f"{value:.2f}"
    if bar.sign == "at least":
        return f"{value:.1f}x"
    return f"1/{1 / value:.1f}".removesuffix(".0")


def _figures(found: Mapping[str, Any]) -> list[str]:
    lines = [f"| | {' | '.join(name for _, name, _, _ in FIGURES)} |"]
    lines.append("|---" * (len(FIGURES) + 1) + "|")
    for peer, measures in found["figures"].items():
        cells = [
            style.format(measures[measure]["median"] * unit) if measure in measures else ""
            for measure, _, style, unit in FIGURES
        ]
        lines.append(f"| {MEANING[peer]} | {' | '.join(cells)} |")
    return lines
