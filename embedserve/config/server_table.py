"""Edits [server] of models.toml as text: sets keys and keeps every other byte."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embedserve.errors import Exit, StartupError
from embedserve.system import atomic_write, regular_file

# Where a key can be set: a pattern, and what replaces its match. A pattern does not parse TOML, so
# it may match in a comment or a string. `edited` takes the first edit that parses to exactly the
# wanted content.
# 1. The key's value, wherever it is.
# 2. After the table's header.
# 3. In an inline table, with other keys and without.
# 4. Before a dotted key of the table.
# 5. In a new table at the end.
_SERVER = r"(?:server|\"server\"|'server')"
_EDITS = (
    (r"(?P<kept>\b{key}[\"']?[ \t]*=[ \t]*)[\w+-]+", "{kept}{value}"),
    (rf"(?m)^(?P<kept>[ \t]*\[[ \t]*{_SERVER}[ \t]*\][^\r\n]*)", "{kept}{end}{key} = {value}"),
    (rf"(?P<kept>{_SERVER}[ \t]*=[ \t]*\{{)", "{kept} {key} = {value},"),
    (rf"(?P<kept>{_SERVER}[ \t]*=[ \t]*\{{)", "{kept} {key} = {value}"),
    (rf"(?m)^(?P<kept>[ \t]*{_SERVER}[ \t]*\.)", "server.{key} = {value}{end}{kept}"),
    (r"(?P<kept>)\Z", "{kept}{end}[server]{end}{key} = {value}{end}"),
)


def edited(text: str, values: Mapping[str, int]) -> str:
    """Set keys of [server] in the text of a models.toml: replace those it has, add the others.

    ValueError when no edit gives exactly the old content with these values.

    >>> edited("[server]\\nport = 80  # http\\n", {"lanes": 2})
    '[server]\\nlanes = 2\\nport = 80  # http\\n'
    """
    # In reverse order, because each added key goes above the keys that are there.
    for key, value in reversed([*values.items()]):
        wanted = tomllib.loads(text)
        wanted["server"] = {**wanted.get("server", {}), key: value}
        if wanted != tomllib.loads(text):
            text = next((t for t in _edits(text, key, value) if _parsed(t) == wanted), "")
        if not text:
            raise ValueError(f"found no place for {key} = {value}")
    return text


def _edits(text: str, key: str, value: int) -> Iterator[str]:
    end = "\r\n" if "\r\n" in text else "\n"
    for pattern, replacement in _EDITS:
        for match in re.finditer(pattern.replace("{key}", re.escape(key)), text):
            new = replacement.format(kept=match["kept"], key=key, value=value, end=end)
            yield text[: match.start()] + new + text[match.end() :]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return None


def write(path: Path, values: Mapping[str, int]) -> None:
    """Set keys of [server] in models.toml, atomically.

    Mode and owner stay, and a link still points to the same file. StartupError when the file
    cannot be written, or cannot be edited without changing anything else.
    """
    path = path.resolve()
    text = check(path, values)
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise StartupError(f"{path}: cannot be written: {error}", Exit.CANTCREAT) from error


def check(path: Path, values: Mapping[str, int]) -> str:
    """Return the text that `write` would write; StartupError where it would fail."""
    try:
        text = edited(regular_file.read_text(path), values)
    except (OSError, ValueError, RecursionError) as error:
        keys = ", ".join(f"{key} = {value}" for key, value in values.items())
        raise StartupError(f"{path}: cannot be edited: {error}; set it by hand: {keys}") from error
    for place in (path, path.resolve().parent):
        if not os.access(place, os.W_OK):
            raise StartupError(f"{place}: not writable by this user", Exit.CANTCREAT)
    return text


def replace_file(path: Path, content: bytes) -> None:
    """Replace an existing file atomically; mode and owner stay. OSError when that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    atomic_write.write(path, temporary, lambda file: file.write(content), like=path.stat())
