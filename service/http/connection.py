"""One client's connection, with limits on the number, size and slowness that uvicorn accepts."""

from asyncio import TimerHandle, Transport
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from taillift.service.http.access_log import (
    REQUEST_ID,
    REQUEST_ID_BYTES,
    VALID_ID,
    AccessRecord,
    log_access,
    new_request_id,
)
from taillift.service.http.handlers import respond
from taillift.service.http.middleware import HEADERS
from taillift.service.monitoring.counters import Metrics
from taillift.service.monitoring.logs import request_id
from taillift.service.problems import (
    HeadersTooLargeError,
    HeaderTimeoutError,
    MalformedError,
    ServiceError,
    TooManyConnectionsError,
)
from taillift.service.settings import Settings

# Time for a refused client to read the answer: an earlier reset would discard it if the client is
# still sending.
LINGER_SECONDS: Final = 2

# What a timer waits for: the head of a request (its first line and headers), the rest of a body
# whose request has been answered, a client that reads its answer, the end of a refused connection.
Awaited = Literal["head", "rest", "reader", "end"]


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, which alone would wait for ever for a head and for a slow reader.

    The limits of a body are in `uploads`, where it is read. Here are those of the head, of the rest
    of a body whose request has been answered, and of an answer that the client does not read. The
    id of each request is decided here too, because a head that is refused needs one.
    """

    def __init__(self, settings: Settings, metrics: Metrics, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._settings = settings
        self._metrics = metrics
        self._timers: dict[Awaited, TimerHandle] = {}
        self._in_head = True
        self._refused = False
        self._request_id = new_request_id()
        self._reset_head()

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limit = self._settings.max_connections
        # Prometheus must be able to see that the service is full.
        on_metrics_port = self.server and self.server[1] == self._settings.metrics_port
        if len(self.connections) > limit and not on_metrics_port:
            self._refuse(TooManyConnectionsError(f"{limit} connections are already open"))
            self.transport.close()
        else:
            self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        for awaited in tuple(self._timers):
            self._stop_timer(awaited)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._start_head_timer()
        # For what uvicorn logs: this callback may run in the context of an earlier request.
        request_id.set(self._request_id)
        in_progress = self._head_begun
        super().data_received(data)
        if in_progress and self._in_head and self._head_begun:
            # The parser reports a header only when it is complete, and this one may never be.
            self._bytes_fed += len(data)
            if self._bytes_fed > self._settings.max_header_bytes:
                self._refuse_large_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_reader_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_timer("reader")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._request_id = new_request_id()
        request_id.set(self._request_id)
        self._reset_head()
        self._head_begun = True
        self._start_head_timer()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        self._head_lines += 1
        if self._in_head:
            if name.lower() == REQUEST_ID_BYTES and VALID_ID.fullmatch(value):
                self._request_id = value.decode("ascii")
                request_id.set(self._request_id)
        elif self._head_is_too_large():
            self.transport.abort()  # These are trailers: the request is already being answered.

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer("head")
        if self._refused:
            return  # The parser goes on with what came in the same read as the refused request.
        if self._head_is_too_large():
            self._refuse_large_head()
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
        self._reset_head()
        self._stop_timer("rest")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head:
            self._start_timer("rest", self._settings.body_seconds, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedError(msg))

    def _reset_head(self) -> None:
        self._head_begun = False
        self._head_since = self.loop.time()
        self._head_bytes = self._head_lines = self._bytes_fed = 0

    def _head_is_too_large(self) -> bool:
        settings = self._settings
        return (
            self._head_bytes > settings.max_header_bytes or self._head_lines > settings.max_headers
        )

    def _refuse_large_head(self) -> None:
        settings = self._settings
        self._refuse(
            HeadersTooLargeError(
                f"a request may have at most {settings.max_headers} headers with "
                f"{settings.max_header_bytes:,} bytes in total"
            )
        )

    def _refuse(self, problem: ServiceError) -> None:
        """Answer what cannot become a request, and read no more from this connection."""
        if self._refused:
            return
        self._refused = True
        self._stop_timer("head")
        self._metrics.count_rejection(problem.reason)
        if self.cycle is not None and not self.cycle.response_complete:
            # Earlier requests are being answered; the last of them closes the connection.
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
            path=self.url.partition(b"?")[0].decode("latin-1") if self._head_begun else None,
            status=problem.status,
            seconds=self.loop.time() - self._head_since,
            bytes_in=0,
            bytes_out=len(answer.body),
            client=self.client and self.client[0],
        )
        log_access(record, self._settings.access_log)
        self._start_timer("end", LINGER_SECONDS, self.transport.abort)

    def _start_head_timer(self) -> None:
        """Allow `header_seconds` for the head from now on, unless the timer is running."""

        def expire() -> None:
            if self._head_begun:
                self._refuse(
                    HeaderTimeoutError(f"they were not complete after {seconds:g} seconds")
                )
            elif self.cycle is None or self.cycle.response_complete:
                self.transport.close()

        seconds = self._settings.header_seconds
        if "head" not in self._timers:
            self._start_timer("head", seconds, expire)

    def _start_reader_timer(self) -> None:
        """Abort the connection when the client reads nothing for `body_seconds`."""
        unread = self.transport.get_write_buffer_size()

        def expire() -> None:
            if self.transport.get_write_buffer_size() < unread:
                self._start_reader_timer()
            else:
                self.transport.abort()

        self._start_timer("reader", self._settings.body_seconds, expire)

    def _start_timer(self, awaited: Awaited, seconds: float, expire: Callable[[], object]) -> None:
        self._stop_timer(awaited)
        self._timers[awaited] = self.loop.call_later(seconds, expire)

    def _stop_timer(self, awaited: Awaited) -> None:
        if (timer := self._timers.pop(awaited, None)) is not None:
            timer.cancel()
