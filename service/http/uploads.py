"""The images in a request's body: files in the form field `images`, or one image as the body."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from taillift.service.problems import (
    BodyTimeoutError,
    BodyTooLargeError,
    EncodedError,
    MalformedError,
)
from taillift.service.tail.sightings import image_digest

FIELD: Final = "images"


@dataclass(frozen=True)
class Upload:
    """One image as it was sent."""

    filename: str | None
    data: bytes

    @cached_property
    def digest(self) -> int:
        """The digest by which a copy of the image is known; takes milliseconds once."""
        return image_digest(self.data)


def body_bytes(request: Request, limit: int) -> int:
    """Return the largest size that the body can have: its Content-Length, or `limit` without one.

    Raises `BodyTooLargeError`, and `EncodedError` if the body is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise EncodedError(
            f"the body is sent with Content-Encoding {encoding[:80]!r}: send it without, as images "
            "are compressed already"
        )
    size = int(request.headers.get("content-length", limit))
    if size > limit:
        raise BodyTooLargeError(f"the body has {size:,} bytes, more than the {limit:,} allowed")
    return size


async def read_uploads(
    request: Request, max_body_bytes: int, max_images: int, seconds: float
) -> list[Upload]:
    """Return the images of a request: at least one, and at most `max_images`.

    Raises `BodyTooLargeError`, `BodyTimeoutError` after `seconds`, and `MalformedError`.
    """
    try:
        async with (
            asyncio.timeout(seconds),
            aclosing(limited_stream(request, max_body_bytes)) as body,
        ):
            if request.headers.get("content-type", "").lower().startswith("multipart/"):
                form = FormParser(request.headers, body, max_body_bytes, max_images)
                return await form.uploads()
            data = b"".join([chunk async for chunk in body])
    except TimeoutError:
        raise BodyTimeoutError(
            f"the body was not complete after {seconds:g} seconds: send smaller or fewer images"
        ) from None
    if not data:
        raise MalformedError(
            "the request has no image: send it as the body, or one or more in the multipart "
            f"field `{FIELD}`"
        )
    return [Upload(None, data)]


async def limited_stream(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of the body; raise `BodyTooLargeError` after `limit` bytes."""
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise BodyTooLargeError(f"the body has more than the {limit:,} bytes allowed")
        yield chunk


class FormParser(MultiPartParser):
    """Parser of a multipart form that keeps files in memory and refuses a truncated form."""

    def __init__(
        self,
        headers: Headers,
        body: AsyncGenerator[bytes, None],
        max_body_bytes: int,
        max_images: int,
    ) -> None:
        super().__init__(headers, self._complete(body), max_files=max_images, max_fields=max_images)
        # The size of the body is limited, and the file system may be read-only: no temporary files.
        self.spool_max_size = max_body_bytes
        self._ended = False

    async def _complete(self, body: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Yield all chunks from the first boundary on.

        Raises `MultiPartException` if the form has not ended by then.
        """
        boundary = parse_options_header(self.headers["content-type"])[1].get(b"boundary", b"")
        delimiter, before, begun = b"\r\n--" + boundary, b"\r\n", False
        async for chunk in body:
            if begun:
                yield chunk
            elif (place := (before := before + chunk).find(delimiter)) >= 0:
                begun = True
                yield before[place + 2 :]
            else:
                before = before[1 - len(delimiter) :]
        if not self._ended:
            raise MultiPartException("It ends before its closing boundary.")

    def on_headers_finished(self) -> None:
        """Take a part for a file if it has a type other than text, even without a filename."""
        part = self._current_part
        kind = dict(part.item_headers).get(b"content-type", b"text/plain").strip().lower()
        if not kind.startswith(b"text/"):
            disposition = part.content_disposition or b""
            if b"filename" not in parse_options_header(disposition)[1]:
                part.content_disposition = disposition + b'; filename=""'
        super().on_headers_finished()

    def on_end(self) -> None:
        self._ended = True

    async def uploads(self) -> list[Upload]:
        """Return the images of the form; raise `MalformedError` if it holds anything else."""
        try:
            form = await self.parse()
        except MultiPartException as error:
            raise MalformedError(f"the form cannot be read: {error.message}") from error
        except UnicodeError as error:
            raise MalformedError(
                "the form cannot be read: it is not in the charset that it names"
            ) from error
        uploads = []
        try:
            for name, part in form.multi_items():
                if name != FIELD:
                    field = checked_text(name, "a field's name")
                    raise MalformedError(
                        f"unknown form field `{field[:80]}`: images go into `{FIELD}`"
                    )
                if isinstance(part, str):
                    raise MalformedError(
                        f"the form field `{FIELD}` holds text, not a file (curl: -F {FIELD}=@FILE)"
                    )
                filename = checked_text(part.filename or "", "a file's name")
                uploads.append(Upload(filename or None, await part.read()))
        finally:
            await form.close()
        if not uploads:
            raise MalformedError(f"the form has no image: send one or more in the field `{FIELD}`")
        return uploads


def checked_text(text: str, what: str) -> str:
    """Return `text`; raise `MalformedError` if it has half a surrogate pair.

    No answer could repeat such a text, because UTF-8 cannot encode it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedError(f"{what} is not valid text") from error
    return text
