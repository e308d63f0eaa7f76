"""The one who waits for an answer, or no longer does."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from taillift.service.inference.admission import Reservation

T = TypeVar("T")


def held(request: Request, hold: Reservation) -> Request:
    """The request, its body held by `hold` as it comes.

    Reading it raises `OverloadedError`.
    """

    async def receive() -> Message:
        message = await request.receive()
        hold.grow(len(message.get("body", b"")))
        return message

    return Request(request.scope, receive)


async def while_connected(request: Request, work: Coroutine[None, None, T]) -> T:
    """The outcome of `work`; where the client goes away first, it is cancelled.

    The body must have been read. Raises `ClientDisconnect`.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
