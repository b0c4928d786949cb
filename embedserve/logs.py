"""Log lines on standard error: one per event, text or JSON, without inputs or keys."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from queue import SimpleQueue

from embedserve.config.settings import Settings
from embedserve.escapes import escaped

ACCESS = "embedserve.access"  # one line per request: never limited
# Most lines that wait to be written: a few seconds of a busy server.
MOST_WAITING = 10_000
CLOSE_SECONDS = 1.0
# Lines are gathered for this long, and written in pieces that other processes' lines do not part
# (PIPE_BUF).
GATHER_SECONDS = 0.005
MOST_AT_ONCE = 500
ATOMIC_BYTES = 4_096
# At most BURST lines of one kind (logger and message) pass in WINDOW seconds.
BURST, WINDOW = 20, 10.0
MOST_KINDS = 1000


class TextFormatter(logging.Formatter):
    """Time, level, logger, message. A traceback is part of the line, with escaped line ends."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s")
        self.converter = time.gmtime
        self.default_time_format = "%Y-%m-%dT%H:%M:%S"
        self.datefmt = self.default_time_format
        self._second, self._text = -1, ""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record, AccessRecord):  # the same line, made directly
            line = (
                f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03d}Z INFO {ACCESS}: "
                f"{record.getMessage()}"
            )
            return escaped(line)
        return escaped(super().format(record))

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  # the library's name
        """As the library does it, once a second."""
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, super().formatTime(record, datefmt)
        return self._text


class AccessRecord(logging.LogRecord):
    """One request's line: `fields` as an object, or as words.

    Made without what the library looks up for each record, such as the caller and the thread: no
    format here shows it.
    """

    name, levelno, levelname = ACCESS, logging.INFO, "INFO"
    msg, args = "", None
    exc_info = exc_text = stack_info = None

    def __init__(self, fields: Mapping[str, object]) -> None:
        self.created = now = time.time()
        self.msecs = now % 1 * 1000
        self.fields = fields

    def getMessage(self) -> str:  # noqa: N802  # the library's name
        """The fields as words; a path is quoted, because a client chose it."""
        return " ".join(
            [
                f"{key}={value!r}" if key == "path" else f"{key}={value}"
                for key, value in self.fields.items()
            ]
        )


class JsonFormatter(TextFormatter):
    """The same as one JSON object per line; the fields of an access line are its keys."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        entry |= fields if isinstance(fields, dict) else {"message": record.getMessage()}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        # JSON does not escape DEL.
        return json.dumps(entry, ensure_ascii=True).replace("\x7f", "\\u007f")


FORMATTERS: dict[str, type[TextFormatter]] = {"text": TextFormatter, "json": JsonFormatter}


class Lines(logging.Handler):
    """Hands records to a thread that writes them, so a full or closed pipe blocks nobody.

    Drops lines past MOST_WAITING and lines that it cannot write. Once it can write again, it logs
    how many it dropped.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lost = 0
        self._records: SimpleQueue[logging.LogRecord | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._records.qsize() < MOST_WAITING:
            self._records.put(record)
        else:
            self._lost += 1

    def close(self) -> None:
        """Write the lines that wait; give up after CLOSE_SECONDS."""
        self._records.put(None)
        self._thread.join(CLOSE_SECONDS)
        super().close()

    def _write_all(self) -> None:
        is_last = False
        while not is_last:
            records = [self._records.get()]
            # A busy server would wake this thread for each line, which takes the interpreter's lock
            # from the event loop each time.
            time.sleep(GATHER_SECONDS)
            more = min(MOST_AT_ONCE, self._records.qsize())
            records += [self._records.get() for _ in range(more)]
            is_last = None in records
            lost = self._lost
            self._write(record for record in records if record is not None)
            if lost and self._lost == lost:
                self._lost = 0
                message = "%s log lines were lost: standard error did not take them"
                self._write([_warning(message, lost)])

    def _write(self, records: Iterable[logging.LogRecord]) -> None:
        """Write lines, several at once; a pipe keeps at most ATOMIC_BYTES together."""
        waiting: list[bytes] = []
        size = 0
        for record in records:
            try:
                line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
            except Exception:  # a record that cannot be formatted
                self._lost += 1
                continue
            if waiting and size + len(line) > ATOMIC_BYTES:
                self._put(waiting)
                waiting, size = [], 0
            waiting.append(line)
            size += len(line)
        self._put(waiting)

    def _put(self, lines: list[bytes]) -> None:
        left = b"".join(lines)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:  # a closed pipe, a full disk
            self._lost += len(lines)


class Limit(logging.Filter):
    """Lets `burst` lines of one kind pass in `window` seconds, and reports how many it left out."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        burst: int = BURST,
        window: float = WINDOW,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._burst = burst
        self._window = window
        self._kinds: dict[tuple[str, object], list[float]] = {}  # window's start, count

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == ACCESS:
            return True
        now = self._clock()
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        kind = self._kinds.setdefault((record.name, record.msg), [now, 0])
        if now - kind[0] >= self._window:
            if (left_out := int(kind[1]) - self._burst) > 0:
                record.msg = (
                    f"{record.msg} ({left_out} similar lines before this one were left out)"
                )
            kind[:] = [now, 0]
        kind[1] += 1
        return kind[1] <= self._burst


def _warning(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, "", 0, message, arguments, None)


def configure(settings: Settings) -> None:
    """Send every logger to standard error in the format asked for."""
    handler = Lines(sys.stderr.fileno())
    handler.setFormatter(FORMATTERS[settings.log_format]())
    handler.addFilter(Limit())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.getLogger(ACCESS).disabled = not settings.access_log
    # At info, uvicorn reports its progress; embedserve itself logs what an operator must know.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
