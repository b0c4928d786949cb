"""Results as JSON, and the table of bars as Markdown: the one that docs/benchmarks.md shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.bench.bars import BARS, Bar, Outcome
from tests.bench.figures import Figures, middle, rounded
from tests.bench.peers import MEANING, ONNX, OWN, RAW, REPLACED
from tests.bench.scenarios import PARTS

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"

COLUMNS = {
    REPLACED: "against the replaced design",
    ONNX: "against Infinity with ONNX",
    RAW: "against raw onnxruntime, best schedule without barriers",
}


class Column(NamedTuple):
    """A measure: what it is called, how a figure is written, and what to multiply it with."""

    measure: str
    title: str
    style: str
    unit: float


FIGURES = (
    Column("clients.rate", "32 clients, requests/s", "{:,.0f}", 1.0),
    Column("batches.texts", "4 clients x 32, texts/s", "{:,.0f}", 1.0),
    Column("one.p50", "1 client, p50 ms", "{:.1f}", 1e3),
    Column("beside.p50", "query beside bulk, p50 ms", "{:,.1f}", 1e3),
    Column("beside.p99", "p99 ms", "{:,.1f}", 1e3),
    Column("start.seconds", "first answer, s", "{:.1f}", 1.0),
    Column("idle.rss", "memory idle, MB", "{:,.0f}", 1.0),
    Column("loaded.rss", "after load, MB", "{:,.0f}", 1.0),
)
OPEN = tuple(
    Column(f"open_{part}.{name}", f"{part} %: {name} ms", "{:,.1f}", 1e3)
    for part in PARTS
    for name in ("p50", "p99")
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
    """A run's results: how they were made, the bars, the figures behind them, the open loop."""
    figures, first = found["figures"], "open loop, of what each answers with 32 clients"
    tables = [_bars(found), _figures(figures, "", FIGURES), _figures(figures, first, OPEN)]
    return "\n\n".join([_facts(found), *("\n".join(lines) for lines in tables)])


def into(document: str, found: Mapping[str, Any]) -> str:
    """The document with a run's results between its markers."""
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}\n{markdown(found)}\n{END}{rest.split(END)[1]}"


def _facts(found: Mapping[str, Any]) -> str:
    machine, generator, raw = found["machine"], found["generator"], found["figures"][RAW]
    most = max(generator, key=lambda scenario: generator[scenario])
    whole = " and ".join(f"{raw[f'{m}.whole']['median']:,.0f}" for m in ("clients", "batches"))
    return (
        f"`{found['command']}`, {found['date']}: {machine['processor']}, {machine['cores']} cores "
        f"({', '.join(machine['instructions'])}), fp32, all-MiniLM-L6-v2. "
        f"{_said(found['rounds'])} The peers' vectors differ by {found['difference']:.0e} at most. "
        f"The load generator took at most {generator[most]:.0%} of the cores ({most}); work that "
        f"has no part in this took {found['others']:.0%}. Raw "
        "onnxruntime has as many texts at hand as the clients have in flight; sorting 512 at once "
        f"it does {whole} texts/s."
    )


def _said(rounds: int) -> str:
    how = "every peer in turn and the others paused; medians, and ratios round by round."
    return f"{rounds} rounds, {how}" if rounds > 1 else "**One short round, which shows little.**"


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


def _figures(figures: Mapping[str, Any], first: str, columns: Sequence[Column]) -> list[str]:
    lines = [f"| {first} | {' | '.join(column.title for column in columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for peer, measures in figures.items():
        cells = [
            column.style.format(measures[column.measure]["median"] * column.unit)
            if column.measure in measures
            else ""
            for column in columns
        ]
        if any(cells):
            lines.append(f"| {MEANING[peer]} | {' | '.join(cells)} |")
    return lines
