"""What a step found so far, in a file: a step that is cut off leaves what it had."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Results:
    """Figures by name, written again with each that is added."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Any] = {}

    def add(self, **found: Any) -> None:
        """Keep figures, and say them."""
        self._found |= found
        self._path.write_text(json.dumps(self._found, default=str), encoding="utf-8")
        print(json.dumps(found, default=str), flush=True)

    def attempt(
        self, name: str, measure: Callable[..., object], *given: object, **named: object
    ) -> None:
        """Add what it measures, or why it cannot: what comes after it is measured all the same."""
        try:
            found = measure(*given, **named)
        except Exception as error:  # whatever a provider, a server or a library raises
            found = f"{type(error).__name__}: {error}"[:500]
        self.add(**{name: found})
