"""How many passes run at once, and how many tokens share one: what is in force."""

from __future__ import annotations

from embedserve.backend import PROVIDERS
from embedserve.settings import Settings


def lanes(settings: Settings, cores: int) -> int:
    """The setting, or what serves the provider best, or one lane for each of `cores`."""
    return settings.lanes or PROVIDERS[settings.provider].lanes or cores


def tokens_per_pass(settings: Settings) -> int:
    """The setting, or what serves the provider best."""
    return settings.tokens_per_pass or PROVIDERS[settings.provider].tokens_per_pass
