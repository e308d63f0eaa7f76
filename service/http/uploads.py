"""The images in a request's body: `images` of a form, or the body itself."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from taillift.service.problems import BodyTimeoutError, BodyTooLargeError, MalformedError

FIELD: Final = "images"


@dataclass(frozen=True)
class Upload:
    """One image as it was sent."""

    filename: str | None
    data: bytes


def body_bytes(request: Request, limit: int) -> int:
    """The most bytes that the body can have: Content-Length, or `limit` where there is none.

    Raises `BodyTooLargeError`.
    """
    size = int(request.headers.get("content-length", limit))
    if size > limit:
        raise BodyTooLargeError(f"the body has {size:,} bytes, more than the {limit:,} allowed")
    return size


async def read_uploads(
    request: Request, max_body_bytes: int, max_images: int, seconds: float
) -> list[Upload]:
    """At least one image and at most `max_images`.

    Raises `BodyTooLargeError`, `BodyTimeoutError` after `seconds` and `MalformedError`.
    """
    try:
        async with (
            asyncio.timeout(seconds),
            aclosing(_bounded(request, max_body_bytes)) as body,
        ):
            if request.headers.get("content-type", "").lower().startswith("multipart/"):
                return await _form(_Parser(request.headers, body, max_body_bytes, max_images))
            return [await _image(body)]
    except TimeoutError:
        raise BodyTimeoutError(
            f"the body was not complete after {seconds:g} seconds: send smaller or fewer images"
        ) from None


async def _bounded(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise BodyTooLargeError(f"the body has more than the {limit:,} bytes allowed")
        yield chunk


async def _image(body: AsyncGenerator[bytes, None]) -> Upload:
    data = b"".join([chunk async for chunk in body])
    if not data:
        raise MalformedError(
            "the request has no image: send it as the body, or one or more in the multipart "
            f"field `{FIELD}`"
        )
    return Upload(None, data)


class _Parser(MultiPartParser):
    """Keeps files in memory and refuses a form that breaks off."""

    def __init__(
        self,
        headers: Headers,
        body: AsyncGenerator[bytes, None],
        max_body_bytes: int,
        max_images: int,
    ) -> None:
        super().__init__(headers, self._whole(body), max_files=max_images, max_fields=max_images)
        # The body is bounded, and the file system may be read-only: no temporary files.
        self.spool_max_size = max_body_bytes
        self._ended = False

    async def _whole(self, body: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in body:
            yield chunk
        if not self._ended:
            raise MultiPartException("It ends before its closing boundary.")

    def on_end(self) -> None:
        self._ended = True


async def _form(parser: _Parser) -> list[Upload]:
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise MalformedError(f"the form cannot be read: {error.message}") from error
    except UnicodeError as error:
        raise MalformedError("the form cannot be read in the charset that it names") from error
    try:
        uploads = [await _upload(name, part) for name, part in form.multi_items()]
    finally:
        await form.close()
    if not uploads:
        raise MalformedError(f"the form has no image: send one or more in the field `{FIELD}`")
    return uploads


async def _upload(name: str, part: UploadFile | str) -> Upload:
    if name != FIELD:
        field = _sendable(name, "a field's name")
        raise MalformedError(f"unknown form field `{field[:80]}`: images go into `{FIELD}`")
    if isinstance(part, str):
        raise MalformedError(
            f"the form field `{FIELD}` holds text, not a file (curl: -F {FIELD}=@FILE)"
        )
    return Upload(_sendable(part.filename or "", "a file's name") or None, await part.read())


def _sendable(text: str, what: str) -> str:
    """Raises `MalformedError` for half a character, which no answer can repeat."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedError(f"{what} is no text") from error
    return text
