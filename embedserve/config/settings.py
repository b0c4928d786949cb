"""[server] of models.toml + environment + flags -> frozen Settings, with all validation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from embedserve.config.api_keys import VARIABLE as KEYS
from embedserve.config.models_toml import Config, refuse_unknown, shown
from embedserve.errors import Exit, StartupError

ENVIRONMENT_PREFIX = "EMBEDSERVE_"
_LARGE = 2**53  # integers up to here are exact as floats
# These two paths are needed before models.toml is read: only flags and environment set them.
PATHS: Mapping[str, str] = {"models": "models.toml", "artifacts": "artifacts"}


def _setting(default: Any, text: str, check: Callable[[Any], bool], accepted: str) -> Any:
    metadata = {"kind": type(default), "help": text, "check": check, "accepted": accepted}
    return field(default=default, metadata=metadata)


def _any(value: Any) -> bool:
    return True


def _between(low: float, high: float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: low <= value <= high), f"{low:.12g} to {high:.12g}"


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in choices), f"one of {', '.join(choices)}"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve. Each field is a key of [server], a variable EMBEDSERVE_… and a flag."""

    host: str = _setting("127.0.0.1", "address to listen on", bool, "an address")
    port: int = _setting(5000, "port to listen on; 0 takes a free one", *_between(0, 65535))
    provider: str = _setting("cpu", "execution provider", *_one_of("cpu", "cuda"))
    processes: int = _setting(
        1, "serving processes on the port, which share out the cores", *_between(1, 256)
    )
    lanes: int = _setting(
        0,
        "inference threads; 0: one per core that affinity and quota allow, or two for cuda",
        *_between(0, 256),
    )
    tokens_per_pass: int = _setting(
        0,
        "tokens that share a forward pass, including padding; 0: 256 for cpu, 16384 for cuda",
        *_between(0, 1_000_000),
    )
    cache_mb: int = _setting(
        0, "megabytes of computed vectors to cache; 0: no cache", *_between(0, 1_000_000)
    )
    max_wait: float = _setting(
        30.0, "seconds of predicted queue wait past which requests get 429", *_between(0.001, 3600)
    )
    request_timeout: float = _setting(
        600.0, "seconds a request may take; clients may ask for less", *_between(0.001, 3600)
    )
    max_inputs: int = _setting(2048, "most texts in one request", *_between(1, 1_000_000))
    max_request_tokens: int = _setting(
        1_000_000, "most tokens in one request, after truncation", *_between(1, 1_000_000_000)
    )
    max_body_bytes: int = _setting(
        33_554_432, "most bytes in a request's body", *_between(1, 2_147_483_647)
    )
    max_body_seconds: float = _setting(
        60.0, "seconds in which a request's body must arrive", *_between(0.001, 3600)
    )
    max_pending_mb: int = _setting(
        256,
        "megabytes that all requests in flight may hold, past which a new one gets 429",
        *_between(1, 1_000_000),
    )
    max_connections: int = _setting(
        10_000, "open connections past which a new one gets 503", *_between(1, 1_000_000)
    )
    drain_seconds: float = _setting(
        30.0, "seconds to finish answers in flight after SIGTERM", *_between(0, 3600)
    )
    skip_missing: bool = _setting(
        False, "skip models without an artifact instead of refusing to start", _any, ""
    )
    api_keys_file: str = _setting(
        "", "file of API keys, read again on SIGHUP; empty: no file", _any, "a path"
    )
    open_metrics: bool = _setting(
        False, "serve /metrics without a key even if keys are set", _any, ""
    )
    cors_origins: tuple[str, ...] = _setting(
        (), "origins whose pages may call this server; * for all", all, "origins"
    )
    tracing: bool = _setting(
        False, "send spans to an OpenTelemetry collector (docs/tracing.md)", _any, ""
    )
    server_timing: bool = _setting(
        True, "send Server-Timing: milliseconds of tokenizing, waiting and inference", _any, ""
    )
    access_log: bool = _setting(True, "log one line per request", _any, "")
    log_format: str = _setting("text", "format of log lines", *_one_of("text", "json"))
    log_level: str = _setting(
        "info", "lowest level to log", *_one_of("debug", "info", "warning", "error")
    )


def merge(
    config: Config, environment: Mapping[str, str], flags: Mapping[str, str], path: Path
) -> Settings:
    """Merge default < [server] < environment < flags.

    StartupError for an unknown key or a value that is not accepted.
    """
    known = {f.name: f for f in fields(Settings)}
    refuse_unknown(config.server, known, f"{path}: [server]", " ")
    values = {
        name: _typed(known[name], value, f"{path}: [server] {name}")
        for name, value in config.server.items()
    }
    for variable, text in sorted(environment.items()):
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if not variable.startswith(ENVIRONMENT_PREFIX) or name in PATHS or variable == KEYS:
            continue
        if name not in known:
            names = ", ".join(ENVIRONMENT_PREFIX + n.upper() for n in (*PATHS, *known))
            raise StartupError(f"environment: {variable} is not a setting; known: {names}")
        values[name] = _parsed(known[name], text, variable)
    for name, text in flags.items():
        values[name] = _parsed(known[name], text, "--" + name.replace("_", "-"))
    return Settings(**values)


def origin(
    name: str, config: Config, environment: Mapping[str, str], flags: Mapping[str, str]
) -> str:
    """Say where a setting's value comes from: its flag, its variable, [server] or default."""
    variable = ENVIRONMENT_PREFIX + name.upper()
    places = {
        "--" + name.replace("_", "-"): name in flags,
        variable: variable in environment,
        "[server]": name in config.server,
    }
    return next((place for place, here in places.items() if here), "default")


def _parsed(setting: Field[Any], text: str, where: str) -> Any:
    """Convert a flag's or a variable's text to the setting's type."""
    kind = setting.metadata["kind"]
    if kind is bool:
        choices = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in choices:
            raise StartupError(f'{where} = "{text}"; true or false', Exit.CONFIG)
        return choices[text.lower()]
    if kind is tuple:
        return _typed(setting, [part for part in re.split(r"[,\s]+", text) if part], where)
    try:
        value = kind(text)
    except ValueError:
        raise StartupError(f'{where} = "{text}"; {accepted(setting)}') from None
    return _typed(setting, value, where)


def _typed(setting: Field[Any], value: Any, where: str) -> Any:
    kind = setting.metadata["kind"]
    if kind is float and type(value) is int and abs(value) < _LARGE:
        value = float(value)
    if kind is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = tuple(value)
    if type(value) is not kind or not setting.metadata["check"](value):
        raise StartupError(f"{where} = {shown(value)}; {accepted(setting)}")
    return value


def accepted(setting: Field[Any]) -> str:
    """Describe the values that a setting accepts."""
    kind = setting.metadata["kind"]
    names = {int: "an integer", float: "a number", bool: "true or false", tuple: "a list of"}
    return " ".join(part for part in (names.get(kind, ""), setting.metadata["accepted"]) if part)
