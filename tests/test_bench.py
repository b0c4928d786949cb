"""The benchmark's own arithmetic, and that docs/benchmarks.md shows what was measured."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import bars, chart, corpus, figures, load, report
from tests.bench.peers import MEANING, ONNX, OWN, RAW, REPLACED, TORCH
from tests.bench.raw import Many, best, cut
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "tests" / "bench" / "results.json").read_text(encoding="utf-8"))


def measured(peer: str, **values: list[float]) -> dict[str, dict[str, list[float]]]:
    """Figures of one peer; `__` stands for the dot."""
    return {peer: {name.replace("__", "."): rounds for name, rounds in values.items()}}


class TestFigures:
    """Percentiles and ratios."""

    @given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
    def test_percentile(self, values: list[float], part: float) -> None:
        """At least so many values do not pass it, and it is one of them."""
        found = figures.percentile(values, part)
        assert found in values
        assert sum(value <= found for value in values) >= int(part * len(values))

    def test_ratio(self) -> None:
        """Of rounds that stood beside each other: a slow round of both changes nothing."""
        assert figures.ratio([10.0, 1.0, 10.0], [5.0, 0.5, 5.0]) == 2.0

    def test_not_measured(self) -> None:
        assert figures.middle({}, OWN, "one.p50") is None


class TestBars:
    """What is held, by which figures."""

    def test_against_a_peer(self) -> None:
        found = measured(OWN, clients__rate=[60.0]) | measured(REPLACED, clients__rate=[10.0])
        [outcome] = bars.judge(found)
        assert (outcome.bar.limit, outcome.value, outcome.held) == (5.2, 6.0, True)

    @pytest.mark.parametrize(("p50", "held"), [(0.020, True), (0.031, False)])
    def test_in_passes(self, p50: float, held: bool) -> None:
        """The query's p50 is counted in passes above its idle p50."""
        own = {"one__p50": [0.010], "bulk__pass": [0.040], "beside__p50": [p50]}
        [outcome] = bars.judge(measured(OWN, **own))
        assert outcome.value == pytest.approx((p50 - 0.010) / 0.040)
        assert outcome.held is held

    def test_other_numbers_of_rounds(self) -> None:
        """Of a peer with fewer rounds the medians are compared."""
        own = measured(OWN, loaded__rss=[100.0, 100.0, 100.0])
        [outcome] = bars.judge(own | measured(ONNX, loaded__rss=[1000.0]))
        assert outcome.value == pytest.approx(0.1)
        assert outcome.held

    def test_nothing_measured(self) -> None:
        assert bars.judge(measured(OWN) | measured(RAW)) == []


class TestReport:
    """The page shows the last run."""

    def test_readme(self) -> None:
        """The section is rendered from results.json; `--render` writes it anew."""
        assert report.into(PAGE, RESULTS) == PAGE

    def test_chart(self) -> None:
        """The picture is drawn from results.json."""
        assert (ROOT / "docs" / "bench.svg").read_text(encoding="utf-8") == chart.svg(RESULTS)

    def test_every_bar_is_measured(self) -> None:
        assert len(RESULTS["bars"]) == len(bars.BARS)
        assert "not measured" not in report.markdown(RESULTS)

    def test_held_is_what_the_figures_say(self) -> None:
        """The bars of results.json follow from its rounds."""
        rounds = {
            peer: {name: figure["rounds"] for name, figure in measures.items()}
            for peer, measures in RESULTS["figures"].items()
        }
        for outcome, written in zip(bars.judge(rounds), RESULTS["bars"], strict=True):
            assert outcome.value == pytest.approx(written["value"], rel=0.02, abs=0.02)

    def test_bars_of_the_chart(self) -> None:
        """One a peer and panel, as long as its figure."""
        tree = ElementTree.fromstring(chart.svg(RESULTS))  # noqa: S314  # made here
        widths = [float(r.get("width", "")) for r in tree.iter("{http://www.w3.org/2000/svg}rect")]
        first = [
            RESULTS["figures"][peer]["clients.rate"]["median"]
            for peer in chart.NAMES
            if "clients.rate" in RESULTS["figures"][peer]
        ]
        lengths = [chart.BAR * rate / max(first) for rate in first]
        assert widths[: len(first)] == pytest.approx(lengths, abs=0.06)


@pytest.mark.parametrize("peer", [ONNX, TORCH])
def test_version(peer: str) -> None:
    """The version that is named is the one that is installed and was measured."""
    lock = (ROOT / "requirements" / "bench.txt").read_text(encoding="utf-8")
    version = RESULTS["versions"][".venv-bench"]["infinity-emb"]
    assert f"Infinity {version}," in MEANING[peer]
    assert f"\ninfinity-emb=={version} " in lock


class TestCorpus:
    """No two texts are equal: equal ones in flight are computed once."""

    @pytest.mark.parametrize("texts", [corpus.short(), corpus.mixed()], ids=["short", "mixed"])
    def test_all_different(self, texts: list[str]) -> None:
        assert len({text.lower() for text in texts}) == len(texts) >= 512

    def test_bulk(self) -> None:
        """Requests of an indexer's sizes, of different texts."""
        requests = corpus.bulk()
        assert {len(texts) for texts in requests} <= set(corpus.BULK_SIZES)
        assert len(set(itertools.chain(*requests))) == sum(map(len, requests))


@given(st.lists(st.integers(1, 300), min_size=1), st.integers(1, 512), st.floats(0, 1))
def test_cut(lengths: list[int], budget: int, padding: float) -> None:
    """Raw's passes lose nothing, stay within the budget, and are of near-equal lengths."""
    parts = list(cut([np.zeros(n, np.int64) for n in lengths], Many(budget, padding)))
    assert sorted(len(row) for part in parts for row in part) == sorted(lengths)
    for part in parts:
        assert len(part) == 1 or len(part) * len(part[0]) <= budget
        assert all(len(row) >= len(part[0]) * (1 - padding) for row in part)


def test_best() -> None:
    """One lucky turn does not choose a schedule."""
    measured = {"steady": iter([5.0, 5.0, 5.0]), "lucky": iter([1.0, 9.0, 1.0])}
    assert best(list(measured), lambda how: next(measured[how])) == "steady"


class TestLoad:
    """The generator counts what was answered, and fails on anything but 200."""

    def test_answers_in_pieces(self) -> None:
        """An answer may come in any pieces."""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
        pieces = [head[:9], head[9:] + b"ab", b"cde"]
        run = asyncio.run(_served(pieces, lambda port: load.for_seconds(port, _work(), 2, 0.05)))
        assert len(run.latencies) >= 2
        assert run.texts == pytest.approx(3 * run.rate)

    def test_open_loop(self) -> None:
        """Requests come at their rate whether or not others are answered."""
        whole = [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]
        run = asyncio.run(_served(whole, lambda port: load.open_loop(port, _work(), 400, 0.5)))
        assert 120 < len(run.latencies) < 280

    def test_an_error(self) -> None:
        refused = [b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"]
        with pytest.raises(AssertionError, match="429"):
            asyncio.run(_served(refused, lambda port: load.for_seconds(port, _work(), 1, 0.05)))


def _work() -> itertools.cycle[load.Request]:
    return itertools.cycle([load.Request(load.request(b"{}"), 3)])


class _Answering(asyncio.Protocol):
    """Gives these bytes to each request, piece by piece."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, _: bytes) -> None:
        for i, piece in enumerate(self._pieces):
            asyncio.get_running_loop().call_later(i / 1000, self._transport.write, piece)


async def _served(pieces: list[bytes], drive: Callable[[int], Awaitable[load.Run]]) -> load.Run:
    """Drive a server that answers so."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answering(pieces), "127.0.0.1", 0)
    async with server:
        run = await drive(server.sockets[0].getsockname()[1])
    await asyncio.sleep(0.01)  # the ends of its connections
    return run
