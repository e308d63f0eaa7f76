"""One request over one connection, sent as slowly or brokenly as its kind says."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from tests.chaos.requests import Request

HOST: Final = "127.0.0.1"
SECONDS: Final = 60


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass
class Exchange:
    """One exchange: `sent` is the time of the last byte; `reply` is None if no whole one came.

    `trouble` says why there is none.
    """

    sent: float | None = None
    reply: Reply | None = None
    trouble: str = ""
    began: float = field(default_factory=monotonic)
    ended: float = 0.0


async def exchange(request: Request, port: int) -> Exchange:
    """Send `request` and wait for its answer, or leave as it says."""
    done = Exchange()
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        done.trouble = "the connection was refused"
    else:
        await _converse(request, reader, writer, done)
    done.ended = monotonic()
    return done


async def _converse(
    request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, done: Exchange
) -> None:
    # From the start: a refusal may come while the body is still being sent.
    reply = asyncio.create_task(_reply(reader))
    try:
        async with asyncio.timeout(SECONDS):
            await _send(request, writer, reply, done)
            if request.leave:
                await asyncio.sleep(request.pause)
            else:
                done.reply = await reply
    except TimeoutError:
        done.trouble = f"nothing came within {SECONDS} seconds"
    except (OSError, EOFError, ValueError) as error:
        done.trouble = f"{type(error).__name__}: {error}"
    finally:
        reply.cancel()
        writer.transport.abort()
        await asyncio.wait({reply})


async def _send(
    request: Request,
    writer: asyncio.StreamWriter,
    reply: asyncio.Task[Reply],
    done: Exchange,
) -> None:
    try:
        writer.write(request.head)
        for place, part in enumerate(request.parts):
            if place:
                await asyncio.wait({reply}, timeout=request.pause)
            if reply.done():
                return
            writer.write(part)
            await writer.drain()
        if request.leave != "while sending":
            done.sent = monotonic()
    except OSError:
        # The service may have refused and hung up. Then the reply is there, or the trouble known.
        return


async def _reply(reader: asyncio.StreamReader) -> Reply:
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = text.rstrip("\r\n").split("\r\n")
    fields = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in fields}
    body = await reader.readexactly(int(headers["content-length"]))
    return Reply(int(first.split()[1]), headers, body)
