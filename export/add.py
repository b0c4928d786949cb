"""`python -m export add OWNER/NAME`: add a model of the hub, or a directory, to models.toml."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedserve.config import models_toml
from embedserve.config.models_toml import shown
from embedserve.config.server_table import replace_file
from embedserve.errors import Exit, StartupError
from embedserve.escapes import escaped
from embedserve.system import regular_file
from export import card, catalogue, cli, origin, table
from export.card import Decision
from export.catalogue import Catalogue, CatalogueEntry

Export = Callable[[Sequence[str]], int]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Table:
    """The table to append; see `table.appended`."""

    name: str
    wishes: Mapping[str, Any]
    comments: Mapping[str, str]


def main(arguments: Sequence[str], export: Export = cli.main) -> int:
    """Add a model and return the exit status; `export` runs `python -m export` with arguments."""
    options = parser().parse_args(arguments)
    try:
        return _add(options, catalogue.read(), export)
    except StartupError as error:
        print(f"export: {error}", file=sys.stderr)
        return int(error.status)
    except KeyboardInterrupt:
        print(escaped(f"export: interrupted; {options.models} is unchanged"), file=sys.stderr)
        return cli.INTERRUPTED


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python -m export add",
        description="Add a model to models.toml, with its commit, its digests and what its card "
        "says, and export it. If the export fails, models.toml stays unchanged.",
    )
    parser.add_argument("repository", nargs="?", metavar="OWNER/NAME", help="a model of the hub")
    parser.add_argument(
        "--as", dest="name", metavar="NAME", help="its name here; default: the part after the '/'"
    )
    parser.add_argument(
        "--revision", metavar="R", help="a branch, tag or commit; default: the newest commit"
    )
    parser.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="DIR",
        help="take the files from this directory, not from the hub",
    )
    parser.add_argument("--task", help="the task, for a model that has several")
    parser.add_argument(
        "--convert-pickle", action="store_true", help="convert pickled weights, as the export does"
    )
    parser.add_argument(
        "--models", type=Path, default=Path("models.toml"), help="default: %(default)s"
    )
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="default: %(default)s")
    return parser


def _add(options: argparse.Namespace, known: Catalogue, export: Export) -> int:
    repository, models = options.repository, options.models
    _check_arguments(repository, options.revision, options.source)
    entry = _entry(known, repository)
    name = options.name or _default_name(repository, options.source)
    task = card.choose_task(repository or name, entry, options.task)
    with _candidate(models, _Table(name, {}, {})):
        pass  # check the name and models.toml before anything is downloaded
    revision, source, convert = options.revision, options.source, options.convert_pickle
    if source is not None:
        found = origin.from_directory(name, repository, revision, source, convert)
    else:
        found = origin.from_hub(name, repository, revision, known, convert)
    decisions = [*found.decisions, *card.decide(found.directory, entry, task)]
    print(_told(name, entry, decisions, found.digests))
    new = _table(name, repository, entry, decisions, found.digests)
    with _candidate(models, new) as candidate:
        command = [name, "--models", str(candidate), "--out", str(options.out)]
        command += ["--from", str(source)] if source is not None else []
        command += ["--convert-pickle"] if convert else []
        status = export(command)
    if status:
        print(escaped(f"export: {name}: not added; {models} is unchanged"), file=sys.stderr)
        return status
    _write(models, _with(models, new))  # keeps edits made during the export
    print(escaped(f"{name}: added to {models}"))
    return 0


@contextlib.contextmanager
def _candidate(models: Path, new: _Table) -> Iterator[Path]:
    """A validated copy of models.toml with the new table; removed when the block ends."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / models.name
        path.write_bytes(_with(models, new).encode())
        try:
            models_toml.read(path)
        except StartupError as error:
            raise StartupError(str(error).replace(str(path), str(models)), error.status) from None
        yield path


# -- before the hub is asked -------------------------------------------------------------------


def _check_arguments(repository: str | None, revision: str | None, source: Path | None) -> None:
    if repository is None and source is None:
        raise StartupError("add needs OWNER/NAME, --from DIR or both", Exit.USAGE)
    if repository is not None and not _REPOSITORY.fullmatch(repository):
        raise StartupError(f"{repository}: not a hub name; OWNER/NAME is accepted", Exit.USAGE)
    if source is None:
        return
    if not (source / "modules.json").is_file():
        raise StartupError(
            f"--from {source}: no modules.json there; the directory of one sentence-transformers "
            "model is accepted",
            Exit.NOINPUT,
        )
    if revision is not None and (repository is None or not _COMMIT.fullmatch(revision)):
        raise StartupError(
            f"--revision {revision}: with --from, a commit of 40 hexadecimal digits of OWNER/NAME "
            "is accepted",
            Exit.USAGE,
        )


def _entry(known: Catalogue, repository: str | None) -> CatalogueEntry | None:
    if repository is None:
        return None
    if reason := known.reason(repository):
        raise StartupError(f"{repository}: known not to work: {reason}", Exit.DATAERR)
    return known.entry(repository)


def _default_name(repository: str | None, source: Path | None) -> str:
    if repository is not None:
        return repository.partition("/")[2]
    assert source is not None
    return source.resolve().name


# -- the table ---------------------------------------------------------------------------------


def _table(
    name: str,
    repository: str | None,
    entry: CatalogueEntry | None,
    decisions: Iterable[Decision],
    digests: Mapping[str, str],
) -> _Table:
    written = [d for d in decisions if d.value is not None]
    wishes = {d.key: d.value for d in written} | {"sha256": digests}
    comments = {"": f"Added by `python -m export add{f' {repository}' if repository else ''}`."}
    first = next((d.key for d in written if d.origin == card.CATALOGUE), None)
    if first is not None and entry is not None:
        unread = "" if entry.read else " (the authors of the catalogue did not read it)"
        comments[first] = f"The card says this, and the files do not: {entry.page}{unread}"
    return _Table(name, wishes, comments)


def _with(path: Path, new: _Table) -> str:
    """The text of models.toml with the new table. StartupError (64) if the name is taken."""
    text = _text(path, new.name)
    try:
        return table.appended(text, new.name, new.wishes, new.comments)
    except ValueError as error:
        raise StartupError(f"{path}: cannot be edited: {error}") from error


def _text(path: Path, name: str) -> str:
    try:
        text = regular_file.read_text(path)
        document = tomllib.loads(text)
    except FileNotFoundError:
        raise StartupError(f"{path}: no such file; name it with --models", Exit.NOINPUT) from None
    except (OSError, ValueError, RecursionError) as error:
        raise StartupError(f"{path}: cannot be read as TOML: {error}") from error
    for kind in ("models", "aliases"):
        if name in document.get(kind, {}):
            raise StartupError(
                f"{name}: {path} already has [{kind}.{name}]; give another name with --as NAME",
                Exit.USAGE,
            )
    if name == cli.COMMAND:
        raise StartupError(f"{name}: is the name of a command; give another with --as", Exit.USAGE)
    for place in (path, path.resolve().parent):
        if not os.access(place, os.W_OK):
            raise StartupError(f"{place}: not writable by this user", Exit.CANTCREAT)
    return text


def _write(path: Path, text: str) -> None:
    try:
        replace_file(path.resolve(), text.encode())
    except OSError as error:
        raise StartupError(
            f"{path}: cannot be written: {error}; the artifact was published, but its table was "
            "not added",
            Exit.CANTCREAT,
        ) from error


# -- what is printed ---------------------------------------------------------------------------


def _told(
    name: str,
    entry: CatalogueEntry | None,
    decisions: Sequence[Decision],
    digests: Mapping[str, str],
) -> str:
    """A table of the decisions and their origins, and what the catalogue adds."""
    rows = [("key", "from", "value"), *((d.key, d.origin, _shown(d.value)) for d in decisions)]
    rows.append(("sha256", "the files", f"{len(digests)} files"))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"{name}:"]
    lines += [f"  {k.ljust(widths[0])}  {o.ljust(widths[1])}  {v}" for k, o, v in rows]
    if entry is None:
        lines.append("  not in the catalogue: read its card for prompts, dimensions and limits")
    else:
        unread = "" if entry.read else " (not read: what the card says is not known here)"
        lines.append(f"  catalogue: {entry.page}{unread}")
    if entry is not None and entry.note:
        lines.append(f"  note: {entry.note}")
    return "\n".join(map(escaped, lines))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {shown(text)}" for key, text in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
