"""Tables of README and docs/ that are made from the code: python -m tests.make_docs (`make docs`).

Each stands between `<!-- make docs: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from embedserve import cli
from embedserve.bulk.chunks import BAD_ROWS
from embedserve.commands import embed
from embedserve.config.models_toml import shown
from embedserve.config.settings import Settings, accepted
from embedserve.diagnose.footprint import CONSUMERS
from embedserve.errors import ERRORS, EXITS
from embedserve.metrics import METRICS, PARENT_METRICS
from export import add as export_add
from export import cli as export_cli
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
    rows = ([f"`{code}`", str(k.status), k.meaning, k.retry] for code, k in ERRORS.items())
    return _table(("code", "status", "what it means", "retry?"), rows)


def _exits() -> str:
    rows = [("0", "", "success; for a server, the end after SIGTERM or Ctrl-C")]
    rows += [(str(one.value), one.name, when) for one, when in EXITS.items()]
    rows.append((str(export_cli.INTERRUPTED), "", "the export was interrupted from the keyboard"))
    return _table(("status", "name", "when"), rows)


def _bad_rows() -> str:
    return _table(("code", "what is wrong"), [(f"`{code}`", w) for code, w in BAD_ROWS.items()])


def _commands() -> str:
    """Each command with the flags that are its own; --models, --artifacts and --model are all's."""
    rows = []
    for name, command in cli.COMMANDS.items():
        flags = [flag for flag in command.options if flag.startswith("--")]
        flags += [f"--{setting.replace('_', '-')}" for setting in command.settings or ()]
        more = ["every setting"] if command.settings is None else []
        text = (command.run.__doc__ or "").rstrip(".")
        rows.append((f"`embedserve {name}`", text, _listed(flags, more)))
    for parser in (export_cli.parser(), export_add.parser()):
        actions = [action for action in parser._actions if action.option_strings]
        flags = [max(action.option_strings, key=len) for action in actions]
        flags = [flag for flag in flags if flag not in ("--help", "--version")]
        text = (parser.description or "").rstrip(".")
        rows.append((f"`{parser.prog}`", text, _listed(flags, [])))
    return _table(("command", "what it does", "flags of its own"), rows)


def _listed(flags: Sequence[str], more: Sequence[str]) -> str:
    return ", ".join([*(f"`{flag}`" for flag in flags), *more])


def _targets() -> str:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.findall(r"^([a-z-]+):.*  ## (.*)$", makefile, re.MULTILINE)
    return _table(("target", "what it does"), [(f"`make {name}`", text) for name, text in found])


def _embed() -> str:
    rows = []
    for flag, options in embed.COMMAND.options.items():
        if flag.startswith("--"):
            choices = ", ".join(f"`{choice}`" for choice in options.get("choices", ()))
            default = options.get("default") or ""
            rows.append((f"`{flag}`", f"`{default}`" if default else "", choices, options["help"]))
    return _table(("option", "default", "one of", "meaning"), rows)


def _metrics() -> str:
    rows = (
        [f"`embedserve_{m.name}`", ", ".join(m.labels), m.help] for m in (*METRICS, *PARENT_METRICS)
    )
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
    lines = (
        "| " + "".join(f"{cell} | " if cell else "| " for cell in row) for row in [head, *rows]
    )
    first, *rest = map(str.rstrip, lines)
    return "\n".join([first, "|" + "---|" * len(head), *rest])


TABLES: Mapping[str, Callable[[], str]] = {
    "settings": _settings,
    "errors": _errors,
    "exits": _exits,
    "bad_rows": _bad_rows,
    "commands": _commands,
    "targets": _targets,
    "embed": _embed,
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
