"""The modules of embedserve, in whatever folders they lie, and what they import of each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = ROOT / "embedserve"
# Modules and folders of the package: each imports only those before it.
ORDER = (
    *("escapes", "errors", "arrays", "system", "config", "logs", "metrics", "merged_metrics"),
    *("artifact", "model", "http", "engine", "processes", "api", "bulk", "cluster", "diagnose"),
    *("commands", "cli"),
)
# A test that walks files and finds few of them holds for nothing.
LEAST = 80


def modules() -> dict[str, Path]:
    """Path of each module by its name, such as "errors" or "bulk.pipeline"; no __init__."""
    found = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.stem not in ("__init__", "__main__")
    }
    assert len(found) >= LEAST
    return found


def importable(*folders: str) -> list[str]:
    """Full names of all modules but those in some folders."""
    return [f"embedserve.{name}" for name in modules() if name.partition(".")[0] not in folders]


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Names of the modules that a module imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names.append(str(node.module))
        else:
            continue
        for name in names:
            package, _, module = name.partition(".")
            if package == PACKAGE.name and module in known:
                yield module
