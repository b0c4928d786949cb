"""The front as a Ray Serve deployment, and pools that are handles of others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.types import ASGIApp

from embedserve import logs
from embedserve.cluster.exchange import Answer, Request
from embedserve.cluster.front import PROBE_SECONDS, Directory, LostError, create_app
from embedserve.errors import RequestError
from embedserve.keys import Keys
from embedserve.metrics import Metrics
from embedserve.settings import Settings


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
        """As Pool says."""
        response = self.handle.answer.remote(request)
        try:
            answer: Answer = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except DeploymentUnavailableError as error:
            message = f"no replica of {self.name} can be started"
            raise RequestError("not_ready", message, headers={"Retry-After": "5"}) from error
        except RayTaskError:
            raise  # raised by our own code in the replica
        except (RayActorError, TaskCancelledError) as error:
            raise LostError from error
        return answer

    async def metrics(self) -> Mapping[str, bytes]:
        """As Scraped says: of those that answer in time."""
        scrapes = await self.handle.broadcast("metrics").results_async(
            timeout_s=PROBE_SECONDS, return_exceptions=True
        )
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
        self._metrics = Metrics()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._settings, self._directory, self._keys, self._metrics)

    async def metrics(self) -> tuple[str, bytes]:
        """Return this process's name and metrics."""
        return scrape(self._metrics)

    async def reconfigure(self, user_config: object) -> None:
        """Called by Ray at start, and when `user_config` of the configuration file changes."""
        self._keys.reload()
