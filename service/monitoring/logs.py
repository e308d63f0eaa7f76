"""The log on standard error: its format, a line for each request, and the id that answers share."""

import json
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from traceback import walk_tb
from typing import Final, TextIO
from uuid import uuid4

from taillift.models.terminal import printable
from taillift.service.settings import AccessLevel, LogFormat

access_logger = logging.getLogger("taillift.access")
# The setting `access_log` decides what is written, not the level of the other loggers.
access_logger.setLevel(logging.INFO)

request_id: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
REQUEST_ID: Final = "X-Request-Id"
REQUEST_ID_BYTES: Final = REQUEST_ID.lower().encode()
VALID_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")

# Probes whose 503 is not an error: it is how the service says that it is starting.
READINESS: Final = ("/readyz", "/v2/health/ready")
MAX_PATH: Final = 1_000

# Failed requests that are logged in one second with `access_log=errors`.
MAX_ERRORS: Final = 20

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


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Handler that writes at most `MAX_ERRORS` failed requests a second, and counts the rest.

    It is for records with a true `bounded`. How many were left out is said before the first record
    of any kind in a later second, and at the end.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._second, self._errors = 0, 0

    def emit(self, record: logging.LogRecord) -> None:
        if int(record.created) != self._second:
            self.tell()
            self._second = int(record.created)
        if getattr(record, "bounded", False):
            self._errors += 1
            if self._errors > MAX_ERRORS:
                return
        super().emit(record)

    def tell(self) -> None:
        """Write how many failed requests were left out in the last second, if any."""
        left_out, self._errors = self._errors - MAX_ERRORS, 0
        if left_out > 0:
            text = f"{left_out} more failed requests within a second are not listed"
            args = (access_logger.name, logging.WARNING, __file__, 0, text, None, None)
            super().emit(logging.LogRecord(*args))


@contextmanager
def logging_to_stderr(log_format: LogFormat) -> Iterator[None]:
    """Write every record of level WARNING or above to standard error during the block."""
    handler = BoundedHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(RequestIdFilter())
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, [handler]
    try:
        yield
    finally:
        root.handlers = handlers
        handler.tell()


def new_request_id() -> str:
    """Return the id of a request that was sent without a valid one: 32 hexadecimal digits."""
    return uuid4().hex


@dataclass(frozen=True)
class AccessRecord:
    """One answered request. `path` is without the query; the bytes are those of the bodies.

    `method` and `path` are None if the request was refused before it had them. `key` is the name
    of the API key that was used, if it has one.
    """

    method: str | None
    path: str | None
    status: int
    seconds: float
    bytes_in: int
    bytes_out: int
    client: str | None
    key: str | None = None


def log_access(record: AccessRecord, level: AccessLevel) -> None:
    """Log `record` if `level` includes it; a service that fails often must not fill the disk.

    A failed readiness probe is not an error: it is how the service says that it is starting.
    """
    failed = record.status >= 500 and record.path not in READINESS
    if level == "all" or (level == "errors" and failed):
        fields = asdict(record) | {"path": record.path and record.path[:MAX_PATH]}
        fields["seconds"] = round(record.seconds, 6)
        severity = logging.WARNING if failed else logging.INFO
        extra = {"access": fields, "bounded": level == "errors"}
        access_logger.log(severity, "request", extra=extra)
