"""catalogue.toml: what the cards of well-known models say and their files do not, by hub id."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from embedserve.config.models_toml import FINISHING_STEPS, refuse_unknown, shown
from embedserve.errors import StartupError

T = TypeVar("T")

PATH = Path(__file__).with_name("catalogue.toml")

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SHAPE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_PAGE = re.compile(r"https://\S+")


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model: its shape (the kind of its files), and what its card says beyond them.

    `page` is the source of the facts; `read` says whether its text was seen when the entry was
    written. `tasks` are the tasks that a user must choose one of. None: the card adds nothing.
    `note` says what is not confirmed, and what a reader must know.
    """

    shape: str
    page: str
    read: bool
    prompts: Mapping[str, str] | None = None
    matryoshka: tuple[int, ...] | None = None
    finishing: tuple[str, ...] | None = None
    max_tokens: int | None = None
    tasks: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Entries by hub id, and the reasons why some models are known not to work."""

    models: Mapping[str, CatalogueEntry] = field(default_factory=lambda: MappingProxyType({}))
    refused: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def entry(self, repository: str) -> CatalogueEntry | None:
        """The entry of a hub id. Like the hub, ignores upper and lower case."""
        return _find(self.models, repository)

    def reason(self, repository: str) -> str | None:
        """Why a model is known not to work, or None."""
        return _find(self.refused, repository)


def _find(table: Mapping[str, T], repository: str) -> T | None:
    wanted = repository.lower()
    return next((value for name, value in table.items() if name.lower() == wanted), None)


def read(path: Path = PATH) -> Catalogue:
    """Read and validate the catalogue. StartupError (78) names file, table and key."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartupError(f"{path}: cannot be read as TOML: {error}") from error
    refuse_unknown(document, ("models", "refused"), str(path), "")
    models = _tables(document, "models", path)
    refused = _tables(document, "refused", path)
    catalogue = Catalogue(
        MappingProxyType({name: _entry(name, table, path) for name, table in models.items()}),
        MappingProxyType({name: _reason(name, table, path) for name, table in refused.items()}),
    )
    for name in models:
        if catalogue.reason(name) is not None:
            raise StartupError(f"{path}: [models.{name}] is in [refused] as well; remove one")
    return catalogue


def _tables(document: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    tables = document.get(key, {})
    if not isinstance(tables, dict):
        raise StartupError(f"{path}: {key} = {shown(tables)}; tables by hub id")
    seen: set[str] = set()
    for name, table in tables.items():
        if not _ID.fullmatch(name):
            raise StartupError(f"{path}: [{key}.{name}]; a hub id is OWNER/NAME")
        if not isinstance(table, dict):
            raise StartupError(f"{path}: [{key}.{name}] = {shown(table)}; a table")
        if name.lower() in seen:
            raise StartupError(f"{path}: [{key}.{name}] is there twice; the hub ignores case")
        seen.add(name.lower())
    return tables


def _entry(name: str, table: Mapping[str, Any], path: Path) -> CatalogueEntry:
    where = f"{path}: [models.{name}]"
    refuse_unknown(table, _KEYS, where, " ")
    for key in ("shape", "page", "read"):
        if key not in table:
            raise StartupError(f"{where} {key} is missing; {_KEYS[key].accepted}")
    return CatalogueEntry(**{key: _value(key, value, where) for key, value in table.items()})


def _reason(name: str, table: Mapping[str, Any], path: Path) -> str:
    where = f"{path}: [refused.{name}]"
    refuse_unknown(table, ("reason",), where, " ")
    reason = table.get("reason")
    if not isinstance(reason, str) or not reason:
        raise StartupError(f"{where} reason = {shown(reason)}; a sentence")
    return reason


@dataclass(frozen=True, slots=True)
class _Key:
    """What one key of an entry accepts, in words and as a check, and how it is stored."""

    accepted: str
    accepts: Callable[[Any], bool]
    keep: Callable[[Any], Any] = lambda value: value


def _value(key: str, value: Any, where: str) -> Any:
    if not _KEYS[key].accepts(value):
        raise StartupError(f"{where} {key} = {shown(value)}; {_KEYS[key].accepted}")
    return _KEYS[key].keep(value)


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(accepts, value))


def _descending(value: Any) -> bool:
    distinct = _list_of(_count)(value) and len(set(value)) == len(value)
    return distinct and value == sorted(value, reverse=True)


def _prompts(value: Any) -> bool:
    return (
        isinstance(value, dict) and bool(value) and all(isinstance(v, str) for v in value.values())
    )


def _step(value: Any) -> bool:
    return value in FINISHING_STEPS


_KEYS: Mapping[str, _Key] = {
    "shape": _Key("lower-case words with '-'", _matches(_SHAPE)),
    "page": _Key("an https address", _matches(_PAGE)),
    "read": _Key("true or false", lambda value: type(value) is bool),
    "prompts": _Key("a table of strings", _prompts, lambda value: MappingProxyType(dict(value))),
    "matryoshka": _Key("dimensions from 1, the largest first", _descending, tuple),
    "finishing": _Key(f"a list of {', '.join(FINISHING_STEPS)}", _list_of(_step), tuple),
    "max_tokens": _Key("an integer from 1", _count),
    "tasks": _Key("a list of names", _list_of(lambda v: isinstance(v, str) and v != ""), tuple),
    "note": _Key("a sentence", lambda value: isinstance(value, str) and value != ""),
}
