"""The API keys that open the service, and the question for one."""

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
from taillift.service.problems import UnauthorisedError
from taillift.service.settings import Settings

logger = logging.getLogger(__name__)

# Shorter ones can be guessed.
MIN_LENGTH: Final = 16


@dataclass(frozen=True)
class Key:
    """A key is kept as its SHA-256, so that neither a log nor a dump of the memory shows it."""

    digest: bytes
    name: str | None


class Keys:
    """The keys of `given`, separated by commas, and those that `file` holds at the moment.

    Each is one line (or part) `KEY` or `KEY NAME`; what follows a # is not read. Raises
    `UserError` where `given` or `file` holds no key, or something else.
    """

    def __init__(self, given: str | None, file: Path | None) -> None:
        self._given = [] if given is None else read_keys(given.split(","), "TAILLIFT_KEYS")
        self._file = file
        self._version = _version(file)
        self._filed = [] if file is None else _read_file(file)

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
        digest, match = _digest(sent), None
        for key in (*self._given, *self._filed):
            if hmac.compare_digest(key.digest, digest):
                match = key
        return match

    def _reload(self) -> None:
        """Read a file that has changed; where it is wrong now, the keys stay as they were."""
        version = _version(self._file)
        if self._file is None or version == self._version:
            return
        self._version = version
        try:
            self._filed = _read_file(self._file)
        except UserError as error:
            logger.error("%s; the keys stay as they were", error)
        else:
            names = ", ".join(key.name or "without a name" for key in self._filed)
            logger.warning("%s has changed: %d keys (%s)", self._file, len(self._filed), names)


def read_keys(lines: Iterable[str], where: str) -> Sequence[Key]:
    """Raises `UserError` with `where` they are from; it shows no part of a key."""
    keys = [
        _read_key(words, f"{where}, key {number}")
        for number, line in enumerate(lines, 1)
        if (words := line.partition("#")[0].split(maxsplit=1))
    ]
    if not keys:
        raise UserError(f"{where} holds no API key: add one, or leave the setting out")
    return keys


def _read_key(words: Sequence[str], where: str) -> Key:
    key = words[0]
    if len(key) < MIN_LENGTH or not key.isascii():
        raise UserError(
            f"{where}: an API key has at least {MIN_LENGTH} characters, all ASCII; make one with "
            "`openssl rand -hex 32`"
        )
    return Key(_digest(key), words[1].strip() if len(words) > 1 else None)


def _read_file(file: Path) -> Sequence[Key]:
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"the API keys in {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UserError(f"the API keys in {file} cannot be read: it is not UTF-8") from None
    return read_keys(text.splitlines(), str(file))


def _version(file: Path | None) -> Sequence[int] | None:
    """Differs whenever the file has been written or replaced; None where it is not there."""
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return found and (found.st_mtime_ns, found.st_size, found.st_ino)


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()


async def require_key(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))],
    header: Annotated[str | None, Security(APIKeyHeader(name="X-API-Key", auto_error=False))],
) -> None:
    """Let a request pass that has one of the application's keys; raises `UnauthorisedError`."""
    keys: Keys = request.app.state.keys
    sent = header if bearer is None else bearer.credentials
    if not sent:
        raise UnauthorisedError(
            "send an API key in the header `Authorization: Bearer KEY` or `X-API-Key: KEY`"
        )
    if (key := keys.find(sent)) is None:
        raise UnauthorisedError("the API key is none of those that are allowed")
    request.state.key = key.name
