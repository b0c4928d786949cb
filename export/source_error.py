"""Why a source cannot give a model's files."""

from __future__ import annotations

from embedserve.errors import Exit


class UnusableError(Exception):
    """A source cannot give the files: the reason and the exit status."""

    def __init__(self, reason: str, status: Exit = Exit.UNAVAILABLE) -> None:
        super().__init__(reason)
        self.status = status
