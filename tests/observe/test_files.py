"""The dashboard and the rules, without Prometheus: they ask for what the server has."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest
import yaml

from embedserve.errors import ERRORS
from embedserve.metrics import METRICS
from tests.conftest import ROOT
from tests.observe import dashboard, rules
from tests.observe.dashboard import Panel

PANELS = dashboard.panels()
SHOWN = [panel for panel in PANELS if panel.kind != "row"]
OBSERVING = (ROOT / "docs" / "observing.md").read_text(encoding="utf-8")
# Labels that Prometheus gives every series of a target.
TARGET = {"job", "instance", "namespace"}
# Grafana's own, and those whose name is what comes after it: count:texts/s.
UNITS = ("none", "short", "s", "reqps", "percentunit", "decbytes", "count", "suffix")
# Panels of what all models share, whichever are chosen.
SHARED = ("Inference threads busy",)
EXPRESSIONS = {
    **{f"{panel.title} {q.name}": q.expression for panel in SHOWN for q in panel.queries},
    **{rule.name: rule.expression for rule in rules.read()},
}


def title(panel: Panel) -> str:
    return f"{panel.number} {panel.title}"


def test_selectors() -> None:
    """What an expression asks for is found whatever stands around it."""
    text = 'sum by (job) (rate(a_total{code=~"x|y"}[5m])) / on (job) b > bool 0 and b or max(c:d:e)'
    assert set(rules.selectors(text)) == {("a_total", '{code=~"x|y"}'), ("b", ""), ("c:d:e", "")}


class TestDashboard:
    """deploy/grafana/embedserve.json."""

    def test_panels_have_places_of_their_own(self) -> None:
        """None overlaps another or leaves the grid; numbers are unique."""
        places = Counter(
            (x, y)
            for p in PANELS
            for x in range(p.x, p.x + p.width)
            for y in range(p.y, p.y + p.height)
        )
        assert max(places.values()) == 1
        assert all(0 <= x < dashboard.COLUMNS for x, _ in places)
        assert max(Counter(panel.number for panel in PANELS).values()) == 1

    def test_titles_are_unique(self) -> None:
        """One panel a title, by which docs/observing.md names it."""
        assert max(Counter(panel.title for panel in SHOWN).values()) == 1

    def test_no_gaps(self) -> None:
        """Each line of the grid is filled from the left to the right."""
        bottom = max(panel.y + panel.height for panel in PANELS)
        filled = sum(panel.width * panel.height for panel in PANELS)
        assert filled == bottom * dashboard.COLUMNS

    def test_rows(self) -> None:
        """It begins with a row; each is as wide as the grid and has panels below it."""
        kinds = [panel.kind for panel in PANELS]
        assert kinds[0] == "row" != kinds[-1]
        assert not any(pair == ("row", "row") for pair in itertools.pairwise(kinds))
        rows = [panel for panel in PANELS if panel.kind == "row"]
        assert all((row.x, row.width, row.height) == (0, dashboard.COLUMNS, 1) for row in rows)

    @pytest.mark.parametrize("panel", SHOWN, ids=title)
    def test_panel(self, panel: Panel) -> None:
        """It has a unit, says what it means, and asks whatever Prometheus is chosen."""
        assert len(panel.description) >= 30
        assert panel.description.endswith(".")
        assert panel.unit.partition(":")[0] in UNITS or panel.kind in ("table", "heatmap")
        sources = [
            panel.content["datasource"],
            *(q["datasource"] for q in panel.content["targets"]),
        ]
        assert all(s == {"type": "prometheus", "uid": "${datasource}"} for s in sources)
        names = [query.name for query in panel.queries]
        assert names == [*"ABCDEFGH"[: len(names)]]

    @pytest.mark.parametrize("panel", SHOWN, ids=title)
    def test_legends(self, panel: Panel) -> None:
        """A legend names labels that the query's answer has."""
        for query in panel.queries:
            grouped = re.findall(r"\bby \(([^)]*)\)", query.expression)
            labels = {"job", "instance"}
            if grouped or re.match(r"(sum|max|min|count|histogram_quantile)\b", query.expression):
                labels = set(re.split(r", *", grouped[0])) if grouped else set()
            assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= labels
            several = panel.kind == "timeseries" and len(panel.queries) > 1
            assert query.legend != "__auto" or not several

    def test_variables(self) -> None:
        """Each is asked for and used, and every query keeps to those that its series have."""
        known = {v["name"]: v for v in dashboard.content()["templating"]["list"]}
        assert [*known] == ["datasource", "job", "instance", "model"]
        series = rules.known()
        for panel in SHOWN:
            for query in panel.queries:
                used = set(re.findall(r"\$(\w+)", query.expression)) - {"__rate_interval"}
                assert used <= set(known)
                for metric, braces in rules.selectors(query.expression):
                    asked = set(re.findall(r'(\w+)=~"\$\1"', braces))
                    if metric in series:
                        expected = {"job", "instance"}
                        if panel.title not in SHARED:
                            expected |= {"model"} & series[metric]
                        assert asked == expected, (panel.title, metric)
                    else:
                        assert "job" in asked, (panel.title, metric)

    def test_every_metric_is_shown(self) -> None:
        """There is no metric that an operator never sees."""
        shown = {
            metric
            for panel in SHOWN
            for query in panel.queries
            for metric, _ in rules.selectors(query.expression)
        }
        for row in METRICS:
            name = f"embedserve_{row.name}"
            assert shown & {name, f"{name}_bucket", f"{name}_sum", f"{name}_count"}, name

    def test_what_counts_as_failed(self) -> None:
        """The panel counts what the objective counts."""
        (failed,) = (p.queries[0].expression for p in SHOWN if p.title == "Failed")
        outcomes = set(re.findall(r'outcome=~"([^"]+)"', failed))
        assert outcomes == {"|".join(FAILED), "|".join(("ok", *FAILED))}


# In the order of the table of errors: what the client has not caused, as it has 501.
FAILED = [
    code
    for code, (status, *_) in ERRORS.items()
    if status == 429 or (status >= 500 and status != 501)
]


def test_documented_panels() -> None:
    """docs/observing.md names panels by their titles, with metrics that they ask for."""
    rows = OBSERVING.split("\n| question |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(rows) >= 10
    asked = {panel.title: " ".join(q.expression for q in panel.queries) for panel in SHOWN}
    for row in rows:
        _, _, titles, metrics, _ = row.split("|")
        shown = " ".join(asked[title.strip()] for title in titles.split(";"))
        for name in re.findall(r"`([a-z_:0-9]+)`", metrics):
            assert name in shown or name == "outcome", (row, name)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_series_exist(name: str) -> None:
    """An expression asks for metrics that the server, or a rule above, has; by their labels."""
    series = rules.known()
    recorded = {rule.name for rule in rules.records()}
    found = [*rules.selectors(EXPRESSIONS[name])]
    assert found or EXPRESSIONS[name].startswith("vector(")
    for metric, braces in found:
        assert metric in series or metric in recorded | rules.PROMETHEUS, metric
        labels = set(re.findall(r"(\w+)(?:=~|!=|!~|=)\"", braces))
        if metric in series:
            assert labels <= series[metric] | TARGET, metric


class TestRules:
    """deploy/prometheus/rules.yml."""

    def test_names_are_unique(self) -> None:
        """One rule a name."""
        assert max(Counter(rule.name for rule in rules.read()).values()) == 1

    def test_what_counts_as_failed(self) -> None:
        """Every status of 500 and more but 501, and 429; of the others none."""
        (rule,) = (r for r in rules.records() if r.name == "job:embedserve_requests_failed:rate5m")
        (outcomes,) = re.findall(r'outcome=~"([^"]+)"', rule.expression)
        assert outcomes.split("|") == FAILED

    def test_bounds_of_buckets(self) -> None:
        """A bucket that is asked for exists, as the server writes it."""
        asked = [
            (metric.removeprefix("embedserve_").removesuffix("_bucket"), float(bound), bound)
            for rule in rules.read()
            for metric, braces in rules.selectors(rule.expression)
            for bound in re.findall(r'\ble="([^"]+)"', braces)
        ]
        assert asked
        buckets = {row.name: row.buckets for row in METRICS}
        for name, value, text in asked:
            assert value in buckets[name]
            assert text == str(value)  # Prometheus 2 keeps "1.0", Prometheus 3 makes it so

    def test_refusals_that_matter(self) -> None:
        """The codes of the alert on refusals are codes of refusals."""
        from embedserve.metrics import REFUSALS

        (alert,) = (rule for rule in rules.alerts() if rule.name == "EmbedserveRefusals")
        (codes,) = re.findall(r'code=~"([^"]+)"', alert.expression)
        assert set(codes.split("|")) < set(REFUSALS)

    @pytest.mark.parametrize("alert", rules.alerts(), ids=lambda rule: rule.name)
    def test_alert(self, alert: rules.Rule) -> None:
        """It says what is the case, what to do, and where more is written."""
        assert alert.severity in ("page", "ticket")
        assert set(alert.annotations) == {"summary", "action", "runbook"}
        file, _, anchor = alert.annotations["runbook"].partition("#")
        assert (file, anchor) == ("docs/observing.md", alert.name.lower())
        assert OBSERVING.count(f"\n### {alert.name}\n") == 1

    def test_documented_alerts_exist(self) -> None:
        """No heading is of an alert that is gone."""
        headings = re.findall(r"^### (Embedserve\w+)$", OBSERVING, re.MULTILINE)
        assert headings == [rule.name for rule in rules.alerts()]

    @pytest.mark.parametrize("alert", rules.alerts(), ids=lambda rule: rule.name)
    def test_tested(self, alert: rules.Rule) -> None:
        """promtool's tests have a case in which it fires, and one in which it does not."""
        fires, silent = False, False
        for case in yaml.safe_load(rules.TESTS.read_text(encoding="utf-8"))["tests"]:
            for test in case.get("promql_expr_test", ()):
                labels = [sample["labels"] for sample in test.get("exp_samples", ())]
                wanted = f'alertname="{alert.name}", alertstate="firing"'
                fires |= any(wanted in text for text in labels)
                names = re.findall(r'alertname=~?"([^"]+)"', test["expr"])
                covers = test["expr"].startswith("ALERTS") and (
                    not names or re.fullmatch(names[0], alert.name)
                )
                silent |= bool(covers) and not any(alert.name in text for text in labels)
            for test in case.get("alert_rule_test", ()):
                fires |= test["alertname"] == alert.name and bool(test.get("exp_alerts"))
                silent |= test["alertname"] == alert.name and not test.get("exp_alerts")
        assert fires
        assert silent

    def test_records_are_tested_or_used(self) -> None:
        """A recording rule is for an alert, for the dashboard, or has a test of its value."""
        text = rules.TESTS.read_text(encoding="utf-8")
        for rule in rules.records():
            users = [e for name, e in EXPRESSIONS.items() if name != rule.name]
            assert rule.name in text or any(rule.name in e for e in users), rule.name


def test_the_job_is_named_as_everywhere() -> None:
    """The scrape configuration names the job that rules and dashboard ask for."""
    config = yaml.safe_load(rules.CONFIG.read_text(encoding="utf-8"))
    assert [job["job_name"] for job in config["scrape_configs"]] == ["embedserve"]
    assert config["rule_files"] == [rules.RULES.name]
    for rule in rules.read():
        jobs = re.findall(r'\bjob="([^"]+)"', rule.expression)
        assert set(jobs) <= {"embedserve"}
