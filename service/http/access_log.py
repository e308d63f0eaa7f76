"""The log line of each answered request, and the id that the request's answer and lines share."""

import logging
import re
from dataclasses import asdict, dataclass
from typing import Final
from uuid import uuid4

from taillift.service.settings import AccessLevel

logger = logging.getLogger("taillift.access")
# The setting `access_log` decides what is written, not the level of the other loggers.
logger.setLevel(logging.INFO)

REQUEST_ID: Final = "X-Request-Id"
REQUEST_ID_BYTES: Final = REQUEST_ID.lower().encode()
VALID_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")

READINESS: Final = "/readyz"
MAX_PATH: Final = 1_000


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
    """Log `record` if `level` includes it.

    A failed readiness probe is not an error: it is how the service says that it is starting.
    """
    failed = record.status >= 500 and record.path != READINESS
    if level == "all" or (level == "errors" and failed):
        fields = asdict(record) | {"path": record.path and record.path[:MAX_PATH]}
        fields["seconds"] = round(record.seconds, 6)
        severity = logging.WARNING if failed else logging.INFO
        logger.log(severity, "request", extra={"access": fields})
