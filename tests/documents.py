"""README and docs/ as data: tables, links and anchors, commands and code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PATHS = (README, *sorted(DOCS.glob("*.md")))

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# A paragraph indented by four or more, after a blank line and outside fences.
_INDENTED = re.compile(r"(?<=\n\n)(?: {4,}\S.*\n)+")
_LINK = re.compile(r"\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
# What an indented block begins with when it is not a command.
_ANSWERS = ("{", "[", "HTTP/", "2026-", "memory:", "my-model:", "lanes ")


class Code(NamedTuple):
    """A block of code: in which document, in which language, and its text."""

    path: Path
    language: str
    text: str


def text(path: Path) -> str:
    """A document's text."""
    return path.read_text(encoding="utf-8")


def tables(head: str, paths: tuple[Path, ...] = PATHS) -> Iterator[list[list[str]]]:
    """The rows of each table whose head line starts with `head`."""
    for path in paths:
        for part in text(path).split(f"\n{head}")[1:]:
            lines = re.match(r"[^\n]*\n[^\n]*\n((?:\|.*(?:\n|$))*)", part)
            assert lines is not None
            yield [cells(line) for line in lines[1].splitlines()]


def table(head: str, paths: tuple[Path, ...] = PATHS) -> list[list[str]]:
    """The rows of the one table whose head line starts with `head`."""
    (rows,) = tables(head, paths)
    return rows


def cells(line: str) -> list[str]:
    """The cells of a table's line."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def codes(*languages: str) -> Iterator[Code]:
    """Every block of code in one of the languages; indented commands are bash."""
    for path in PATHS:
        content = text(path)
        for indent, language, body in _FENCE.findall(content):
            if language in languages:
                yield Code(path, language, re.sub(f"^{indent}", "", body, flags=re.MULTILINE))
        if "bash" not in languages:
            continue
        for block in _INDENTED.findall(_FENCE.sub("", content)):
            if not block.strip().startswith(_ANSWERS):
                yield Code(path, "bash", re.sub("^ +", "", block, flags=re.MULTILINE))


def commands(program: str) -> Iterator[tuple[Path, str]]:
    """The arguments of each command line that runs the program, whatever directory it is in."""
    start = rf"(?:^|[|&;] *|=)\S*\b{re.escape(program)}(?= |$)"
    pattern = re.compile(start + r"([^|&;#\n]*)", re.MULTILINE)
    for path, _, body in codes("bash", "ini", "dockerfile"):
        for arguments in pattern.findall(body.replace("\\\n", " ")):
            yield path, arguments.strip()


def links(path: Path) -> list[str]:
    """The targets of a document's links."""
    return _LINK.findall(_FENCE.sub("", text(path)))


def anchors(path: Path) -> set[str]:
    """What `#` can name in a document, as GitHub makes it from headings."""
    made: list[str] = []
    for heading in _HEADING.findall(_FENCE.sub("", text(path))):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        made.append(f"{anchor}-{made.count(anchor)}" if anchor in made else anchor)
    return set(made)
