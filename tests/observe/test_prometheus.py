"""A real Prometheus scrapes a loaded server: each query of dashboard and rules has data."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from embedserve.errors import ERRORS
from tests import programs
from tests.faults.serving import Served, serving, until
from tests.observe import dashboard, load, rules
from tests.observe.dashboard import Panel
from tests.observe.load import Sent
from tests.observe.prometheus import (
    WINDOW,
    Prometheus,
    promtool,
    scraping,
)

programs.need("prometheus", package="prometheus", is_module=True)

SECONDS = 8.0  # of load
# Alerts that this load brings about at once: a text on which the tiny model fails.
FIRING = "EmbedserveFailedPasses"


class TestPromtool:
    """Prometheus' own checks."""

    def test_rules(self) -> None:
        """They parse, and so do the templates in them."""
        promtool("check", "rules", rules.RULES)

    def test_configuration(self) -> None:
        """It is valid with the rules that it names."""
        promtool("check", "config", rules.CONFIG)

    def test_unit_tests(self) -> None:
        """Each alert fires where it should and not where it should not; recorded values."""
        assert "SUCCESS" in promtool("test", "rules", rules.TESTS)


@dataclass(frozen=True, slots=True)
class Scraped:
    """A server that was under load, and the Prometheus that saw it from `start` to `end`."""

    server: Served
    prometheus: Prometheus
    sent: Sent
    start: float
    end: float


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """Load, and wait until Prometheus has seen all of it."""
    folder = tmp_path_factory.mktemp("observe")
    made = load.artifacts(folder)
    with (
        serving(made, folder / "log", *load.FLAGS) as server,
        scraping(folder, server.url.removeprefix("http://")) as prometheus,
    ):
        until(lambda: prometheus.number("embedserve_ready") == 1)
        start = time.time()
        sent = asyncio.run(load.mixed(server.address[1], SECONDS))
        seen = "sum(embedserve_requests_total)"
        until(lambda: prometheus.number(seen) == sent.requests)
        # Rules are evaluated after a scrape: until one was with all of it.
        end = time.time()
        until(lambda: evaluated(prometheus, "job:embedserve_latency:burn_rate3d") > end)
        yield Scraped(server, prometheus, sent, start, end)


def evaluated(prometheus: Prometheus, name: str) -> float:
    """When the newest value of a recorded series is from; 0 when there is none."""
    return prometheus.number(f"timestamp({name})") or 0.0


def outcomes_of(scraped: Scraped) -> dict[str, float]:
    """All requests by outcome."""
    found = scraped.prometheus.query("sum by (outcome) (embedserve_requests_total)")
    return {series.labels["outcome"]: series.points[0][1] for series in found}


class TestCounts:
    """What Prometheus has is what clients saw."""

    def test_statuses(self, scraped: Scraped) -> None:
        """Answers by status, whatever their code; who left is cancelled, or was answered first."""
        found = outcomes_of(scraped)
        for status in {kind.status for kind in ERRORS.values()}:
            codes = (code for code, kind in ERRORS.items() if kind.status == status)
            assert sum(found[code] for code in codes) >= scraped.sent.statuses[status], status
        answered = scraped.sent.statuses[200]
        assert answered <= found["ok"] <= answered + scraped.sent.left
        assert sum(found.values()) == scraped.sent.requests

    def test_the_load_was_as_meant(self, scraped: Scraped) -> None:
        """Every kind of answer came, and each mistake got the error that it should."""
        assert scraped.sent.wrong == []
        assert {200, 400, 404, 412, 415, 429, 500} <= set(scraped.sent.statuses)


SHOWN = [panel for panel in dashboard.panels() if panel.kind != "row"]


class TestDashboard:
    """Each query of each panel, as Grafana sends it."""

    @pytest.mark.parametrize("panel", SHOWN, ids=lambda panel: f"{panel.number} {panel.title}")
    def test_panel_has_data(self, scraped: Scraped, panel: Panel) -> None:
        """Numbers, and under a name of its own for each series."""
        for query in panel.queries:
            expression = dashboard.expand(query.expression, WINDOW)
            assert "$" not in expression
            if query.instant:
                found = scraped.prometheus.query(expression, time=scraped.end)
            else:
                found = scraped.prometheus.query_range(expression, scraped.start, scraped.end, 0.5)
            assert any(series.finite for series in found), query.expression
            if panel.kind == "timeseries":
                names = [dashboard.named(query.legend, series.labels) for series in found]
                assert all(names)
                assert len(set(names)) == len(names)

    def test_variables(self, scraped: Scraped) -> None:
        """Each list to choose from is that of this server."""
        found = {}
        for variable in dashboard.content()["templating"]["list"][1:]:
            asked = dashboard.expand(variable["query"]["query"], WINDOW)
            selector, _, label = (
                asked.removeprefix("label_values(").removesuffix(")").rpartition(", ")
            )
            found[variable["name"]] = scraped.prometheus.label_values(label, selector)
        address = scraped.server.url.removeprefix("http://")
        models = ["all-MiniLM-L6-v2", "tiny"]
        assert found == {"job": ["embedserve"], "instance": [address], "model": models}


class TestRules:
    """Each rule, evaluated by Prometheus itself."""

    def test_health(self, scraped: Scraped) -> None:
        """None failed."""
        found = scraped.prometheus.rules()
        assert len(found) == len(rules.read())
        assert [(r["name"], r.get("lastError")) for r in found if r["health"] != "ok"] == []

    @pytest.mark.parametrize("rule", rules.records(), ids=lambda rule: rule.name)
    def test_record(self, scraped: Scraped, rule: rules.Rule) -> None:
        """It gives a number, and that number is recorded."""
        for expression in (rule.expression, rule.name):
            found = scraped.prometheus.query(expression, time=scraped.end)
            assert any(series.finite for series in found), expression

    @pytest.mark.parametrize("alert", rules.alerts(), ids=lambda rule: rule.name)
    def test_alert_s_series_exist(self, scraped: Scraped, alert: rules.Rule) -> None:
        """A healthy server raises none, so each series that it compares is asked for by itself."""
        for metric, braces in rules.selectors(alert.expression):
            assert scraped.prometheus.query(metric + braces, time=scraped.end), metric + braces

    def test_what_fires(self, scraped: Scraped) -> None:
        """A failing model does at once; nothing that needs a server in trouble even begins to."""
        found = scraped.prometheus.alerts()
        assert found.pop(FIRING) == "firing"
        # Requests fail on purpose, and max_wait is as small as can be reached.
        burns = {r.name for r in rules.alerts() if "AvailabilityBurn" in r.name}
        assert set(found) <= burns | {"EmbedserveQueueNearLimit"}

    def test_the_objective_sees_it(self, scraped: Scraped) -> None:
        """The burn rate is what the counts of the whole load say."""
        outcomes = outcomes_of(scraped)
        failed = sum(
            n for code, n in outcomes.items() if ERRORS.get(code, (0, ""))[0] in (429, 500)
        )
        expected = failed / (failed + outcomes["ok"]) / 0.005
        (found,) = scraped.prometheus.query("job:embedserve_availability:burn_rate5m")
        # A rate is drawn out to its window's ends, for each counter by itself.
        assert found.points[0][1] == pytest.approx(expected, rel=0.2)


def test_a_server_that_ends(scraped: Scraped) -> None:
    """It is missed, though its own series end with it: down, and nobody left that is ready."""
    assert scraped.server.stop() == 0
    expected = {"EmbedserveDown", "EmbedserveNoneReady"}
    until(lambda: expected <= set(scraped.prometheus.alerts()))
    found = scraped.prometheus.alerts()
    assert {found[name] for name in expected} == {"pending"}
    assert "EmbedserveAbsent" not in found
