"""models.toml -> frozen ModelSpec and Alias, with all validation."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from embedserve.errors import Exit, StartupError
from embedserve.system import regular_file

FINISHING_STEPS = ("layer_norm", "normalize")
PRECISIONS = ("fp32", "fp16", "int8")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REVISION = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = "64 hexadecimal digits, lower case"
# Names as in PyPA's core metadata; versions as in PEP 440 that begin with a digit.
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_VERSION = re.compile(r"[0-9](?:[A-Za-z0-9.!+_-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel on the package index that carries a model's files, or one part of them."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One table of models.toml: where a model comes from, and what the operator wishes.

    `package`: one wheel with the files, or several with the parts of one archive, in order.
    `sha256` maps a file of the model to its digest. `finishing`, `matryoshka` and `prompts` state
    what the model's card says and its files do not; None if the files say it. `max_tokens` is a
    limit below the one in the files. `agreement` is the least agreement@10 of a precision whose
    loss is certified. `task` chooses one of the tasks that the model was trained for. `optional`:
    exported only by name, and served if it has an artifact.
    """

    name: str
    repository: str | None = None
    revision: str | None = None
    package: tuple[Package, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    finishing: tuple[str, ...] | None = None
    matryoshka: tuple[int, ...] | None = None
    prompts: Mapping[str, str] | None = None
    precision: str = "fp32"
    agreement: float | None = None
    max_tokens: int | None = None
    task: str | None = None
    optional: bool = False
    accept_token_ids: bool = False


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name for a model, with fixed prompt and dimensions for clients that send neither."""

    name: str
    model: str
    prompt_name: str | None = None
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """What models.toml says: the [server] table as given, models and aliases in file order."""

    server: Mapping[str, Any]
    models: Mapping[str, ModelSpec]
    aliases: Mapping[str, Alias]


def read(path: Path) -> Config:
    """Read and validate models.toml. StartupError names file, table and key."""
    try:
        document = tomllib.loads(regular_file.read_text(path))
    except FileNotFoundError:
        raise StartupError(f"{path}: no such file; name it with --models", Exit.NOINPUT) from None
    except (OSError, ValueError, RecursionError) as error:
        raise StartupError(f"{path}: cannot be read as TOML: {error}") from error
    refuse_unknown(document, ("server", "models", "aliases"), str(path), "")
    server = _table(document.get("server", {}), f"{path}: [server]")
    tables = _table(document.get("models", {}), f"{path}: [models]")
    models = {name: _model(name, table, path) for name, table in tables.items()}
    if not models:
        raise StartupError(f"{path}: no [models.NAME] table; at least one model is needed")
    tables = _table(document.get("aliases", {}), f"{path}: [aliases]")
    aliases = {name: _alias(name, table, models, path) for name, table in tables.items()}
    return Config(server, MappingProxyType(models), MappingProxyType(aliases))


def _model(name: str, table: Any, path: Path) -> ModelSpec:
    where = f"{path}: [models.{name}]"
    table = _table(table, where)
    if not _NAME.fullmatch(name):
        raise StartupError(f"{where}: a name is 1 to 128 letters, digits, '.', '_' and '-'")
    known = [f.name for f in fields(ModelSpec) if f.name != "name"]
    refuse_unknown(table, known, where, " ")
    spec = ModelSpec(name=name, **{key: _MODEL_KEYS[key](v, where) for key, v in table.items()})
    if (spec.repository is None) != (spec.revision is None):
        raise StartupError(f"{where}: repository and revision go together; one of them is missing")
    return spec


def _alias(name: str, table: Any, models: Mapping[str, ModelSpec], path: Path) -> Alias:
    where = f"{path}: [aliases.{name}]"
    table = _table(table, where)
    refuse_unknown(table, ("model", "prompt_name", "dimensions"), where, " ")
    if name in models or not _NAME.fullmatch(name):
        raise StartupError(f"{where}: must be a valid model name that no model uses")
    if not isinstance(table.get("model"), str) or table["model"] not in models:
        found = shown(table.get("model"))
        raise StartupError(f"{where} model = {found}; one of {', '.join(models)}")
    prompt_name, dimensions = table.get("prompt_name"), table.get("dimensions")
    if prompt_name is not None and not isinstance(prompt_name, str):
        raise StartupError(f"{where} prompt_name = {shown(prompt_name)}; a string")
    if dimensions is not None:
        _positive("dimensions")(dimensions, where)
    return Alias(name, table["model"], prompt_name, dimensions)


def _string(key: str, pattern: re.Pattern[str], accepted: str) -> Callable[[Any, str], str]:
    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise StartupError(f"{where} {key} = {shown(value)}; {accepted}")
        return value

    return check


def _packages(value: Any, where: str) -> tuple[Package, ...]:
    """One table, or several as [[models.NAME.package]]."""
    entries = value if isinstance(value, list) else [value]
    packages = tuple(_package(entry, where) for entry in entries)
    if len({package.name for package in packages}) != len(packages) or not packages:
        found = ", ".join(package.name for package in packages) or "none"
        raise StartupError(f"{where} package names {found}; name at least one wheel, and each once")
    return packages


def _package(value: Any, where: str) -> Package:
    table = _table(value, f"{where} package")
    keys = [f.name for f in fields(Package)]
    refuse_unknown(table, keys, f"{where} package", " ")
    # pip gets these, so accept nothing that it would read as an option, a URL or a file.
    checks = {
        "name": (_PACKAGE, "a string of letters, digits, '.', '_' and '-'"),
        "version": (_VERSION, "a string with one version, such as 1.0.2"),
        "sha256": (_SHA256, _DIGEST),
    }
    for key, (pattern, accepted) in checks.items():
        _string(f"package.{key}", pattern, accepted)(table.get(key), where)
    return Package(**table)


def _digests(value: Any, where: str) -> Mapping[str, str]:
    table = _table(value, f"{where} sha256")
    for name, digest in table.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise StartupError(f'{where} sha256."{name}"; a path inside the model')
        _digest(f'sha256."{name}"', digest, where)
    return MappingProxyType(dict(table))


def _digest(key: str, value: Any, where: str) -> None:
    _string(key, _SHA256, _DIGEST)(value, where)


def _finishing(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or any(step not in FINISHING_STEPS for step in value):
        accepted = ", ".join(FINISHING_STEPS)
        raise StartupError(f"{where} finishing = {shown(value)}; a list of {accepted}")
    return tuple(value)


def _matryoshka(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or any(type(v) is not int or v < 1 for v in value):
        raise StartupError(f"{where} matryoshka = {shown(value)}; a list of dimensions from 1")
    return tuple(sorted(value, reverse=True))


def _prompts(value: Any, where: str) -> Mapping[str, str]:
    table = _table(value, f"{where} prompts")
    for name, prompt in table.items():
        if not isinstance(prompt, str):
            raise StartupError(f"{where} prompts.{name} = {shown(prompt)}; a string")
    return MappingProxyType(dict(table))


def _boolean(key: str) -> Callable[[Any, str], bool]:
    def check(value: Any, where: str) -> bool:
        if type(value) is not bool:
            raise StartupError(f"{where} {key} = {shown(value)}; true or false")
        return value

    return check


def _fraction(key: str) -> Callable[[Any, str], float]:
    def check(value: Any, where: str) -> float:
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise StartupError(f"{where} {key} = {shown(value)}; a number from 0 to 1")
        return float(value)

    return check


def _positive(key: str) -> Callable[[Any, str], int]:
    def check(value: Any, where: str) -> int:
        if type(value) is not int or value < 1:
            raise StartupError(f"{where} {key} = {shown(value)}; an integer from 1")
        return value

    return check


_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_MODEL_KEYS: Mapping[str, Callable[[Any, str], Any]] = {
    "repository": _string("repository", _REPOSITORY, "owner/name"),
    "revision": _string("revision", _REVISION, "a commit of 40 hexadecimal digits, not a branch"),
    "package": _packages,
    "sha256": _digests,
    "finishing": _finishing,
    "matryoshka": _matryoshka,
    "prompts": _prompts,
    "precision": _string("precision", re.compile("|".join(PRECISIONS)), " or ".join(PRECISIONS)),
    "agreement": _fraction("agreement"),
    "max_tokens": _positive("max_tokens"),
    "task": _string("task", _TASK, "a name of 1 to 64 letters, digits, '.', '_' and '-'"),
    "optional": _boolean("optional"),
    "accept_token_ids": _boolean("accept_token_ids"),
}


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StartupError(f"{where} = {shown(value)}; a table")
    return value


def refuse_unknown(
    table: Mapping[str, Any], known: Iterable[str], where: str, separator: str
) -> None:
    """Raise StartupError for the first unknown key of `table`."""
    for key in table:
        if key not in known:
            accepted = ", ".join(known)
            raise StartupError(f"{where}{separator or ': '}{key}: unknown key; known: {accepted}")


def shown(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
