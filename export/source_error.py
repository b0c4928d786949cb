"""Why a source does not give a model's files."""

from __future__ import annotations

from embedserve.errors import Exit


class UnusableError(Exception):
    """A source that does not give the files: why, and the exit status that this means."""

    def __init__(self, reason: str, status: Exit = Exit.UNAVAILABLE) -> None:
        super().__init__(reason)
        self.status = status
