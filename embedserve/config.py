"""models.toml + environment + flags -> frozen Settings and ModelSpec; all validation of them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from embedserve.errors import Exit, StartupError

ENVIRONMENT_PREFIX = "EMBEDSERVE_"
FINISHING_STEPS = ("layer_norm", "normalize")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REVISION = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _setting(default: Any, text: str, check: Callable[[Any], bool], accepted: str) -> Any:
    metadata = {"kind": type(default), "help": text, "check": check, "accepted": accepted}
    return field(default=default, metadata=metadata)


def _between(low: float, high: float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: low <= value <= high), f"{low:g} to {high:g}"


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in choices), f"one of {', '.join(choices)}"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve. Each field is a key of [server], a variable EMBEDSERVE_… and a flag."""

    host: str = _setting("127.0.0.1", "address to listen on", bool, "an address")
    port: int = _setting(5000, "port to listen on; 0 takes a free one", *_between(0, 65535))
    provider: str = _setting("cpu", "execution provider", *_one_of("cpu", "cuda"))
    lanes: int = _setting(
        0, "inference threads; 0: one per core this process may use", *_between(0, 256)
    )
    tokens_per_pass: int = _setting(
        256, "tokens that share a forward pass, padding included", *_between(1, 1_000_000)
    )
    max_wait: float = _setting(
        30.0, "seconds of predicted queue wait past which requests get 429", *_between(0.001, 3600)
    )
    request_timeout: float = _setting(
        60.0, "seconds a request may take; clients may ask for less", *_between(0.001, 3600)
    )
    max_inputs: int = _setting(2048, "texts in one request", *_between(1, 1_000_000))
    max_request_tokens: int = _setting(
        1_000_000, "tokens in one request after truncation", *_between(1, 1_000_000_000)
    )
    max_body_bytes: int = _setting(
        33_554_432, "bytes of a request's body", *_between(1, 2_147_483_647)
    )
    max_body_seconds: float = _setting(
        60.0, "seconds in which a request's body must arrive", *_between(0.001, 3600)
    )
    drain_seconds: float = _setting(
        30.0, "seconds for answers in flight after SIGTERM", *_between(0, 3600)
    )
    skip_missing: bool = _setting(
        False, "serve the models that have an artifact instead of refusing", lambda _: True, ""
    )
    log_level: str = _setting(
        "info", "least level to log", *_one_of("debug", "info", "warning", "error")
    )


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel on the package index that carries a model's files."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One table of models.toml: where a model comes from, and what the operator wishes.

    `sha256` maps a file of the model to its digest. `finishing`, `matryoshka` and `prompts` say
    what the model's card says and its files do not; None: the files say it.
    """

    name: str
    repository: str | None = None
    revision: str | None = None
    package: Package | None = None
    sha256: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    finishing: tuple[str, ...] | None = None
    matryoshka: tuple[int, ...] | None = None
    prompts: Mapping[str, str] | None = None
    accept_token_ids: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """What models.toml says: the [server] table as given, and the models in its order."""

    server: Mapping[str, Any]
    models: Mapping[str, ModelSpec]


def read(path: Path) -> Config:
    """Read and validate models.toml. StartupError names file, table and key."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StartupError(f"{path}: no such file; name it with --models", Exit.NOINPUT) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartupError(f"{path}: cannot be read as TOML: {error}") from error
    _refuse_unknown(document, ("server", "models"), str(path), "")
    server = _table(document.get("server", {}), f"{path}: [server]")
    tables = _table(document.get("models", {}), f"{path}: [models]")
    models = {name: _model(name, table, path) for name, table in tables.items()}
    if not models:
        raise StartupError(f"{path}: no [models.NAME] table; at least one model is needed")
    return Config(server=server, models=MappingProxyType(models))


def settings(
    config: Config, environment: Mapping[str, str], flags: Mapping[str, str], path: Path
) -> Settings:
    """Merge default < [server] < environment < flags; an unknown or unusable key is an error."""
    known = {f.name: f for f in fields(Settings)}
    _refuse_unknown(config.server, known, f"{path}: [server]", " ")
    values = {
        name: _typed(known[name], value, f"{path}: [server] {name}")
        for name, value in config.server.items()
    }
    for variable, text in sorted(environment.items()):
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if not variable.startswith(ENVIRONMENT_PREFIX) or name in PATHS:
            continue
        if name not in known:
            accepted = ", ".join(ENVIRONMENT_PREFIX + n.upper() for n in (*PATHS, *known))
            raise StartupError(f"environment: {variable} is no setting; known: {accepted}")
        values[name] = _parsed(known[name], text, variable)
    for name, text in flags.items():
        values[name] = _parsed(known[name], text, "--" + name.replace("_", "-"))
    return Settings(**values)


# The two paths are found before models.toml can be read: flags and environment only.
PATHS: Mapping[str, str] = {"models": "models.toml", "artifacts": "artifacts"}


def _parsed(setting: Field[Any], text: str, where: str) -> Any:
    """Convert a flag's or a variable's text to the setting's type."""
    kind = setting.metadata["kind"]
    if kind is bool:
        choices = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in choices:
            raise StartupError(f'{where} = "{text}"; true or false', Exit.CONFIG)
        return choices[text.lower()]
    try:
        value = kind(text)
    except ValueError:
        raise StartupError(f'{where} = "{text}"; {_accepted(setting)}') from None
    return _typed(setting, value, where)


def _typed(setting: Field[Any], value: Any, where: str) -> Any:
    kind = setting.metadata["kind"]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or not setting.metadata["check"](value):
        raise StartupError(f"{where} = {_shown(value)}; {_accepted(setting)}")
    return value


def _accepted(setting: Field[Any]) -> str:
    kind = setting.metadata["kind"]
    names = {int: "an integer", float: "a number", bool: "true or false", str: ""}
    return " ".join(part for part in (names[kind], setting.metadata["accepted"]) if part)


def _model(name: str, table: Any, path: Path) -> ModelSpec:
    where = f"{path}: [models.{name}]"
    table = _table(table, where)
    if not _NAME.fullmatch(name):
        raise StartupError(f"{where}: a name is 1 to 128 letters, digits, '.', '_' and '-'")
    known = [f.name for f in fields(ModelSpec) if f.name != "name"]
    _refuse_unknown(table, known, where, " ")
    spec = ModelSpec(name=name, **{key: _MODEL_KEYS[key](v, where) for key, v in table.items()})
    if (spec.repository is None) != (spec.revision is None):
        raise StartupError(f"{where}: repository and revision go together; one of them is missing")
    return spec


def _string(key: str, pattern: re.Pattern[str], accepted: str) -> Callable[[Any, str], str]:
    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise StartupError(f"{where} {key} = {_shown(value)}; {accepted}")
        return value

    return check


def _package(value: Any, where: str) -> Package:
    table = _table(value, f"{where} package")
    keys = [f.name for f in fields(Package)]
    _refuse_unknown(table, keys, f"{where} package", " ")
    for key in keys:
        if not isinstance(table.get(key), str):
            raise StartupError(f"{where} package.{key} = {_shown(table.get(key))}; a string")
    _digest("package.sha256", table["sha256"], where)
    return Package(**table)


def _digests(value: Any, where: str) -> Mapping[str, str]:
    table = _table(value, f"{where} sha256")
    for name, digest in table.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise StartupError(f'{where} sha256."{name}"; a path inside the model')
        _digest(f'sha256."{name}"', digest, where)
    return MappingProxyType(dict(table))


def _digest(key: str, value: Any, where: str) -> None:
    _string(key, _SHA256, "64 hexadecimal digits, lower case")(value, where)


def _finishing(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or any(step not in FINISHING_STEPS for step in value):
        accepted = ", ".join(FINISHING_STEPS)
        raise StartupError(f"{where} finishing = {_shown(value)}; a list of {accepted}")
    return tuple(value)


def _matryoshka(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or any(type(v) is not int or v < 1 for v in value):
        raise StartupError(f"{where} matryoshka = {_shown(value)}; a list of dimensions from 1")
    return tuple(sorted(value, reverse=True))


def _prompts(value: Any, where: str) -> Mapping[str, str]:
    table = _table(value, f"{where} prompts")
    for name, prompt in table.items():
        if not isinstance(prompt, str):
            raise StartupError(f"{where} prompts.{name} = {_shown(prompt)}; a string")
    return MappingProxyType(dict(table))


def _boolean(value: Any, where: str) -> bool:
    if type(value) is not bool:
        raise StartupError(f"{where} accept_token_ids = {_shown(value)}; true or false")
    return value


_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_MODEL_KEYS: Mapping[str, Callable[[Any, str], Any]] = {
    "repository": _string("repository", _REPOSITORY, "owner/name"),
    "revision": _string("revision", _REVISION, "a commit of 40 hexadecimal digits, no branch"),
    "package": _package,
    "sha256": _digests,
    "finishing": _finishing,
    "matryoshka": _matryoshka,
    "prompts": _prompts,
    "accept_token_ids": _boolean,
}


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StartupError(f"{where} = {_shown(value)}; a table")
    return value


def _refuse_unknown(
    table: Mapping[str, Any], known: Iterable[str], where: str, separator: str
) -> None:
    for key in table:
        if key not in known:
            accepted = ", ".join(known)
            raise StartupError(f"{where}{separator or ': '}{key}: unknown key; known: {accepted}")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
