"""Tables of README and docs/ that are made from the code: python -m tests.make_docs (`make docs`).

Each stands between `<!-- make docs: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from embedserve.config.models_toml import shown
from embedserve.config.settings import Settings, accepted
from embedserve.diagnose.footprint import CONSUMERS
from embedserve.errors import ERRORS
from embedserve.metrics import METRICS
from tests import tree
from tests.conftest import ROOT
from tests.documents import PATHS

_PLACE = re.compile(r"(?<=<!-- make docs: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """A page with its tables as they should be; KeyError where it names none of TABLES."""
    return _PLACE.sub(lambda found: f"{found[1]}{found[2]}\n{TABLES[found[1]]()}\n\n", text)


def _settings() -> str:
    rows = ([f"`{f.name}`", _default(f.default), accepted(f), f.metadata["help"]] for f in
            fields(Settings))  # fmt: skip
    return _table(("setting", "default", "accepted", "meaning"), rows)


def _default(value: object) -> str:
    return "`[]`" if value == () else f"`{shown(value)}`"


def _errors() -> str:
    by_status: dict[int, list[str]] = {}
    for code, (status, _) in ERRORS.items():
        by_status.setdefault(status, []).append(code)
    rows = ([str(status), ", ".join(codes)] for status, codes in sorted(by_status.items()))
    return _table(("status", "codes"), rows)


def _metrics() -> str:
    rows = ([f"`embedserve_{m.name}`", ", ".join(m.labels), m.help] for m in METRICS)
    return _table(("metric", "labels", "meaning"), rows)


def _memory() -> str:
    rows = [("loaded", "the process with its models", "which models")]
    rows += [(one.name, one.what, one.by) for one in CONSUMERS]
    return _table(("part", "what it is", "by"), rows)


def _package() -> str:
    """Folders of embedserve from the command line down, each with its modules."""
    parts = []
    modules = tree.modules()
    for place in reversed(tree.ORDER):
        inside = [name for name in modules if name.startswith(f"{place}.")]
        if not inside:
            rows = [(f"`{place}.py`", _said(modules[place]))]
            parts.append(f"**`{place}.py`**: {rows[0][1]}")
            continue
        said = _said(tree.PACKAGE / place / "__init__.py")
        rows = [(f"`{name.partition('.')[2]}.py`", _said(modules[name])) for name in inside]
        parts.append(f"**`{place}/`**: {said}\n\n{_table(('file', 'holds'), rows)}")
    return "\n\n".join(parts)


def _export() -> str:
    paths = sorted((ROOT / "export").glob("*.py"))
    rows = [(f"`{p.name}`", _said(p)) for p in paths if not p.stem.startswith("__")]
    rows.append(("`families/`", _said(ROOT / "export" / "families" / "__init__.py")))
    return _table(("file", "holds"), rows)


def _said(path: Path) -> str:
    """The first paragraph of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text, f"{path} has no docstring"
    line = " ".join(text.partition("\n\n")[0].split()).rstrip(".")
    return line.replace("|", "\\|")


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = (f"| {' | '.join(row)} |".replace("|  |", "| |") for row in [head, *rows])
    first, *rest = lines
    return "\n".join([first, "|" + "---|" * len(head), *rest])


TABLES: Mapping[str, Callable[[], str]] = {
    "settings": _settings,
    "errors": _errors,
    "metrics": _metrics,
    "memory": _memory,
    "package": _package,
    "export": _export,
}


def main() -> None:
    """Write the pages whose tables have changed."""
    for path in PATHS:
        text = path.read_text(encoding="utf-8")
        if (made := filled(text)) != text:
            path.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
