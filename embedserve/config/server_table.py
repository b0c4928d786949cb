"""[server] of models.toml as text: sets keys and leaves every other byte as it was."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embedserve.errors import Exit, StartupError
from embedserve.system import atomic_write, regular_file

# Where a key can be set: a pattern, and what takes the match's place. The text is searched, not
# parsed, so a match may stand in a comment or a string; only an edit whose parse is exactly what is
# wanted counts, and the first does.
# 1. The key's value, wherever it stands.
# 2. After the table's header.
# 3. In an inline table, with other keys and without.
# 4. Before a dotted key of the table.
# 5. In a table of its own at the end.
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
    """Set keys of [server] in the text of a models.toml, replaced where they stand, else added.

    ValueError when no edit gives exactly the old content with these values.

    >>> edited("[server]\\nport = 80  # http\\n", {"lanes": 2})
    '[server]\\nlanes = 2\\nport = 80  # http\\n'
    """
    # The last comes first: each that is added goes above those that are there.
    for key, value in reversed([*values.items()]):
        wanted = tomllib.loads(text)
        wanted["server"] = {**wanted.get("server", {}), key: value}
        if wanted != tomllib.loads(text):
            text = next((t for t in _edits(text, key, value) if _parsed(t) == wanted), "")
        if not text:
            raise ValueError(f"{key} = {value} has no place in it")
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
    """Set keys of [server] in models.toml: the whole file changes at once, or not at all.

    Mode and owner stay, and a link goes on naming the same file. StartupError when it cannot be
    written, or cannot be edited without changing more.
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
    """Write a file that is there: whole at once or not at all; mode and owner stay. OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    atomic_write.write(path, temporary, lambda file: file.write(content), like=path.stat())
