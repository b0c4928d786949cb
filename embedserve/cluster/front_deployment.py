"""The front as a Ray Serve deployment, and pools over the handles of other deployments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)
from starlette.types import ASGIApp

from embedserve import logs
from embedserve.cluster.exchange import Answer, Request
from embedserve.cluster.front import PROBE_SECONDS, Directory, LostError, create_app
from embedserve.config.api_keys import Keys
from embedserve.config.settings import Settings
from embedserve.errors import RequestError
from embedserve.metrics import Metrics
from embedserve.system import process

log = logging.getLogger(__name__)


def scrape(metrics: Metrics) -> tuple[str, bytes]:
    """Return the name of the replica that calls this, and its metrics."""
    context = serve.get_replica_context()
    return f"{context.deployment}#{context.replica_tag}", metrics.render()


@dataclass(frozen=True, slots=True)
class Replicas:
    """The replicas behind the handle of a deployment: a Pool."""

    name: str
    handle: Any  # ray.serve.handle.DeploymentHandle

    async def ask(self, request: Request) -> Answer:
        """See Pool."""
        response = self.handle.answer.remote(request)
        task = asyncio.current_task()
        assert task is not None
        try:
            answer: Answer = await response
        except asyncio.CancelledError as error:
            if not task.cancelling():  # the replica's call was cancelled, not this one
                raise LostError from error
            response.cancel()
            raise
        except DeploymentUnavailableError as error:
            message = f"no replica of {self.name} can be started"
            raise RequestError("not_ready", message, headers={"Retry-After": "5"}) from error
        except BackPressureError as error:  # max_queued_requests of the deployment
            message = f"too many requests wait for {self.name}"
            raise RequestError("queue_full", message, headers={"Retry-After": "1"}) from error
        except RayTaskError:
            raise  # raised by our own code in the replica
        except RayError as error:
            raise LostError from error
        return answer

    async def metrics(self) -> Mapping[str, bytes]:
        """See Scraped. Empty unless all answer in time."""
        try:
            scrapes = await self.handle.broadcast("metrics").results_async(
                timeout_s=PROBE_SECONDS, return_exceptions=True
            )
        except (TimeoutError, RayServeException, RayError) as error:
            log.warning("no metrics of %s: %r", self.name, error)
            return {}
        return dict(scrape for scrape in scrapes if isinstance(scrape, tuple))


class Ingress:
    """One replica of the front; `serve.ingress` makes it the application's ingress."""

    def __init__(
        self,
        settings: Settings,
        names: Sequence[str],
        models: Sequence[str],
        owners: Mapping[str, str],
        aliases: Mapping[str, str],
        handles: Mapping[str, Any],
    ) -> None:
        process.prepare()
        logs.configure(settings)
        context = serve.get_replica_context()
        fronts = Replicas(
            context.deployment,
            serve.get_deployment_handle(context.deployment, context.app_name),
        )
        replicas = {name: Replicas(name, handle) for name, handle in handles.items()}
        pools = replicas | {alias: replicas[model] for alias, model in aliases.items()}
        self._settings = settings
        self._directory = Directory(names, models, owners, pools, [fronts, *replicas.values()])
        self._keys = Keys(Path(settings.api_keys_file) if settings.api_keys_file else None)
        if not self._keys:
            log.warning(
                "ANYONE WHO REACHES RAY'S PROXIES CAN USE THIS SERVICE: no API keys are set "
                "(api_keys_file)"
            )
        self._metrics = Metrics()
        process.settle()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._settings, self._directory, self._keys, self._metrics)

    async def metrics(self) -> tuple[str, bytes]:
        """Return this process's name and metrics."""
        return scrape(self._metrics)

    async def reconfigure(self, user_config: object) -> None:
        """Reload the keys. Ray calls this at start and on changes, if there is a `user_config`."""
        self._keys.reload()
