"""A run's results as bars: SVG that is readable on light and on dark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from tests.bench.peers import ONNX, OWN, RAW, REPLACED, TORCH


class Panel(NamedTuple):
    """One measure: its title, how a figure is written, and what to multiply it with."""

    measure: str
    title: str
    style: str
    unit: float


PANELS = (
    Panel("clients.rate", "32 clients, one short text: requests/s, more is better", "{:,.0f}", 1.0),
    Panel("batches.texts", "4 clients, 32 texts: texts/s, more is better", "{:,.0f}", 1.0),
    Panel("one.p50", "1 client, one short text: p50 in ms, less is better", "{:.1f}", 1e3),
    Panel("loaded.rss", "memory after load in MB, less is better", "{:,.0f}", 1.0),
)
NAMES = {
    OWN: "embedserve",
    RAW: "onnxruntime, no HTTP",
    ONNX: "Infinity, ONNX",
    TORCH: "Infinity, torch",
    REPLACED: "sentence-transformers + FastAPI",
}
WIDTH, LABEL, BAR, ROW, HEAD = 760, 230, 440, 22, 34
STYLE = """text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
.own { fill: #1a7f5a } .raw { fill: #9aa4ae } .peer { fill: #6e8fb8 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .own { fill: #3fb983 } .raw { fill: #6b7683 } .peer { fill: #5b7fae }
}"""


def svg(found: Mapping[str, Any]) -> str:
    """The chart of a run."""
    parts, top = [], 0
    for panel in PANELS:
        parts += list(_panel(panel, found["figures"], top))
        top += HEAD + ROW * _count(panel, found["figures"]) + 10
    machine = found["machine"]
    foot = (
        f"{machine['processor']}, {machine['cores']} cores, {found['date']}: all-MiniLM-L6-v2, fp32"
    )
    parts.append(f'<text x="{LABEL}" y="{top + 18}">{escape(foot)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 30}" role="img"'
    title = "Throughput, latency and memory of embedserve and its peers"
    opening = f'{head} aria-label="{title}">\n<style>{STYLE}</style>'
    return "\n".join([opening, *parts, "</svg>", ""])


def _count(panel: Panel, figures: Mapping[str, Any]) -> int:
    return sum(panel.measure in figures.get(peer, {}) for peer in NAMES)


def _panel(panel: Panel, figures: Mapping[str, Any], top: int) -> Iterator[str]:
    measured = {
        peer: figures[peer][panel.measure]["median"] * panel.unit
        for peer in NAMES
        if panel.measure in figures.get(peer, {})
    }
    yield f'<text class="title" x="{LABEL}" y="{top + 22}">{escape(panel.title)}</text>'
    for i, (peer, value) in enumerate(measured.items()):
        y, width = top + HEAD + ROW * i, max(1.0, BAR * value / max(measured.values()))
        kind = {OWN: "own", RAW: "raw"}.get(peer, "peer")
        text = y + 13
        yield f'<text x="{LABEL - 8}" y="{text}" text-anchor="end">{escape(NAMES[peer])}</text>'
        yield f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{width:.1f}" height="17" rx="2"/>'
        figure = panel.style.format(value)
        yield f'<text x="{LABEL + width + 6:.1f}" y="{text}">{figure}</text>'
