"""The models that are served, by name and by alias: ModelRegistry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import TypeVar

from embedserve.config.models_toml import Alias
from embedserve.errors import RequestError, StartupError
from embedserve.model.encoder import Encoder
from embedserve.model.model import Model
from embedserve.model.request import EmbeddingsRequest, components, prompt

Request = TypeVar("Request", bound=EmbeddingsRequest)


class ModelRegistry:
    """The models that are served, in the order of models.toml, and their aliases after them.

    `names` are those of the whole service, where other processes serve some of its models.
    """

    def __init__(
        self,
        models: Iterable[Model],
        aliases: Iterable[Alias] = (),
        names: Iterable[str] | None = None,
    ) -> None:
        self._models = {model.name: model for model in models}
        self._aliases = {a.name: a for a in aliases if a.model in self._models}
        own = [*self._models, *self._aliases]
        self._names = own if names is None else list(names)
        self._is_only = len(self._models) == 1 and set(self._names) == set(own)
        for alias in self._aliases.values():
            _check_alias(alias, self._models[alias.model])

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def encoders(self) -> dict[str, Encoder]:
        """Name -> encoder, for the scheduler."""
        return {model.name: model.encoder for model in self}

    def names(self) -> list[str]:
        """Names of models, then of aliases."""
        return self._names

    def find(self, name: str | None) -> tuple[Model, Alias | None]:
        """Return the model, or the alias and its model; without a name the only model, else 400.

        A name that is neither is a 404.
        """
        known = ", ".join(self.names())
        if name is None:
            if self._is_only:
                return next(iter(self)), None
            raise RequestError("missing_parameter", f"model is missing; one of {known}", "model")
        alias = self._aliases.get(name)
        model = self._models.get(alias.model if alias else name)
        if model is None:
            raise RequestError(
                "model_not_found", f"model {name[:128]!r} does not exist; one of {known}", "model"
            )
        return model, alias

    @property
    def takes_ids(self) -> bool:
        """Whether any model accepts token ids."""
        return any(model.spec.accept_token_ids for model in self)

    def resolve(self, request: Request) -> tuple[Model, Request]:
        """Return the request's model, and the request with what its alias fixes."""
        model, alias = self.find(request.model)
        return model, request if alias is None else _with_alias(request, alias)


def _with_alias(request: Request, alias: Alias) -> Request:
    if alias.prompt_name is not None:
        if request.input_type is not None or request.prompt_name not in (None, alias.prompt_name):
            param = "input_type" if request.input_type is not None else "prompt_name"
            raise RequestError(
                "invalid_value", f"{alias.name} fixes the prompt {alias.prompt_name!r}", param
            )
        request = replace(request, prompt_name=alias.prompt_name)
    if alias.dimensions is not None:
        if request.dimensions not in (None, alias.dimensions):
            raise RequestError(
                "invalid_value",
                f"{alias.name} fixes dimensions to {alias.dimensions}",
                "dimensions",
            )
        request = replace(request, dimensions=alias.dimensions)
    return request


def _check_alias(alias: Alias, model: Model) -> None:
    """An alias that its model cannot answer is found at start, not at the first request."""
    try:
        components(model.manifest, alias.dimensions)
        prompt(model.manifest, alias.prompt_name)
    except RequestError as error:
        raise StartupError(f"models.toml: [aliases.{alias.name}] {error.message}") from error


def describe(model: Model, alias: Alias | None) -> dict[str, object]:
    """The model object of GET models/{id}: what a client needs to know."""
    manifest = model.manifest
    fixed = {k: v for k, v in asdict(alias).items() if k != "name"} if alias else None
    return {
        "alias": fixed,
        "dimension": manifest.dimension,
        "dimensions": list(manifest.matryoshka) or [manifest.dimension],
        "max_tokens": manifest.max_tokens,
        "pooling": list(manifest.pooling),
        "normalized": manifest.normalized,
        "prompts": dict(manifest.prompts),
        "default_prompt_name": manifest.default_prompt_name,
        "precision": manifest.precision,
        "provider": model.provider,
        "fingerprint": manifest.fingerprint,
        "source": {"repository": manifest.repository, "revision": manifest.revision},
        "parity": asdict(manifest.parity) if manifest.parity else None,
        "quality": asdict(manifest.quality) if manifest.quality else None,
    }
