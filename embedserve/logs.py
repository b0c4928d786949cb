"""Log lines on standard error: one line an event, text or JSON, no inputs and no keys in any."""

from __future__ import annotations

import json
import logging
import sys
import time

from embedserve.settings import Settings


class TextFormatter(logging.Formatter):
    """Time, level, logger, message; a traceback's lines stand in the same line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s")
        self.converter = time.gmtime
        self.default_time_format = "%Y-%m-%dT%H:%M:%S"
        self.datefmt = self.default_time_format

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", "\\n")


class JsonFormatter(TextFormatter):
    """The same as one JSON object a line; an access line's fields are keys of it."""

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
        return json.dumps(entry, ensure_ascii=True)


FORMATTERS: dict[str, type[TextFormatter]] = {"text": TextFormatter, "json": JsonFormatter}


def configure(settings: Settings) -> None:
    """Send every logger to standard error in the format asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATTERS[settings.log_format]())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.getLogger("embedserve.access").disabled = not settings.access_log
    # uvicorn says where it stands at info; what an operator must know is said by embedserve.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
