"""docs/bulk.md says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from embedserve.bulk.inputs import INPUTS
from embedserve.bulk.outputs import OUTPUTS
from embedserve.bulk.shipping import SHIPPING
from embedserve.commands import embed
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "bulk.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "embedserve" / "bulk"


def table(head: str) -> list[list[str]]:
    """The rows of the table whose head line starts with `head`."""
    lines = TEXT.split(f"\n{head}")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_formats() -> None:
    """Each end of a name, in and out."""
    rows = {
        suffix: row
        for row in table("| end of the name |")
        for suffix in re.findall(r"`(\.\w+)`", row[0])
    }
    assert {suffix for suffix, row in rows.items() if row[1]} == set(INPUTS)
    assert {suffix for suffix, row in rows.items() if row[2]} == set(OUTPUTS)


def test_ways_of_shipping() -> None:
    """Each way, the default first."""
    named = [
        re.findall(r"`([\w-]+)`", row[0])[0] for row in table("| `--artifacts-by` | what happens")
    ]
    assert set(named) == set(SHIPPING)
    assert embed.COMMAND.options["--artifacts-by"]["default"] == named[0]


def test_tests() -> None:
    """Each file of tests is named, and is there."""
    named = set(re.findall(r"`(tests/\w+/test_\w+\.py)`", TEXT))
    assert all((ROOT / name).exists() for name in named)
    files = {path.relative_to(ROOT).as_posix() for path in Path(__file__).parent.glob("test_*.py")}
    assert files - named <= {"tests/bulk/test_documents.py", "tests/bulk/test_progress.py"}
