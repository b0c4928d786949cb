"""The tables of README and docs/ say what the code says."""

from __future__ import annotations

import re
from dataclasses import fields

from embedserve.config.models_toml import shown
from embedserve.config.settings import Settings, accepted
from embedserve.errors import ERRORS
from embedserve.metrics import METRICS
from tests.conftest import ROOT
from tests.documents import table

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_settings() -> None:
    """Each setting with its default as in TOML, what is accepted, and its meaning."""
    rows = [
        [f"`{f.name}`", f"`{_toml(f.default)}`", accepted(f), f.metadata["help"]]
        for f in fields(Settings)
    ]
    assert table("| setting |") == rows


def _toml(value: object) -> str:
    return "[]" if value == () else shown(value)


def test_errors() -> None:
    """Each error code under its status."""
    listed = {
        (int(status), code)
        for status, codes in table("| status | codes |")
        for code in codes.split("(")[0].strip().split(", ")
    }
    assert listed == {(status, code) for code, (status, _) in ERRORS.items()}


def test_metrics() -> None:
    """Each metric with its labels and help."""
    rows = [[f"`embedserve_{m.name}`", ", ".join(m.labels), m.help] for m in METRICS]
    assert table("| metric |") == rows


def test_client_versions() -> None:
    """The versions said to be tried are those that the tests install."""
    python = (ROOT / "requirements" / "clients.txt").read_text()
    node = (ROOT / "tests" / "clients" / "package.json").read_text()
    for client, version in table("| client | version tried |")[:-1]:
        name = client.split(" ")[0].strip(",").lower()
        if "JavaScript" in client:
            assert f'"{name}": "{version}"' in node
        else:
            assert f"\n{name}=={version} " in f"\n{python}"


def test_tree() -> None:
    """Each module has its line, and each line its module."""
    for package in ("embedserve", "export"):
        block = README.split(f"\n{package}/\n")[1].split("\n```")[0]
        lines = re.match(r"(?:  .*\n?)+", block)
        assert lines is not None
        named = set(re.findall(r"^  (\w+)\.py ", lines[0], re.MULTILINE))
        found = {p.stem for p in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}
        assert named == found


def test_promises() -> None:
    """Each promise of docs/promises.md names tests that are there; each file of tests is named."""
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    named = re.findall(r"`(attack/)?(test_\w+\.py)::(\w+)", text)
    assert len(named) >= 25
    for attack, file, name in named:
        source = (ROOT / "tests" / (attack or "faults") / file).read_text(encoding="utf-8")
        assert re.search(rf"^(?:class|def) {name}\b", source, re.MULTILINE), f"{file}::{name}"
    for folder, prefix in (("faults", ""), ("attack", "attack/")):
        files = {path.name for path in (ROOT / "tests" / folder).glob("test_*.py")}
        assert files
        assert {file for attack, file, _ in named if attack == prefix} == files
