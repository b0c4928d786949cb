"""Wishes of models.toml that the model's own files must allow: a lower limit, a task."""

from __future__ import annotations

from pathlib import Path

from embedserve.config.models_toml import ModelSpec, shown
from embedserve.errors import Exit, StartupError


def limit(spec: ModelSpec, own: int, directory: Path) -> int:
    """Return how many tokens a text may have: `own`, the files' limit, or the lower wish.

    StartupError (78) when the wish is the larger one.
    """
    wish = own if spec.max_tokens is None else spec.max_tokens
    if wish > own:
        raise StartupError(
            f"models.toml: [models.{spec.name}] max_tokens = {wish}; the files in {directory} "
            f"say at most {own}",
            Exit.CONFIG,
        )
    return wish


def refuse_limit(spec: ModelSpec, directory: Path) -> None:
    """Refuse a max_tokens wish for a model without a limit. StartupError (78)."""
    if spec.max_tokens is not None:
        raise StartupError(
            f"models.toml: [models.{spec.name}] max_tokens = {spec.max_tokens}; the model in "
            f"{directory} averages static embeddings, and sentence-transformers never cuts texts; "
            "remove the key",
            Exit.CONFIG,
        )


def refuse_task(spec: ModelSpec, model_type: str) -> None:
    """Refuse a task for a model that was not trained for several. StartupError (78)."""
    if spec.task is not None:
        raise StartupError(
            f"models.toml: [models.{spec.name}] task = {shown(spec.task)}; a {model_type} model "
            "has no tasks; remove the key",
            Exit.CONFIG,
        )
