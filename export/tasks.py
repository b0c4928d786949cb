"""Turns a model for several tasks into one for the task that models.toml names."""

from __future__ import annotations

from pathlib import Path

from embedserve.config.models_toml import ModelSpec
from export.families import jina_v3_adapters
from export.files import load
from export.steps import Nurseries

DIRECTORY = "task"


def has_tasks(directory: Path) -> bool:
    """Whether the files hold an adapter for each of several tasks."""
    path = directory / "config.json"
    return path.is_file() and jina_v3_adapters.is_hub_form(load(path, dict))


def merge(directory: Path, scratch: Path, spec: ModelSpec, nurseries: Nurseries) -> Path:
    """Return a directory in `scratch` with the weights for spec.task; None: without an adapter."""
    target = scratch / DIRECTORY
    job = {"source": str(directory), "target": str(target), "task": spec.task}
    with nurseries.start("export.families.jina_v3_adapters", job, scratch) as step:
        step.result()
    return target
