"""Tracing where it is not installed; what a collector gets is in tests/otel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from embedserve.api.tracing import ATTRIBUTES, SERVER_ATTRIBUTES, STAGES
from embedserve.errors import Exit
from tests.conftest import ROOT, run


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_without_the_extra(tiny_artifacts: Path, command: str) -> None:
    """No start, and what to install; the doctor says the same."""
    models = tiny_artifacts.parent / "models.toml"
    flags = ("--models", models, "--artifacts", tiny_artifacts, "--tracing", "--port", "0")
    done = run(command, *flags)
    said = (done.stderr or done.stdout).splitlines()
    assert done.returncode == Exit.UNAVAILABLE
    assert any("pip install 'embedserve[otel]'" in line for line in said)
    assert "loaded" not in done.stderr


def test_page() -> None:
    """The page's tables of spans and attributes say what the code says."""
    page = (ROOT / "docs" / "tracing.md").read_text(encoding="utf-8")
    tables = {"span": [STAGES], "attribute": [ATTRIBUTES, SERVER_ATTRIBUTES]}
    for head, expected in tables.items():
        found = re.findall(rf"^\| {head} \| .*\n\|---.*\n((?:\|.*\n)+)", page, re.MULTILINE)
        rows = [re.findall(r"^\| `(.*?)` \| (.*) \|$", lines, re.MULTILINE) for lines in found]
        assert rows == [list(table.items()) for table in expected]


def test_extra() -> None:
    """The lock of the servers that trace asks for what the extra asks for."""
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("otel = [")[1]
    extra = re.findall(r'"(opentelemetry\S+)"', listed.split("]")[0])
    asked = (ROOT / "requirements" / "serve-otel.in").read_text(encoding="utf-8").split()
    assert extra and set(extra) <= set(asked)
