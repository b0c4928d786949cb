"""Wishes of models.toml that the model's own files must allow: a lower limit, a task."""

from __future__ import annotations

from pathlib import Path

from embedserve.config import ModelSpec, shown
from embedserve.errors import Exit, StartupError


def limit(spec: ModelSpec, own: int, directory: Path) -> int:
    """Return how many tokens a text may have: `own`, the files' limit, or the lower wish.

    StartupError (78) when the wish is the larger one.
    """
    wish = own if spec.max_tokens is None else spec.max_tokens
    if wish > own:
        raise _refused(spec, "max_tokens", wish, f"{directory} says at most {own} tokens")
    return wish


def refuse_task(spec: ModelSpec, model_type: str) -> None:
    """Refuse a task for a model that was not trained for several. StartupError (78)."""
    if spec.task is not None:
        raise _refused(spec, "task", spec.task, f"a {model_type} model has no tasks; remove it")


def _refused(spec: ModelSpec, key: str, value: object, why: str) -> StartupError:
    return StartupError(
        f"models.toml: [models.{spec.name}] {key} = {shown(value)}; {why}", Exit.CONFIG
    )
