"""The log on standard error: its format, and the id of the request that a line belongs to."""

import json
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from traceback import walk_tb
from typing import Final

from taillift.models.terminal import printable
from taillift.service.settings import LogFormat

request_id: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)

# Text that needs no quotes as the value of a field.
PLAIN: Final = re.compile(r"[!#-~]+")
TRACEBACK_SECONDS: Final = 60
# Characters of a record: libraries put what they were given into their messages.
MAX_MESSAGE: Final = 4_000
MAX_TRACEBACK: Final = 50_000


class RequestIdFilter(logging.Filter):
    """Filter that gives every record the id of the current request, unless it names its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id"):
            record.request_id = request_id.get()
        return True


class TracebackFormatter(logging.Formatter):
    """Formatter that gives the traceback of one place once in a while.

    A client that finds a failure could otherwise fill the disk with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._given: dict[tuple[str, int], float] = {}

    def traceback(self, record: logging.LogRecord) -> str | None:
        """Return the traceback of `record`, or a line in its place; None if it has none."""
        if not record.exc_info or record.exc_info[2] is None:
            return None
        *_, (frame, line) = walk_tb(record.exc_info[2])
        place = (frame.f_code.co_filename, line)
        if record.created - self._given.get(place, -math.inf) < TRACEBACK_SECONDS:
            kind, error = record.exc_info[:2]
            name = kind.__name__ if kind else ""
            text = str(error)[:MAX_MESSAGE]
            return f"{name}: {text} (the same place as in a traceback of the last minute)"
        self._given[place] = record.created
        return self.formatException(record.exc_info)[-MAX_TRACEBACK:]


def message(record: logging.LogRecord) -> str:
    """Return the text of `record`, without the end of one that a file or a client made long."""
    text = record.getMessage().rstrip()
    return (
        text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}... ({len(text):,} characters)"
    )


class TextFormatter(TracebackFormatter):
    """Formatter of one line per record; the lines of a traceback are indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{record.levelname}: {printable(message(record))}"
        fields = getattr(record, "access", {}) | {"request_id": getattr(record, "request_id", None)}
        for name, value in fields.items():
            if value is not None:
                line += f" {name}={value if PLAIN.fullmatch(str(value)) else json.dumps(value)}"
        if (traceback := self.traceback(record)) is not None:
            line = "\n  ".join([line, *map(printable, traceback.splitlines())])
        return line


class JsonFormatter(TracebackFormatter):
    """Formatter of one JSON object per line, with the fields of an access record in it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message(record),
            "request_id": getattr(record, "request_id", None),
            **getattr(record, "access", {}),
        }
        if (traceback := self.traceback(record)) is not None:
            fields["traceback"] = traceback
        return json.dumps(fields)


@contextmanager
def logging_to_stderr(log_format: LogFormat) -> Iterator[None]:
    """Write every record of level WARNING or above to standard error during the block."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(RequestIdFilter())
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, [handler]
    try:
        yield
    finally:
        root.handlers = handlers
