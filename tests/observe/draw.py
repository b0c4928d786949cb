"""The dashboard's panels with recorded data as a picture: python -m tests.observe.draw DATA PNG.

Not Grafana's own rendering: its layout, titles, units, legends, colours of thresholds and the data.
"""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tests.observe import dashboard
from tests.observe.dashboard import Panel

COLUMN, LINE, GAP = 64, 30, 8  # pixels of the grid's units, and between panels
DPI = 100
MARGIN = 74  # left of a graph, for its axis
LETTER = 5.8  # of a legend, on the average
INK, FAINT, PAGE = "#24292e", "#8e979f", "#f4f5f5"
# Grafana's classic palette, and the names of colours that the dashboard uses.
PALETTE = (
    *("#7EB26D", "#EAB839", "#6ED0E0", "#EF843C", "#E24D42", "#1F78C1", "#BA43A9", "#705DA0"),
    *("#508642", "#CCA300", "#447EBC", "#C15C17", "#890F02", "#0A437C", "#6D1F62", "#584477"),
)
COLOURS = {"red": "#e02f44", "orange": "#ff780a", "green": "#299c46", "text": INK}
SECONDS = ((60.0, "min", 60.0), (1.0, "s", 1.0), (1e-3, "ms", 1e-3), (1e-6, "µs", 1e-6))
BYTES = ((1e9, "GB", 1e9), (1e6, "MB", 1e6), (1e3, "kB", 1e3), (1.0, "B", 1.0))


class Line(NamedTuple):
    """One series as it is drawn."""

    name: str
    labels: Mapping[str, str]
    times: Sequence[float]
    values: Sequence[float]


def written(value: float, unit: str) -> str:
    """A value as Grafana writes it in a unit."""
    if not math.isfinite(value):
        return "-"
    if unit == "percentunit":
        return f"{value * 100:,.3g} %" if value < 10 else f"{value * 100:,.0f} %"
    for scale, suffix, size in {"s": SECONDS, "decbytes": BYTES}.get(unit, ()):
        if abs(value) >= scale:
            return f"{value / size:.3g} {suffix}"
    suffix = " req/s" if unit == "reqps" else " " + unit.partition(":")[2]
    if abs(value) >= 1000:
        return f"{value / 1000:.3g}k{suffix}".rstrip()
    return f"{value:.3g}{suffix}".rstrip()


def draw(data: Mapping[str, Any], path: Path) -> None:
    """Draw all panels where the dashboard has them."""
    panels = dashboard.panels()
    width = dashboard.COLUMNS * COLUMN
    height = max(panel.y + panel.height for panel in panels) * LINE
    mpl.rcParams.update({"font.size": 8, "text.color": INK, "axes.edgecolor": FAINT})
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=PAGE)
    for panel in panels:
        box = (panel.x * COLUMN, height - (panel.y + panel.height) * LINE)
        size = (panel.width * COLUMN, panel.height * LINE)
        _Drawn(figure, panel, data, box, size).draw()
    figure.savefig(path)
    _reduce(path)


class _Drawn:
    """One panel's place in the picture; pixels count from below."""

    def __init__(
        self,
        figure: Figure,
        panel: Panel,
        data: Mapping[str, Any],
        box: tuple[int, int],
        size: tuple[int, int],
    ) -> None:
        self.figure, self.panel, self.data = figure, panel, data
        self.left, self.bottom = box
        self.width, self.height = size

    def draw(self) -> None:
        """Draw it as its kind is drawn."""
        if self.panel.kind == "row":
            self._text(6, 9, self.panel.title, size=11, weight="bold")
            return
        self._axes(GAP // 2, GAP // 2, self.width - GAP, self.height - GAP).set(
            xticks=(), yticks=(), facecolor="white"
        )
        self._text(14, self.height - 22, self.panel.title, size=9, weight="bold")
        lines = [*self._lines()]
        if not any(map(math.isfinite, (v for line in lines for v in line.values))):
            self._text(self.width // 2 - 20, self.height // 2, "No data", color=FAINT)
            return
        drawn = {"stat": self._stat, "table": self._table, "heatmap": self._heatmap}
        drawn.get(self.panel.kind, self._graph)(lines)

    def _lines(self) -> Iterator[Line]:
        for query in self.panel.queries:
            for row in self.data["panels"][f"{self.panel.number} {query.name}"]:
                times, values = zip(*row["points"], strict=True)
                yield Line(
                    dashboard.named(query.legend, row["labels"]), row["labels"], times, values
                )

    def _axes(self, x: float, y: float, width: float, height: float) -> Axes:
        w, h = self.figure.get_size_inches() * DPI
        box = ((self.left + x) / w, (self.bottom + y) / h, width / w, height / h)
        return self.figure.add_axes(box)

    def _text(self, x: float, y: float, text: str, **style: Any) -> None:
        w, h = self.figure.get_size_inches() * DPI
        self.figure.text((self.left + x) / w, (self.bottom + y) / h, text, **style)

    def _stat(self, lines: list[Line]) -> None:
        """The last number of each series, coloured by the thresholds."""
        share = (self.width - 28) / len(lines)
        if len(lines) == 1:
            spark = self._axes(GAP // 2 + 1, GAP // 2 + 1, self.width - GAP - 2, 34)
            spark.fill_between(lines[0].times, lines[0].values, color="#d8e2ea", lw=0)
            spark.set(xticks=(), yticks=(), ylim=(0, None))
            spark.axis("off")
        for i, line in enumerate(lines):
            numbers = [value for value in line.values if math.isfinite(value)]
            text = written(numbers[-1], self.panel.unit)
            x = 14 + share * i
            if len(lines) > 1:
                self._text(x, 62, line.name, color=FAINT)
            self._text(x, 40 if len(lines) == 1 else 30, text, size=19, color=self._colour(numbers))

    def _colour(self, numbers: Sequence[float]) -> str:
        colour = INK
        for step in self.panel.defaults["thresholds"]["steps"]:
            if step["value"] is None or numbers[-1] >= step["value"]:
                colour = COLOURS[step["color"]]
        return colour

    def _graph(self, lines: list[Line]) -> None:
        defaults, custom = self.panel.defaults, self.panel.defaults["custom"]
        left = [line for line in lines if not self._override(line, "custom.axisPlacement")]
        right = [line for line in lines if line not in left]
        legend = self._legend([line.name for line in lines])
        room = self._room(legend)
        axes = self._axes(MARGIN, legend + 26, self.width - MARGIN - (64 if right else 18), room)
        colours = {line.name: PALETTE[i % len(PALETTE)] for i, line in enumerate(lines)}
        stacked = custom["stacking"]["mode"] == "normal"
        below: np.ndarray[Any, Any] | None = None
        for line in left:
            values = np.nan_to_num(line.values) if stacked else np.array(line.values)
            if stacked:  # series that are not there all the time have zero elsewhere
                values = np.interp(self._grid(), line.times, values, left=0, right=0)
                base = np.zeros(len(values)) if below is None else below
                axes.fill_between(
                    self._since(self._grid()),
                    base,
                    base + values,
                    color=colours[line.name],
                    lw=0,
                    alpha=0.85 if custom["drawStyle"] == "bars" else 0.5,
                    step="mid" if custom["drawStyle"] == "bars" else None,
                )
                below = base + values
                continue
            self._plot(axes, line, values, colours[line.name])
        for step in defaults.get("thresholds", {}).get("steps", ()):
            if step["value"] is not None:
                axes.axhline(step["value"], color=COLOURS[step["color"]], lw=1, ls=(0, (4, 4)))
        self._dress(axes, self.panel.unit)
        if right:
            other = axes.twinx()
            for line in right:
                self._plot(other, line, np.array(line.values), colours[line.name])
            self._dress(other, str(self._override(right[0], "unit")))
        self._name(lines, colours, legend)

    def _plot(self, axes: Axes, line: Line, values: Any, colour: str) -> None:
        style: dict[str, Any] = {"lw": 1.2, "color": colour}
        if self._override(line, "custom.lineStyle"):
            style.update(color=COLOURS["red"], ls=(0, (5, 4)))
        axes.plot(self._since(line.times), values, **style)
        if len(line.times) == 1:
            axes.plot(self._since(line.times), values, ".", color=colour)

    def _override(self, line: Line, name: str) -> Any:
        for override in self.panel.content["fieldConfig"]["overrides"]:
            pattern = override["matcher"]["options"]
            if re.fullmatch(pattern, line.name):
                for made in override["properties"]:
                    if made["id"] == name:
                        return made["value"]
        return None

    def _grid(self) -> np.ndarray[Any, Any]:
        return np.arange(self.data["start"], self.data["end"] + 0.5, 1.0)

    def _since(self, times: Any) -> Any:
        return np.asarray(times) - self.data["start"]

    def _dress(self, axes: Axes, unit: str) -> None:
        most = self.panel.defaults.get("max")
        scale = self.panel.defaults["custom"]["scaleDistribution"]["type"]
        high = axes.get_ylim()[1]
        if scale == "log":
            axes.set_yscale("log", base=2)
            axes.set_ylim(None, high * 1.5)
        else:
            axes.set_ylim(0, max(high, 1e-12) if most is None else most)
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlim(0, self.data["end"] - self.data["start"])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, unit)))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
        axes.tick_params(colors=FAINT, length=0, labelsize=7)
        axes.grid(visible=True, color="#e6e8ea", lw=0.6)
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_visible(False)

    def _legend(self, names: list[str]) -> int:
        """Pixels that the names take below."""
        return 16 * len(self._wrapped(names)) + 6

    def _wrapped(self, names: list[str]) -> list[list[int]]:
        rows: list[list[int]] = [[]]
        used = 0.0
        for i, name in enumerate(names):
            size = 28 + LETTER * len(name)
            if rows[-1] and used + size > self.width - 28:
                rows.append([])
                used = 0.0
            rows[-1].append(i)
            used += size
        return rows

    def _room(self, legend: int) -> int:
        return self.height - legend - 58

    def _name(self, lines: list[Line], colours: Mapping[str, str], legend: int) -> None:
        y = legend - 10
        for row in self._wrapped([line.name for line in lines]):
            x = 14.0
            for i in row:
                name = lines[i].name
                limit = self._override(lines[i], "custom.lineStyle")
                colour = COLOURS["red"] if limit else colours[name]
                self._text(x, y, "━", color=colour, size=8, weight="bold")
                self._text(x + 15, y, name, size=7)
                x += 28 + LETTER * len(name)
            y -= 16

    def _heatmap(self, lines: list[Line]) -> None:
        """Counts of each bucket; Prometheus' are of all below."""
        ordered = sorted(lines, key=lambda line: float(line.labels["le"]))
        grid = self._grid()
        sums = [np.interp(grid, line.times, np.nan_to_num(line.values)) for line in ordered]
        counts = np.diff(np.stack(sums), axis=0, prepend=0).clip(0)
        axes = self._axes(MARGIN, 32, self.width - MARGIN - 18, self._room(6))
        shown = np.where(counts > 0, np.sqrt(counts), np.nan)
        axes.pcolormesh(self._since(grid), np.arange(len(ordered)), shown, cmap="Oranges", vmin=0)
        self._dress(axes, "")
        axes.set_ylim(-0.5, len(ordered) - 0.5)
        bounds = [float(line.labels["le"]) for line in ordered]
        ticks = [*range(0, len(bounds) - 1, 3)]
        axes.set_yticks(ticks, [written(bounds[tick], "s") for tick in ticks])

    def _table(self, lines: list[Line]) -> None:
        options = self.panel.content["transformations"][0]["options"]
        names: Mapping[str, str] = options["renameByName"]
        fields = sorted(names, key=lambda field: int(options["indexByName"][field]))
        rows = [
            [line.labels.get(field, f"{line.values[-1]:g}") for field in fields] for line in lines
        ]
        sizes = [max(map(len, (names[f], *(row[i] for row in rows)))) for i, f in enumerate(fields)]
        share = (self.width - 28) / (sum(sizes) + 2 * len(sizes))
        x = 14.0
        for i, field in enumerate(fields):
            self._text(x, self.height - 46, names[field], weight="bold", size=7)
            for j, row in enumerate(rows):
                text = textwrap.shorten(row[i], 70)
                self._text(x, self.height - 66 - 20 * j, text, size=7)
            x += share * (sizes[i] + 2)


def _reduce(path: Path) -> None:
    """A picture of few colours: a third of the bytes."""
    from PIL import Image

    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
