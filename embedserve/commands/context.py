"""What commands share: the type Command, paths, models.toml and settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from embedserve.config import models_toml
from embedserve.config.models_toml import Config
from embedserve.config.settings import ENVIRONMENT_PREFIX, PATHS, Settings, merge

NO_OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


class Command(NamedTuple):
    """A command: its function, the settings that it takes as flags (None: all), its own flags.

    `run` returns the exit status; its docstring is the help.
    """

    run: Callable[..., int]
    settings: Sequence[str] | None = None
    options: Mapping[str, Mapping[str, Any]] = NO_OPTIONS


def context(
    models: str | None, artifacts: str | None, flags: Mapping[str, str | None]
) -> tuple[Config, Settings, dict[str, Path]]:
    """Return models.toml, the settings in force and the paths; StartupError when one is wrong."""
    found = paths(models, artifacts)
    configuration = models_toml.read(found["models"])
    settings = merge(configuration, os.environ, given(flags), found["models"])
    return configuration, settings, found


def paths(models: str | None, artifacts: str | None) -> dict[str, Path]:
    """Return the paths of models.toml and the artifacts: from flag, environment or default."""
    flags = {"models": models, "artifacts": artifacts}
    return {
        name: Path(flags[name] or os.environ.get(ENVIRONMENT_PREFIX + name.upper()) or default)
        for name, default in PATHS.items()
    }


def present(configuration: Config, artifacts: Path) -> Iterator[str]:
    """Return the names of the models that have an artifact."""
    from embedserve import artifact

    return (name for name in configuration.models if artifact.exists(artifacts / name))


def given(flags: Mapping[str, str | None]) -> dict[str, str]:
    """Return the flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}
