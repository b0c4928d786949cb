"""A model's directory with some files replaced, and links to all the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def make(source: Path, target: Path, replaced: Mapping[str, Any]) -> Path:
    """Return `source` itself, or `target` with links to its files and `replaced` as JSON.

    `replaced` maps a path inside the model to the content that takes its place.
    """
    if not replaced:
        return source
    _link(source, target, {tuple(Path(name).parts): value for name, value in replaced.items()})
    return target


def _link(source: Path, target: Path, replaced: Mapping[tuple[str, ...], Any]) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        inside = {parts[1:]: v for parts, v in replaced.items() if parts[0] == path.name}
        if not inside:
            (target / path.name).symlink_to(path.resolve())
        elif () not in inside:
            _link(path, target / path.name, inside)
    for parts, value in replaced.items():
        if len(parts) == 1:
            (target / parts[0]).write_text(json.dumps(value, indent=2), encoding="utf-8")
