"""The finished chunks of a job on disk: one file each, complete or absent."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from embedserve.bulk.chunks import BadRow, Cut
from embedserve.errors import Exit, StartupError
from embedserve.system import atomic_write

TEMPORARY = ".tmp"
RECORD, LOCK = "job.json", "lock"
# Names of files in a job's directory. Files with other names are never removed.
_NAME = re.compile(r"(\d{8,})\.part")
_TEMPORARY = re.compile(r"(?:\d{8,}\.part|job\.json|output|errors|done)\.tmp")


@dataclass(frozen=True, slots=True)
class Part:
    """One finished chunk; `payload` is its rows, encoded for the output's format.

    `rows` counts the rows in the output, `bad` lists the input's rows that got no vector.
    """

    cut: Cut
    rows: int
    bad: tuple[BadRow, ...]
    tokens: int
    truncated: int
    size: int  # of the payload, in bytes
    payload: bytes = b""


class Parts:
    """A directory of parts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def check(self) -> None:
        """StartupError if the directory is not a job's. Changes nothing in it."""
        if self.directory.is_symlink() or not self.directory.is_dir():
            raise StartupError(
                f"{self.directory}: is a link or not a directory; move it away, or name another "
                "OUTPUT",
                Exit.CANTCREAT,
            )
        for path in self.directory.iterdir():
            if not _is_own(path):
                raise StartupError(
                    f"{path}: is not a file of embedserve, and a finished job removes "
                    f"{self.directory}; move it away, or name another OUTPUT",
                    Exit.CANTCREAT,
                )

    def clear(self) -> None:
        """Remove the parts of another job, its record last. The lock stays."""
        own = [p for p in self.directory.iterdir() if _is_own(p) and p.name != LOCK]
        for path in sorted(own, key=lambda path: path.name == RECORD):
            path.unlink()

    def remove(self) -> None:
        """Remove the job's files, and the directory unless it holds files of others."""
        if self.directory.is_symlink() or not self.directory.is_dir():
            return
        self.clear()
        (self.directory / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def write(self, path: Path, kind: str, write: Callable[[BinaryIO], None]) -> None:
        """Write a file beside the directory. Until complete, it is `kind`.tmp in the directory."""
        write_whole(path, self.directory / f"{kind}{TEMPORARY}", write)

    def cuts(self) -> dict[int, Cut]:
        """The finished chunks by number. Removes files that were not completely written."""
        for path in self.directory.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                path.unlink()
        return {part.cut.number: part.cut for part in self}

    def put(self, part: Part) -> None:
        """Write a part: it is complete or absent, whatever happens."""
        head = asdict(part)
        del head["payload"]

        def write(file: BinaryIO) -> None:
            file.write(json.dumps(head).encode() + b"\n")
            file.write(part.payload)

        name = f"{part.cut.number:08}.part"
        write_whole(self.directory / name, self.directory / f"{name}{TEMPORARY}", write)

    def __iter__(self) -> Iterator[Part]:
        """Each part without its payload, in the order of the input."""
        for path in self._paths():
            with path.open("rb") as file:
                yield _head(file, path)

    def payloads(self) -> Iterator[tuple[Part, BinaryIO]]:
        """Each part and its file, positioned at the payload, in the order of the input."""
        for path in self._paths():
            with path.open("rb") as file:
                yield _head(file, path), file

    def _paths(self) -> list[Path]:
        found = [path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.stem))


def _head(file: BinaryIO, path: Path) -> Part:
    try:
        head = json.loads(file.readline())
        cut, bad = Cut(*head.pop("cut")), tuple(BadRow(*row) for row in head.pop("bad"))
        part = Part(cut, bad=bad, **head)
        rest = os.fstat(file.fileno()).st_size - file.tell()
    except (ValueError, TypeError, KeyError) as error:
        raise _broken(path) from error
    if rest != part.size:
        raise _broken(path)
    return part


def _broken(path: Path) -> StartupError:
    return StartupError(f"{path}: is damaged; remove it, and run again", Exit.DATAERR)


def _is_own(path: Path) -> bool:
    """Whether a path is a regular file with a name of a job's; a link is not ours."""
    name = path.name
    is_named = name in (RECORD, LOCK) or _NAME.fullmatch(name) or _TEMPORARY.fullmatch(name)
    return bool(is_named) and stat.S_ISREG(path.lstat().st_mode)


def write_whole(path: Path, temporary: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file under a temporary name, sync it, and rename it.

    Follows no link: it replaces whatever has either name. StartupError (73) names the file if the
    disk refuses it.
    """
    try:
        atomic_write.write(path, temporary, write)
    except OSError as error:
        raise StartupError(
            f"{path}: {error.strerror}; finished chunks are kept: run the same command again",
            Exit.CANTCREAT,
        ) from error
