"""build(args): models.toml and artifacts -> the Ray Serve application of deploy/ray/serve.yaml."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import serve

from embedserve import artifact
from embedserve.cluster.front_deployment import Ingress
from embedserve.cluster.replica import Replica, Served
from embedserve.config import models_toml
from embedserve.config.api_keys import VARIABLE as KEYS
from embedserve.config.models_toml import Config, refuse_unknown, shown
from embedserve.config.settings import PATHS, Settings, merge
from embedserve.errors import StartupError
from embedserve.model import loading

FRONT = "front"
# Ray counts a request until its answer is sent. embedserve's own queue refuses requests, by
# predicted wait and by bytes, and says when to retry. This limit is only an upper bound.
MOST_REQUESTS = 1000


@dataclass(frozen=True, slots=True)
class Arguments:
    """What `args` of the configuration file says.

    `settings` are keys of [server]; they override models.toml and environment variables.
    """

    models: str
    artifacts: str
    model: tuple[str, ...]
    settings: Mapping[str, Any]


def build(args: dict[str, Any]) -> serve.Application:
    """Build the application; a Ray Serve configuration names this in `import_path`.

    StartupError if `args`, models.toml or the settings are wrong, or an artifact is missing.
    """
    arguments = _arguments(args)
    path, artifacts = Path(arguments.models), Path(arguments.artifacts)
    configuration = models_toml.read(path)
    settings = _settings(configuration, arguments, path)
    specs = loading.choose(configuration.models, arguments.model, artifacts, settings.skip_missing)
    models = [spec.name for spec in specs]
    aliases = [a for a in configuration.aliases.values() if a.model in models]
    names = [*models, *(alias.name for alias in aliases)]
    if FRONT in models:
        raise StartupError(f"{path}: [models.{FRONT}]: another deployment has this name")
    pools = {}
    for spec in specs:
        served = Served(spec, [a for a in aliases if a.model == spec.name], names)
        deployment = _deployment(
            Replica, spec.name, settings, max(1, settings.lanes), int(settings.provider == "cuda")
        )
        pools[spec.name] = deployment.bind(served, arguments.artifacts, settings)
    owners = {spec.name: artifact.read(artifacts / spec.name).owner for spec in specs}
    owners |= {alias.name: owners[alias.model] for alias in aliases}
    of = {alias.name: alias.model for alias in aliases}
    front = _deployment(serve.ingress()(Ingress), FRONT, settings, 0.5)
    return front.bind(settings, names, models, owners, of, pools)


def _deployment(
    cls: type, name: str, settings: Settings, cores: float, gpus: int = 0
) -> serve.Deployment:
    """Return a deployment with defaults, which the configuration file may override by name."""
    return serve.deployment(cls).options(
        name=name,
        max_ongoing_requests=MOST_REQUESTS,
        ray_actor_options={"num_cpus": cores, "num_gpus": gpus},
        # When code or args change, new replicas are ready before old ones stop.
        max_surge_percent=100,
        # A replica that stops gets no new requests, and answers those that it has.
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        health_check_period_s=2.0,
    )


def _arguments(args: Mapping[str, Any]) -> Arguments:
    where = "args of the Ray Serve application:"
    refuse_unknown(args, ("models", "artifacts", "model", "settings"), where, " ")
    paths = {name: args.get(name, default) for name, default in PATHS.items()}
    model, settings = args.get("model", []), args.get("settings", {})
    if not all(isinstance(path, str) for path in paths.values()):
        raise StartupError(f"{where} models and artifacts must be paths")
    if not isinstance(model, list) or not all(isinstance(name, str) for name in model):
        raise StartupError(f"{where} model = {shown(model)}; a list of model names")
    if not isinstance(settings, Mapping):
        raise StartupError(f"{where} settings = {shown(settings)}; a table")
    return Arguments(paths["models"], paths["artifacts"], tuple(model), settings)


def _settings(configuration: Config, arguments: Arguments, path: Path) -> Settings:
    """Merge [server] < environment < `settings`."""
    if KEYS in os.environ:
        raise StartupError(
            f"{KEYS}: Ray shows environment variables to everyone; use api_keys_file"
        )
    merged = merge(configuration, os.environ, {}, path)
    given = merge(replace(configuration, server=arguments.settings), {}, {}, Path("args"))
    settings = replace(merged, **{name: getattr(given, name) for name in arguments.settings})
    if settings.tracing:
        raise StartupError("tracing = true; not supported with Ray Serve")
    return settings
