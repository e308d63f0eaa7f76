"""A request's body: images in the form field `images`, one image, or a JSON document.

And a client that goes away before the answer.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import ClientDisconnect
from starlette.types import Message

from taillift.service.http.multipart import form_boundary, form_parts
from taillift.service.inference.admission import Reservation
from taillift.service.problems import (
    BodyTimeoutError,
    BodyTooLargeError,
    EncodedError,
    MalformedError,
)
from taillift.service.tail.dependence import image_digest

FIELD: Final = "images"
# Members of an object in a document. Each that is not known would become an error with a text.
MAX_MEMBERS: Final = 100


@dataclass(frozen=True)
class Upload:
    """One image as it was sent."""

    filename: str | None
    data: bytes

    @cached_property
    def digest(self) -> int:
        """The digest by which a copy of the image is known; takes milliseconds once."""
        return image_digest(self.data)


class SentObject(BaseModel):
    """An object in a JSON document of a client: nothing that is not known is passed over."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def check_size(cls, members: Any) -> Any:
        """Refuse an object with too many members before any of them is looked at."""
        if isinstance(members, dict) and len(members) > MAX_MEMBERS:
            raise PydanticCustomError("members", f"an object has more than {MAX_MEMBERS} members")
        return members


Document = TypeVar("Document", bound=SentObject)


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
    content_type = request.headers.get("content-type", "")
    if content_type.lower().startswith("multipart/"):
        async with body_stream(request, max_body_bytes, seconds) as body:
            return await form_images(body, form_boundary(content_type), max_images)
    data = await read_body(request, max_body_bytes, seconds)
    if not data:
        raise MalformedError(
            "the request has no image: send it as the body, or one or more in the multipart "
            f"field `{FIELD}`"
        )
    return [Upload(None, data)]


async def read_body(request: Request, max_body_bytes: int, seconds: float) -> bytes:
    """Return the whole body; raises `BodyTooLargeError`, and `BodyTimeoutError` after `seconds`."""
    data = BytesIO()
    async with body_stream(request, max_body_bytes, seconds) as body:
        async for chunk in body:
            data.write(chunk)
    return data.getvalue()


async def read_document(
    request: Request, document: type[Document], max_bytes: int, seconds: float
) -> Document:
    """Return the JSON document of a request.

    Its lists should fail fast: then there are few errors, whatever a client sends. Raises
    `MalformedError` with the first, `BodyTooLargeError`, `EncodedError`, and `BodyTimeoutError`
    after `seconds`.
    """
    body_bytes(request, max_bytes)
    content = await read_body(request, max_bytes, seconds)
    try:
        # Strictly: true is not the number 1, nor is 1.0 or "1".
        return await asyncio.to_thread(document.model_validate_json, content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the body"
        raise MalformedError(f"{place[:80]}: {first['msg'][:200]}") from None


@asynccontextmanager
async def body_stream(
    request: Request, max_body_bytes: int, seconds: float
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Yield the chunks of the body, of which reading raises `BodyTooLargeError`.

    Raises `BodyTimeoutError` if the block takes longer than `seconds`.
    """
    try:
        async with (
            asyncio.timeout(seconds),
            aclosing(limited_stream(request, max_body_bytes)) as body,
        ):
            yield body
    except TimeoutError:
        raise BodyTimeoutError(
            f"the body was not complete after {seconds:g} seconds: send a smaller one"
        ) from None


async def limited_stream(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of the body; raise `BodyTooLargeError` after `limit` bytes."""
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise BodyTooLargeError(f"the body has more than the {limit:,} bytes allowed")
        yield chunk


async def form_images(body: AsyncIterator[bytes], boundary: bytes, max_images: int) -> list[Upload]:
    """Return the images of a form; raises `MalformedError` if it holds anything else."""
    uploads: list[Upload] = []
    async with aclosing(form_parts(body, boundary)) as parts:
        async for part in parts:
            if part.name != FIELD:
                raise MalformedError(
                    f"unknown form field `{part.name[:80]}`: images go into `{FIELD}`"
                )
            if part.filename is None:
                raise MalformedError(
                    f"the form field `{FIELD}` holds text, not a file (curl: -F {FIELD}=@FILE)"
                )
            if len(uploads) == max_images:
                raise MalformedError(f"the form has more than the {max_images} images allowed")
            uploads.append(Upload(part.filename or None, part.data))
    if not uploads:
        raise MalformedError(f"the form has no image: send one or more in the field `{FIELD}`")
    return uploads


T = TypeVar("T")


def reserving_body(request: Request, reservation: Reservation) -> Request:
    """Return the request with a body that extends `reservation` as it comes.

    Reading it raises `OverloadedError`.
    """

    async def receive() -> Message:
        message = await request.receive()
        reservation.extend(len(message.get("body", b"")))
        return message

    return Request(request.scope, receive)


async def while_connected(request: Request, work: Coroutine[None, None, T]) -> T:
    """Return the result of `work`; if the client goes away first, cancel it.

    The body must have been read. Raises `ClientDisconnect`.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})
