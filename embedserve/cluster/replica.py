"""One replica of a model: the whole application of a server for this model alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from embedserve import logs
from embedserve.api.app import create_app
from embedserve.cluster import exchange
from embedserve.cluster.exchange import Answer, Request
from embedserve.cluster.front_deployment import scrape
from embedserve.cluster.scaling import PREDICTED_WAIT
from embedserve.config.models_toml import Alias, ModelSpec
from embedserve.config.settings import Settings
from embedserve.errors import RequestError
from embedserve.http.readiness import Readiness
from embedserve.metrics import Metrics
from embedserve.model import loading, providers
from embedserve.model.providers import PROVIDERS
from embedserve.model.registry import ModelRegistry
from embedserve.system import process

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """One model of the cluster, its aliases, and the names of all models and aliases."""

    spec: ModelSpec
    aliases: Sequence[Alias]
    names: Sequence[str]


class Replica:
    """A process with one model. Its methods run on the event loop of the replica.

    The front handles keys, CORS and access lines.
    """

    def __init__(self, served: Served, artifacts: str, settings: Settings) -> None:
        process.prepare()
        settings = replace(settings, access_log=False, cors_origins=(), api_keys_file="")
        logs.configure(settings)
        cores = _cores()
        provider = PROVIDERS[settings.provider]
        model, _ = loading.load_model(
            served.spec,
            Path(artifacts) / served.spec.name,
            settings.provider,
            cores,
            providers.tokenizing(provider, cores),
        )
        # Ray's num_cpus says how many cores a replica has; `lanes` is meant for a whole host.
        on_cores = provider.device is None
        lanes = cores if on_cores else providers.lanes(settings, cores)
        self._readiness, self._metrics = Readiness(), Metrics()
        self._app = create_app(
            settings,
            ModelRegistry([model], served.aliases, served.names),
            lanes,
            readiness=self._readiness,
            metrics=self._metrics,
        )
        log.info("model %s: a replica with %s lanes", served.spec.name, lanes)
        process.settle()

    async def answer(self, request: Request) -> Answer:
        """Answer a whole request. It is cancelled when the client leaves."""
        return await exchange.answer(self._app, request)

    async def metrics(self) -> tuple[str, bytes]:
        """Return this process's name and metrics."""
        return scrape(self._metrics)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what scaling.QueueWait needs; Ray calls this if the deployment scales."""
        return {PREDICTED_WAIT: self._metrics.value("predicted_wait_seconds")}

    async def check_health(self) -> None:
        """Raise RuntimeError if a lane or the device is lost; Ray then starts another replica."""
        try:
            self._readiness.check_live()
        except RequestError as error:
            raise RuntimeError(error.message) from error


def _cores() -> int:
    """Return the cores that Ray gave this replica (`num_cpus` of its deployment), at least one."""
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0)))
