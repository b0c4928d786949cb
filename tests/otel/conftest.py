"""Servers of .venv-otel, which has the extra, and a collector of their spans."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Server, Start, environment, starting
from tests.faults.serving import until

PROGRAM = ROOT / ".venv-otel" / "bin" / "embedserve"
NOW = {"OTEL_BSP_SCHEDULE_DELAY": "20"}  # milliseconds until spans are sent

Span = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Collector:
    """A running tests.otel.collector."""

    url: str
    file: Path

    def environment(self, **more: str) -> dict[str, str]:
        """What makes a server send its spans here, at once."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, **NOW, **more}

    def spans(self) -> list[Span]:
        """All that it got, in order; a line that is not whole yet is left out."""
        lines = self.file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def trace(self, trace_id: str, count: int) -> list[Span]:
        """The spans of a trace, once there are `count`, by when they began."""

        def found() -> list[Span]:
            return [span for span in self.spans() if span["trace_id"] == trace_id]

        until(lambda: len(found()) >= count)
        return sorted(found(), key=lambda span: (span["start"], span["end"]))


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    if not PROGRAM.exists():
        pytest.skip("no .venv-otel here: make .venv-otel/.installed")


@pytest.fixture(scope="session")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """One collector for all servers: each trace has its own id."""
    file = tmp_path_factory.mktemp("collector") / "spans"
    command = [str(PROGRAM.with_name("python")), "-m", "tests.otel.collector", str(file)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    ) as process:
        assert process.stdout is not None
        try:
            yield Collector(f"http://127.0.0.1:{int(process.stdout.readline())}", file)
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def start_otel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start servers of .venv-otel; those still running at the end are killed."""
    yield from starting(PROGRAM, tmp_path_factory)


@pytest.fixture(scope="session")
def traced(start_otel: Start, tiny_artifacts: Path, collector: Collector) -> Server:
    """One server with tracing on, shared by tests that leave it as it was."""
    flags = ("--tracing", "--log-format", "json", "--max-pending-mb", "1")
    models = tiny_artifacts.parent / "models.toml"
    return start_otel(models, tiny_artifacts, *flags, **collector.environment())


def children(spans: list[Span]) -> tuple[Span, list[Span]]:
    """A trace's server span, and the others, all of which are its children."""
    (server,) = [span for span in spans if span["kind"] == "SPAN_KIND_SERVER"]
    others = [span for span in spans if span is not server]
    assert {span["parent"] for span in others} <= {server["span_id"]}
    return server, others


def part(span: Span, names: Mapping[str, object]) -> dict[str, object]:
    """What a span says of some attributes."""
    return {name: span["attributes"][name] for name in names if name in span["attributes"]}


def run(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `embedserve` of .venv-otel to its end."""
    return subprocess.run(
        [PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(**env),
    )
