"""The tables of README and docs/ say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import make_docs
from tests.conftest import ROOT
from tests.documents import PATHS, table

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_generated(path: Path) -> None:
    """Each table that `make docs` makes is up to date."""
    text = path.read_text(encoding="utf-8")
    assert text == make_docs.filled(text)


def test_every_table_has_its_place() -> None:
    """Each table that can be made is in exactly one page."""
    pages = "".join(path.read_text(encoding="utf-8") for path in PATHS)
    for name in make_docs.TABLES:
        assert pages.count(f"<!-- make docs: {name} -->\n") == 1


def test_length() -> None:
    """The README is read to its end."""
    assert len(README.splitlines()) <= 150


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


def test_promises() -> None:
    """Each promise of docs/promises.md names tests that are there; each file of tests is named."""
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    named = re.findall(r"`(attack/)?(test_\w+\.py)::(\w+)", text)
    assert len(named) >= 25
    for attack, file, name in named:
        source = (ROOT / "tests" / (attack or "faults") / file).read_text(encoding="utf-8")
        assert re.search(rf"^(?:class|(?:async )?def) {name}\b", source, re.MULTILINE), (
            f"{file}::{name}"
        )
    for folder, prefix in (("faults", ""), ("attack", "attack/")):
        files = {path.name for path in (ROOT / "tests" / folder).glob("test_*.py")}
        assert files
        assert {file for attack, file, _ in named if attack == prefix} == files


def test_files_of_the_architecture() -> None:
    """Each file that the walks name is there, in embedserve or in export."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    walks = text.partition("\n## Words\n")[0]
    named = set(re.findall(r"`([\w/]+\.py)`", walks))
    assert len(named) > 25
    places = (ROOT, ROOT / "embedserve", ROOT / "export")
    assert {name for name in named if not any((place / name).exists() for place in places)} == set()
