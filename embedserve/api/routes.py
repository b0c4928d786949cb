"""The one table of routes, over whatever answers them: a server, or the front of a Ray cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from embedserve.api import pages

EMBEDDINGS = ("/v1/embeddings", "/openai/v1/embeddings")
Handler = Callable[[Request], Awaitable[Response]]


class Endpoints(Protocol):
    """What answers. Those that read a body or ask another process are ASGI applications."""

    @property
    def embeddings(self) -> ASGIApp: ...
    @property
    def tokenize(self) -> ASGIApp: ...
    @property
    def get_model(self) -> Handler | ASGIApp: ...
    @property
    def list_models(self) -> Handler: ...
    @property
    def list_models_openai(self) -> Handler: ...
    @property
    def get_metrics(self) -> Handler: ...
    @property
    def live(self) -> Handler: ...
    @property
    def ready(self) -> Handler: ...


def routes(endpoints: Endpoints, max_inputs: int) -> list[Route]:
    """Every route. The two surfaces over the same models differ in GET models alone."""
    return [
        *(Route(path, endpoints.embeddings, methods=["POST"]) for path in EMBEDDINGS),
        Route("/v1/models", endpoints.list_models),
        Route("/openai/v1/models", endpoints.list_models_openai),
        Route("/v1/models/{name}", endpoints.get_model, methods=["GET"]),
        Route("/openai/v1/models/{name}", endpoints.get_model, methods=["GET"]),
        Route("/v1/tokenize", endpoints.tokenize, methods=["POST"]),
        Route("/metrics", endpoints.get_metrics),
        Route("/livez", endpoints.live),
        Route("/readyz", endpoints.ready),
        Route("/health", endpoints.ready),
        *pages.routes(max_inputs),
    ]
