"""The log on standard error: its format, and the id of the request that a line belongs to."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

from taillift.models.terminal import printable
from taillift.service.settings import LogFormat

request_id: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)

# Text that needs no quotes as the value of a field.
PLAIN: Final = re.compile(r"[!#-~]+")


class RequestIdFilter(logging.Filter):
    """Filter that gives every record the id of the current request, unless it names its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id"):
            record.request_id = request_id.get()
        return True


class TextFormatter(logging.Formatter):
    """Formatter of one line per record; the lines of a traceback are indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{record.levelname}: {printable(record.getMessage().rstrip())}"
        fields = getattr(record, "access", {}) | {"request_id": getattr(record, "request_id", None)}
        for name, value in fields.items():
            if value is not None:
                line += f" {name}={value if PLAIN.fullmatch(str(value)) else json.dumps(value)}"
        if record.exc_info:
            lines = self.formatException(record.exc_info).splitlines()
            line = "\n  ".join([line, *map(printable, lines)])
        return line


class JsonFormatter(logging.Formatter):
    """Formatter of one JSON object per line, with the fields of an access record in it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage().rstrip(),
            "request_id": getattr(record, "request_id", None),
            **getattr(record, "access", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
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
