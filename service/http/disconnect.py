"""Clients that go away: their work is cancelled, and their bodies are reserved as they come."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from taillift.service.inference.admission import Reservation

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
