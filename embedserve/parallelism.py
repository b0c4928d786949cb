"""How many passes run at once, how many tokens share one, and how many threads tokenize."""

from __future__ import annotations

from embedserve.backend import PROVIDERS, Provider
from embedserve.settings import Settings


def lanes(settings: Settings, cores: int) -> int:
    """The setting, or what serves the provider best, or one lane for each of `cores`."""
    return settings.lanes or PROVIDERS[settings.provider].lanes or cores


def tokens_per_pass(settings: Settings) -> int:
    """The setting, or what serves the provider best."""
    return settings.tokens_per_pass or PROVIDERS[settings.provider].tokens_per_pass


def tokenizing(provider: Provider, cores: int) -> int:
    """How many threads share a batch of texts: one beside lanes that compute on the cores.

    Else what is free. A GPU's lanes and the event loop take a core each, and one thread tokenizes
    8,000 texts a second: far less than a GPU embeds.
    """
    return 1 if provider.device is None else max(1, cores - provider.lanes - 1)
