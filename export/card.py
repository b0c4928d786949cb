"""What a new table says beyond the source: the catalogue's facts, if the files have none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedserve.errors import Exit, StartupError
from export.catalogue import CatalogueEntry
from export.files import load

CATALOGUE = "catalogue"  # the origin of what the card says

_AFTER_POOLING = ("Dense", "LayerNorm", "Normalize")


@dataclass(frozen=True, slots=True)
class Decision:
    """One key of the table: its value (None: not written), and where it comes from, in words."""

    key: str
    value: Any
    origin: str


def decide(directory: Path, entry: CatalogueEntry | None, task: str | None) -> tuple[Decision, ...]:
    """Decide every key that a card may give; what the files say comes first."""
    return tuple(_decisions(directory, entry or CatalogueEntry("", "", read=False), task))


def choose_task(model: str, entry: CatalogueEntry | None, task: str | None) -> str | None:
    """Return the task. StartupError (64) if the model has several and `task` is not one of them."""
    tasks = entry.tasks if entry else ()
    if tasks and task not in tasks:
        given = "none is given" if task is None else f"{task!r} is not one of them"
        raise StartupError(
            f"{model}: has the tasks {', '.join(tasks)}, and {given}; --task TASK", Exit.USAGE
        )
    return task


def _decisions(directory: Path, entry: CatalogueEntry, task: str | None) -> Iterator[Decision]:
    name = "config_sentence_transformers.json"
    if _declares_prompts(directory / name):
        yield Decision("prompts", None, name)
    else:
        yield _from_card("prompts", entry.prompts)
    if after := _after_pooling(directory / "modules.json"):
        yield Decision("finishing", None, f"modules.json: {', '.join(after)}")
    else:
        yield _from_card("finishing", entry.finishing)
    yield _from_card("matryoshka", entry.matryoshka)
    name = "sentence_bert_config.json"
    own = _own_limit(directory / name)
    if own is not None and own <= (entry.max_tokens or own):
        yield Decision("max_tokens", None, f"{name}: {own}")
    else:
        yield _from_card("max_tokens", entry.max_tokens)
    if task is not None:
        yield Decision("task", task, "command line")


def _from_card(key: str, value: Any) -> Decision:
    return Decision(key, value, CATALOGUE if value is not None else "default")


def _declares_prompts(path: Path) -> bool:
    """Whether there is a prompt with text: sentence-transformers writes empty ones by itself."""
    prompts = load(path, dict).get("prompts") if path.exists() else None
    return isinstance(prompts, Mapping) and any(prompts.values())


def _after_pooling(path: Path) -> Sequence[str]:
    kinds = [str(module["type"]).rpartition(".")[2] for module in load(path, list)]
    return [kind for kind in kinds if kind in _AFTER_POOLING]


def _own_limit(path: Path) -> int | None:
    limit = load(path, dict).get("max_seq_length") if path.exists() else None
    return limit if type(limit) is int else None
