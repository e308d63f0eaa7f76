"""The API keys of the service, and the check of a request's key."""

import hmac
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from taillift.models.errors import UserError
from taillift.service.problems import NoRightError, UnauthorisedError
from taillift.service.settings import Settings

logger = logging.getLogger(__name__)

# Shorter keys can be guessed.
MIN_LENGTH: Final = 16
# The last word of a key that may send labels.
FEEDBACK: Final = "feedback"


@dataclass(frozen=True)
class Key:
    """API key, kept as its SHA-256 so that neither a log nor a memory dump shows it.

    `feedback` says whether it may send labels, too.
    """

    digest: bytes
    name: str | None
    feedback: bool = False


class Keys:
    """The keys in `given`, separated by commas, and those that `file` contains at the moment.

    Each line of the file, and each part of `given`, is `KEY`, `KEY NAME` or, for a key that may
    send labels, `KEY NAME feedback`; a # starts a comment.
    Raises `UserError` if `given` or `file` contains no key, or anything else.
    """

    def __init__(self, given: str | None, file: Path | None) -> None:
        self._given = [] if given is None else parse_keys(given.split(","), "TAILLIFT_KEYS")
        self._file = file
        self._file_version = file_version(file)
        self._from_file = [] if file is None else read_key_file(file)

    @classmethod
    def of(cls, settings: Settings) -> "Keys":
        given = None if settings.keys is None else settings.keys.get_secret_value()
        return cls(given, settings.keys_file)

    @property
    def needed(self) -> bool:
        return bool(self._given) or self._file is not None

    def find(self, sent: str) -> Key | None:
        """Return the key that was sent, or None; the time it takes says nothing about the keys."""
        self._reload()
        digest, match = sha256(sent.encode()).digest(), None
        for key in (*self._given, *self._from_file):
            if hmac.compare_digest(key.digest, digest):
                match = key
        return match

    def _reload(self) -> None:
        """Read the file again if it has changed; keep the old keys if it is wrong now."""
        version = file_version(self._file)
        if self._file is None or version == self._file_version:
            return
        self._file_version = version
        try:
            self._from_file = read_key_file(self._file)
        except UserError as error:
            logger.error("%s; the keys stay as they were", error)
        else:
            names = ", ".join(key.name or "without a name" for key in self._from_file)
            logger.warning("%s has changed: %d keys (%s)", self._file, len(self._from_file), names)


def parse_keys(lines: Iterable[str], origin: str) -> Sequence[Key]:
    """Return the keys in `lines`; raise `UserError` with their `origin` and no part of a key."""
    keys = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split(maxsplit=1)
        if not words:
            continue
        key, name = words[0], words[1].strip() if len(words) > 1 else None
        if len(key) < MIN_LENGTH or not key.isascii():
            raise UserError(
                f"{origin}, key {number}: an API key has at least {MIN_LENGTH} characters, all "
                "ASCII; make one with `openssl rand -hex 32`"
            )
        match (name or "").rsplit(maxsplit=1):
            case [shorter, right] if right == FEEDBACK:
                keys.append(Key(sha256(key.encode()).digest(), shorter, feedback=True))
            case _:
                keys.append(Key(sha256(key.encode()).digest(), name))
    if not keys:
        raise UserError(f"{origin} holds no API key: add one, or leave the setting out")
    return keys


def read_key_file(file: Path) -> Sequence[Key]:
    """Return the keys in `file`; raise `UserError` if it cannot be read or contains none."""
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"the API keys in {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UserError(f"the API keys in {file} cannot be read: it is not UTF-8") from None
    return parse_keys(text.splitlines(), str(file))


def file_version(file: Path | None) -> Sequence[int] | None:
    """Return a value that changes whenever `file` is written or replaced; None if it is missing."""
    try:
        status = None if file is None else file.stat()
    except OSError:
        return None
    return status and (status.st_mtime_ns, status.st_size, status.st_ino)


Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))]
KeyHeader = Annotated[str | None, Security(APIKeyHeader(name="X-API-Key", auto_error=False))]


async def require_key(request: Request, bearer: Bearer, header: KeyHeader) -> None:
    """Raise `UnauthorisedError` unless the request has one of the application's keys."""
    check_key(request, request.app.state.keys, bearer, header)


async def require_feedback_right(request: Request) -> None:
    """Raise `NoRightError` if keys are needed and that of the request may not send labels."""
    if request.app.state.keys.needed and not request.state.may_label:
        raise NoRightError(
            f"this API key may not send labels: a key of which this is true has the line "
            f"`KEY NAME {FEEDBACK}`"
        )


async def require_admin_key(request: Request, bearer: Bearer, header: KeyHeader) -> None:
    """Raise `UnauthorisedError` unless the request has one of the keys for /admin."""
    check_key(request, request.app.state.admin_keys, bearer, header)


def check_key(
    request: Request, keys: Keys, bearer: HTTPAuthorizationCredentials | None, header: str | None
) -> None:
    """Put the name of the request's key into its state, or raise `UnauthorisedError`."""
    sent = header if bearer is None else bearer.credentials
    if not sent:
        raise UnauthorisedError(
            "send an API key in the header `Authorization: Bearer KEY` or `X-API-Key: KEY`"
        )
    if (key := keys.find(sent)) is None:
        raise UnauthorisedError("the API key is not one of those that are allowed")
    request.state.key = key.name
    request.state.may_label = key.feedback
