"""Appends a model's table to the text of models.toml; every byte before it stays."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def appended(text: str, name: str, wishes: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """Append [models.NAME] to the text of a models.toml: its keys, then its tables.

    `comments` are lines by key, written above the key; those of "" go above the table. ValueError
    if the result would not be the old content plus this table.

    >>> print(appended("", "m", {"prompts": {"query": "query: "}}, {"": "added"}).strip())
    # added
    [models.m]
    prompts = { query = "query: " }
    """
    end = "\r\n" if "\r\n" in text else "\n"
    if text and not text.endswith("\n"):
        text += end
    new = text + (end if text else "") + end.join(_lines(name, wishes, comments)) + end
    wanted = tomllib.loads(text)
    models = wanted.setdefault("models", {})
    if name in models:
        raise ValueError(f"it already has [models.{name}]")
    models[name] = {key: _plain(value) for key, value in wishes.items()}
    if _parsed(new) != wanted:
        raise ValueError("a table at its end would not become part of [models]")
    return new


def _lines(name: str, wishes: Mapping[str, Any], comments: Mapping[str, str]) -> list[str]:
    header = f"models.{_key(name)}"
    lines = [*_comment(comments, ""), f"[{header}]"]
    for key, value in wishes.items():
        if key != "sha256":
            lines += [*_comment(comments, key), f"{_key(key)} = {_value(value)}"]
    if "sha256" in wishes:
        lines += ["", *_comment(comments, "sha256"), f"[{header}.sha256]"]
        lines += [
            f"{_string(path)} = {_value(digest)}" for path, digest in wishes["sha256"].items()
        ]
    return lines


def _comment(comments: Mapping[str, str], key: str) -> list[str]:
    return [f"# {line}" for line in comments.get(key, "").splitlines()]


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _string(name)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)


# https://toml.io/en/v1.0.0#string: a basic string escapes these and other control characters.
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _string(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    is_control = character < " " or character == "\x7f"
    return f"\\u{ord(character):04x}" if is_control else character


def _plain(value: Any) -> Any:
    """The value as tomllib gives it back."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return None
