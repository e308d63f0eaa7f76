"""The images in a request's body: `images` of a form, or the body itself."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import BodyTooLargeError, MalformedError

FIELD: Final = "images"


@dataclass(frozen=True)
class Upload:
    """One image as it was sent."""

    filename: str | None
    data: bytes


async def read_uploads(request: Request, max_body_bytes: int, max_images: int) -> list[Upload]:
    """At least one image and at most `max_images`.

    Raises `BodyTooLargeError`, before reading where Content-Length says so and while reading
    where it does not, and `MalformedError`.
    """
    async with aclosing(_bounded(request, max_body_bytes)) as body:
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            return await _form(_Parser(request.headers, body, max_body_bytes, max_images))
        return [await _image(body)]


async def _bounded(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    declared = int(request.headers.get("content-length", 0))
    if declared > limit:
        raise BodyTooLargeError(f"the body has {declared:,} bytes, more than the {limit:,} allowed")
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
    try:
        uploads = [await _upload(name, part) for name, part in form.multi_items()]
    finally:
        await form.close()
    if not uploads:
        raise MalformedError(f"the form has no image: send one or more in the field `{FIELD}`")
    return uploads


async def _upload(name: str, part: UploadFile | str) -> Upload:
    if name != FIELD:
        raise MalformedError(f"unknown form field `{name[:80]}`: images go into `{FIELD}`")
    if isinstance(part, str):
        raise MalformedError(
            f"the form field `{FIELD}` holds text, not a file (curl: -F {FIELD}=@FILE)"
        )
    return Upload(part.filename or None, await part.read())
