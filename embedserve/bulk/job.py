"""One job: what determines its output, its finished chunks on disk, and how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from embedserve.bulk.outputs import Output
from embedserve.bulk.parts import LOCK, RECORD, TEMPORARY, Part, Parts, write_whole
from embedserve.errors import Exit, StartupError
from embedserve.system import regular_file

FORMAT = 1
# Bytes that are hashed at the start and at the end of the input, to recognize it.
ENDS = 2**20
MOST_RECORD = 2**24  # bytes of job.json; its largest part is a list of columns


@dataclass(frozen=True, slots=True)
class Plan:
    """All that determines an output. The same plan on the same processor gives the same bytes."""

    input: Mapping[str, object]  # its size, modification time, and digest of its ends
    model: str
    fingerprint: str
    prompt: str
    truncate: str
    dimensions: int
    dtype: str
    text_column: str
    vector_column: str
    keep: list[str] | None
    drop: list[str]
    on_error: str
    chunk_rows: int
    output: str  # its suffix


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of an output: its rows, the input's bad rows, the tokens and the truncated texts."""

    rows: int
    bad: int
    tokens: int
    truncated: int

    def plus(self, part: Part) -> Totals:
        """These totals plus one part."""
        return Totals(
            self.rows + part.rows,
            self.bad + len(part.bad),
            self.tokens + part.tokens,
            self.truncated + part.truncated,
        )


def identify(path: Path) -> dict[str, object]:
    """What identifies an input. Includes the modification time, to catch edits in the middle."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        digest = hashlib.sha256(file.read(ENDS))
        file.seek(max(0, status.st_size - ENDS))
        digest.update(file.read(ENDS))
    return {
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "sha256_of_ends": digest.hexdigest(),
    }


class BulkJob:
    """OUTPUT, OUTPUT.parts while it is being made, and OUTPUT.job.json once it is complete."""

    def __init__(self, target: Path, plan: Plan) -> None:
        self.target, self.plan = target, plan
        self.directory = _beside(target, ".parts")
        self.parts = Parts(self.directory)
        self.errors = _beside(target, ".errors.jsonl")
        self._done = _beside(target, ".job.json")

    def check_source(self, source: Path) -> None:
        """StartupError (64) if the input is a file that the job writes: OUTPUT or one beside it.

        Compares the files, not their names.
        """
        for path in (self.target, self.errors, self._done):
            with contextlib.suppress(FileNotFoundError):
                if path.samefile(source):
                    raise StartupError(
                        f"{source}: is the same file as {path}, which this job writes; name "
                        "another OUTPUT",
                        Exit.USAGE,
                    )

    def finished(self) -> Totals | None:
        """The totals of OUTPUT if this same job has already made it, else None."""
        done = _read(self._done)
        if done is None or done.get("plan") != self._record() or not self.target.exists():
            return None
        if self.target.stat().st_size != done.get("bytes"):
            return None
        try:
            totals = Totals(**done["totals"])
        except (KeyError, TypeError):  # not what was written
            return None
        self.parts.remove()  # left by a run that was killed before it removed them
        return totals

    @contextlib.contextmanager
    def open(self, overwrite: bool) -> Iterator[None]:
        """Start or resume the job, and lock it against other processes.

        StartupError if OUTPUT exists or the parts belong to another job, unless `overwrite`; if
        OUTPUT.parts has a file that no job wrote; and if another process holds the lock.
        """
        begun = (self.directory / RECORD).exists()
        if os.path.lexists(self.target) and not begun and not overwrite:
            raise StartupError(
                f"{self.target}: exists, but not from this same job; name another file, or pass "
                "--overwrite",
                Exit.CANTCREAT,
            )
        try:
            with contextlib.suppress(FileExistsError):
                self.directory.mkdir()
            self.parts.check()
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.fdopen(os.open(self.directory / LOCK, flags, 0o666), "rb")
        except OSError as error:
            raise StartupError(
                f"{self.directory}: cannot be made: {error.strerror}", Exit.CANTCREAT
            ) from error
        with lock:
            self._lock(lock)
            if overwrite and _read(self.directory / RECORD) != self._record():
                self.parts.clear()
            self._check_record()
            yield

    def finish(self, facts: Mapping[str, object], output: Output) -> Totals:
        """Join the parts into OUTPUT, describe it in OUTPUT.job.json, and remove the parts."""
        totals = Totals(0, 0, 0, 0)
        for part in self.parts:
            totals = totals.plus(part)
        self._write_errors(totals.bad)
        self.parts.write(self.target, "output", lambda f: output.join(self.parts, facts, f))
        done = {
            "plan": self._record(),
            "totals": asdict(totals),
            "bytes": self.target.stat().st_size,
        }
        self.parts.write(self._done, "done", lambda file: _write_json(file, done))
        self.parts.remove()
        return totals

    def _write_errors(self, count: int) -> None:
        if not count:
            self.errors.unlink(missing_ok=True)
            return

        def write(file: BinaryIO) -> None:
            for part in self.parts:
                for row in part.bad:
                    file.write(json.dumps(row._asdict()).encode() + b"\n")

        self.parts.write(self.errors, "errors", write)

    def _record(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self.plan)}

    def _lock(self, file: BinaryIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartupError(
                f"{self.directory}: another process is working on it", Exit.UNAVAILABLE
            ) from None

    def _check_record(self) -> None:
        """Write job.json, or compare the job with what job.json says."""
        path, now = self.directory / RECORD, self._record()
        before = _read(path)
        if before is None:
            if path.exists() or any(self.parts):
                raise StartupError(f"{path}: missing or unreadable; {_AGAIN}", Exit.CANTCREAT)
            self._write_record(now)
            return
        odd = [name for name in now if before.get(name) != now[name]]
        # --on-error makes no difference before the first bad row, and with `stop` no part after it
        # was written.
        if odd == ["on_error"] and before.get("on_error") == "stop":
            self._write_record(now)
        elif odd:
            found = "; ".join(f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in odd)
            raise StartupError(
                f"{self.directory}: the job began with other settings: {found}; {_AGAIN}",
                Exit.CANTCREAT,
            )

    def _write_record(self, record: Mapping[str, object]) -> None:
        path = self.directory / RECORD
        temporary = self.directory / f"{RECORD}{TEMPORARY}"
        write_whole(path, temporary, lambda file: _write_json(file, record))


_AGAIN = "to start over, pass --overwrite"


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(regular_file.read(path, MOST_RECORD))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _write_json(file: BinaryIO, value: Mapping[str, object]) -> None:
    file.write(json.dumps(value, indent=1).encode() + b"\n")
