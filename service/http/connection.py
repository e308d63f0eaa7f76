"""One client's connection: how many there may be, how large their headers, and how slow they."""

from asyncio import TimerHandle, Transport
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from taillift.service.http.access_log import (
    REQUEST_ID,
    VALID_ID,
    AccessRecord,
    log_access,
    new_request_id,
)
from taillift.service.http.handlers import respond
from taillift.service.http.middleware import HEADERS
from taillift.service.logs import request_id
from taillift.service.monitoring.counters import Metrics
from taillift.service.problems import (
    HeadersTooLargeError,
    HeaderTimeoutError,
    MalformedError,
    ServiceError,
    TooManyConnectionsError,
)
from taillift.service.settings import Settings

# For a refused client to read why, before a reset meets what it still sends.
LINGER_SECONDS: Final = 2

Awaited = Literal["head", "rest", "reader", "end"]


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for a head and for a slow reader for ever.

    A body has its limits where it is read (`service.upload`). Here are those of the head, of what
    is left of a body when its request has been answered, and of an answer that is not taken.
    """

    def __init__(self, settings: Settings, metrics: Metrics, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._settings = settings
        self._metrics = metrics
        self._timers: dict[Awaited, TimerHandle] = {}
        self._in_head = True
        self._refused = False
        self._use_request_id(new_request_id())
        self._start_head()

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        most = self._settings.max_connections
        # Who watches has to see a service that is full.
        watched = self.server is not None and self.server[1] == self._settings.metrics_port
        if len(self.connections) > most and not watched:
            self._refuse(TooManyConnectionsError(f"{most} connections are open already"))
            self.transport.close()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for awaited in tuple(self._timers):
            self._came(awaited)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._await_head()
        request_id.set(self._request_id)
        whole = self._begun
        super().data_received(data)
        if whole and self._in_head and self._begun:
            # The parser tells of a header once it is whole, and this one may never be.
            self._fed += len(data)
            if self._fed > self._settings.max_header_bytes:
                self._refuse(self._too_large())

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._came("reader")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._use_request_id(new_request_id())
        self._start_head()
        self._begun = True
        self._await_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._bytes += len(name) + len(value)
        self._lines += 1
        if self._in_head:
            if name.lower() == b"x-request-id" and VALID_ID.fullmatch(value):
                self._use_request_id(value.decode("ascii"))
        elif self._head_is_too_large():
            self.transport.abort()  # These are trailers: the request is already being answered.

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._came("head")
        if self._refused:
            return  # What came in one piece with the refused request is parsed all the same.
        if self._head_is_too_large():
            self._refuse(self._too_large())
        else:
            self.scope["state"]["request_id"] = self._request_id
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()
        self._in_head = True
        self._start_head()
        self._came("rest")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head:
            self._await("rest", self._settings.body_seconds, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedError(msg))

    def _use_request_id(self, value: str) -> None:
        self._request_id = value
        request_id.set(value)

    def _start_head(self) -> None:
        self._begun = False
        self._since = self.loop.time()
        self._bytes = self._lines = self._fed = 0

    def _head_is_too_large(self) -> bool:
        settings = self._settings
        return self._bytes > settings.max_header_bytes or self._lines > settings.max_headers

    def _too_large(self) -> HeadersTooLargeError:
        settings = self._settings
        return HeadersTooLargeError(
            f"a request has at most {settings.max_headers} headers of {settings.max_header_bytes:,}"
            " bytes in all"
        )

    def _await_head(self) -> None:
        if "head" not in self._timers:
            self._await("head", self._settings.header_seconds, self._end_head)

    def _end_head(self) -> None:
        if self._begun:
            seconds = self._settings.header_seconds
            self._refuse(HeaderTimeoutError(f"they were not complete after {seconds:g} seconds"))
        elif self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _await_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._await("reader", self._settings.body_seconds, lambda: self._end_reader(left))

    def _end_reader(self, before: int) -> None:
        """`before` are the bytes that were left when the client was last seen to read."""
        if self.transport.get_write_buffer_size() < before:
            self._await_reader()
        else:
            self.transport.abort()

    def _refuse(self, problem: ServiceError) -> None:
        """Answer what cannot become a request, and take no more from this connection."""
        if self._refused:
            return
        self._refused = True
        self._came("head")
        self._metrics.rejected(problem.reason)
        if self.cycle is not None and not self.cycle.response_complete:
            # Requests before this one are being answered; the last of them closes the connection.
            self.cycle.keep_alive = False
            return
        request_id.set(self._request_id)
        headers = {"Connection": "close", REQUEST_ID: self._request_id, **HEADERS}
        answer = respond(problem.document(), problem.status, {**headers, **(problem.headers or {})})
        lines = [b"HTTP/1.1 %d %s" % (problem.status, HTTPStatus(problem.status).phrase.encode())]
        lines += [b"%s: %s" % header for header in answer.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.write_eof()
        record = AccessRecord(
            method=None,
            path=self.url.partition(b"?")[0].decode("latin-1") if self._begun else None,
            status=problem.status,
            seconds=self.loop.time() - self._since,
            bytes_in=0,
            bytes_out=len(answer.body),
            client=self.client and self.client[0],
        )
        log_access(record, self._settings.access_log)
        self._await("end", LINGER_SECONDS, self.transport.abort)

    def _await(self, awaited: Awaited, seconds: float, otherwise: Callable[[], object]) -> None:
        self._came(awaited)
        self._timers[awaited] = self.loop.call_later(seconds, otherwise)

    def _came(self, awaited: Awaited) -> None:
        if (timer := self._timers.pop(awaited, None)) is not None:
            timer.cancel()
