"""One client's connection: its framing, its limits, and how it begins and ends."""

from asyncio import TimerHandle, Transport
from collections.abc import Callable
from http import HTTPStatus
from socket import SO_ERROR, SOL_SOCKET
from typing import Any, Final, Literal

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from taillift.service.http.access import is_host
from taillift.service.http.handlers import respond
from taillift.service.http.middleware import HEADERS, PROBLEM
from taillift.service.monitoring.counters import Metrics
from taillift.service.monitoring.logs import (
    REQUEST_ID,
    REQUEST_ID_BYTES,
    VALID_ID,
    AccessRecord,
    log_access,
    new_request_id,
    request_id,
)
from taillift.service.problems import (
    HeadersTooLargeError,
    HeaderTimeoutError,
    MalformedError,
    ServiceError,
    TooManyConnectionsError,
    UnknownCodingError,
    UnknownVersionError,
)
from taillift.service.settings import Settings

# A client that is still sending when its connection ends would lose the answer to a reset. It is
# read on until it has sent nothing for so long.
LINGER_SECONDS: Final = 5
# Refused connections that may be read on like this, as a share of those that are served.
LINGERING: Final = 0.1
# Only the parser knows the end of a chunked body, so it gets one in pieces: at most the requests
# in one piece are parsed before their turn.
CHUNKED_PIECE: Final = 1024
# Every answer begins like this.
ANSWER_START: Final = b"HTTP/1.1 "
GONE_SECONDS: Final = 0.05
# Chunks of a body that may have any size; more have a least size in bytes on average, because each
# costs the event loop the same.
FREE_CHUNKS: Final = 10_000
LEAST_CHUNK: Final = 64
PARSER_VERSION_ERRORS: Final = ("Invalid HTTP version", "Pause on PRI/Upgrade")

# The end of a request's head (its first line and headers), the rest of a body whose request has
# been answered, a client that reads its answer, one that has closed its side, one that is silent.
Awaited = Literal["head", "rest", "reader", "gone", "silence"]


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with one request at a time and a limit on everything that is awaited.

    uvicorn alone would wait for ever for a head and for a slow reader, parse whatever is
    pipelined, lose a body that comes with an offer to upgrade, and close while a client sends.

    The limits of a body are in `uploads`, where it is read. Here are those of the head, of the rest
    of a body whose request has been answered, and of an answer that the client does not read. The
    id of each request is decided here too, because a head that is refused needs one.
    """

    flow: "HeldFlow"

    def __init__(self, settings: Settings, metrics: Metrics, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._settings = settings
        self._metrics = metrics
        self._timers: dict[Awaited, TimerHandle] = {}
        self._unparsed = bytearray()
        self._in_head = True
        self._body_left = 0  # Of a body whose length is known.
        self._offers_upgrade = False
        self._deaf = False  # What comes from now on is thrown away.
        self._leaving = False
        self._half_closed = False
        self._opening = b""  # The first five bytes of a head: the parser may not know its method.
        self._answer_begun = False  # ANSWER_START has been sent before the rest of the answer.
        self._request_id = new_request_id()
        self._reset_head()

    # What asyncio calls

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = HeldFlow(transport)
        limit = self._settings.max_connections
        # Prometheus must be able to see that the service is full.
        on_metrics_port = self.server and self.server[1] == self._settings.metrics_port
        if len(self.connections) > limit and not on_metrics_port:
            self._refuse(TooManyConnectionsError(f"{limit} connections are already open"))
            if len(self.connections) > (1 + LINGERING) * limit:
                self.transport.close()
        else:
            self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = self._leaving = True
        for awaited in tuple(self._timers):
            self._stop_timer(awaited)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._deaf:
            self._unparsed += data
            self._parse()
        elif self._leaving:
            self._start_timer("silence", LINGER_SECONDS, self.transport.abort)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Go on with a request whose client has closed its own side only, and end otherwise."""
        if self._leaving or not self._answer_is_pending():
            return False
        self._half_closed = True
        if not self.cycle.response_started and not self.pipeline:
            # A client that is gone answers this with a reset, and then its work can be dropped.
            self.transport.write(ANSWER_START)
            self._answer_begun = True
        self._watch_half_closed()
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_reader_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_timer("reader")

    def shutdown(self) -> None:
        super().shutdown()
        if self._leaving:
            self._start_timer("rest", LINGER_SECONDS, self.transport.abort)

    # What the parser calls

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
        self._head_bytes += len(name) + len(value)
        self._head_lines += 1
        if not self._in_head:
            # A trailer, which no one needs: as a header it could pass by a proxy that checks those.
            if self._head_is_too_large():
                self._refuse(self._too_large())
            return
        super().on_header(name, value)
        if name.lower() == REQUEST_ID_BYTES and VALID_ID.fullmatch(value):
            self._request_id = value.decode("ascii")
            request_id.set(self._request_id)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._bytes_fed = 0
        self._stop_timer("head")
        self._offers_upgrade = self.parser.should_upgrade()
        if self._deaf or self._offers_upgrade:
            return
        if (problem := self._head_problem()) is not None:
            self._refuse(problem)
            return
        self._body_left = int(dict(self.headers).get(b"content-length", 0))
        # RFC 9110, 10.1.1: a client of HTTP/1.0 would take 100 for its answer.
        self.expect_100_continue &= self.parser.get_http_version() != "1.0"
        self.scope["state"]["request_id"] = self._request_id
        super().on_headers_complete()
        self.cycle.transport = AnswerTransport(self)

    def on_body(self, body: bytes) -> None:
        self._body_left = max(0, self._body_left - len(body))  # It stays 0 for chunks.
        self._body_bytes += len(body)
        self._bytes_fed = 0
        if not self._deaf:
            super().on_body(body)

    def on_chunk_header(self) -> None:
        self._bytes_fed = 0
        self._chunks += 1
        if self._chunks > max(FREE_CHUNKS, self._body_bytes / LEAST_CHUNK + 1):
            self._refuse(
                MalformedError(
                    f"the body comes in more than {FREE_CHUNKS:,} chunks of fewer than "
                    f"{LEAST_CHUNK} bytes on average: send larger chunks, or a Content-Length"
                )
            )

    def on_message_complete(self) -> None:
        if not self._deaf and not self._offers_upgrade:
            super().on_message_complete()
        self._in_head = True
        self._opening = b""
        self._reset_head()
        self._stop_timer("rest")

    # What an answer calls

    def write(self, data: bytes) -> None:
        """Write a part of an answer, without the start that has already been sent."""
        if self._answer_begun:
            self._answer_begun = False
            data = data.removeprefix(ANSWER_START)
        self.transport.write(data)

    def leave(self) -> None:
        """Close the connection once its answer is sent; if the client still sends, read on."""
        if self._leaving:
            return
        self._deaf = self._leaving = True
        if self._in_head and not self._head_begun and not self._unparsed:
            self.transport.close()
        else:
            self._linger()

    @property
    def is_leaving(self) -> bool:
        return self._leaving or self.transport.is_closing()

    def on_response_complete(self) -> None:
        if self.is_leaving:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if not self._in_head:
            self._start_timer("rest", self._settings.body_seconds, self.transport.abort)
        self._parse()
        if self._half_closed and not self._answer_is_pending():
            self.transport.close()

    # Parsing

    def _parse(self) -> None:
        """Parse what has come, up to the end of a request that is not answered yet."""
        if self._unparsed:
            self._unset_keepalive_if_required()
        # For what uvicorn logs: this may run in the context of an earlier request.
        request_id.set(self._request_id)
        while self._unparsed and not self._deaf and not self._answer_is_pending():
            size = self._piece_size()
            piece = bytes(self._unparsed[:size])
            del self._unparsed[:size]
            self._feed(piece)
        if self._deaf:
            self._unparsed.clear()
        self.flow.hold(len(self._unparsed) > HIGH_WATER_LIMIT)

    def _answer_is_pending(self) -> bool:
        """Tell whether a request has come completely and has no complete answer yet."""
        return self._in_head and self.cycle is not None and not self.cycle.response_complete

    def _piece_size(self) -> int:
        """Return how many bytes can be parsed without parsing a second request as well."""
        if self._in_head:
            # Empty lines before a head are read with it: a piece for each pair would be slow.
            size = len(self._unparsed)
            start = 0 if self._head_begun else size - len(self._unparsed.lstrip(b"\r\n"))
            end = self._unparsed.find(b"\r\n\r\n", start)
            return size if end < 0 else end + 4
        return self._body_left or CHUNKED_PIECE

    def _feed(self, data: bytes) -> None:
        if self._in_head:
            self._start_head_timer()
            self._opening = (self._opening + data).lstrip(b"\r\n")[:5]
        else:
            self._bytes_fed += len(data)
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except HttpParserError as error:
            self.logger.warning("Invalid HTTP request received.")
            if str(error) in PARSER_VERSION_ERRORS:
                self._refuse(UnknownVersionError("the service speaks HTTP/1.1 and HTTP/1.0"))
            elif isinstance(error, HttpParserCallbackError):
                self._refuse(
                    MalformedError("the request's address or its Content-Length cannot be read")
                )
            else:
                self._refuse(MalformedError(f"this is not HTTP/1.1: {error}"))
        # The parser reports a header, a trailer or a chunk's line when it is complete, and this one
        # may never be.
        if self._in_head and self._head_begun:
            self._bytes_fed += len(data)
        if self._bytes_fed > self._settings.max_header_bytes:
            self._refuse(self._too_large())

    def _decline_upgrade(self, rest: bytes) -> None:
        """Parse a request again without its offer to change the protocol (RFC 9110, 7.8).

        The parser takes all that follows such an offer for another protocol.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version()
        self._offers_upgrade = False
        if method == b"CONNECT":
            self._refuse(MalformedError("the service is not a proxy: CONNECT is not for it"))
            return
        lines = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
        lines += [b"%s: %s" % pair for pair in self.headers if pair[0] != b"upgrade"]
        self._unparsed[:0] = b"\r\n".join([*lines, b"", rest])
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _head_problem(self) -> ServiceError | None:
        """Return why a complete head cannot become a request; None if it can."""
        if self._head_is_too_large():
            return self._too_large()
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            return UnknownVersionError(f"the service speaks HTTP/1.1 and HTTP/1.0, not {version}")
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            return MalformedError(f"a request has one header Host, and this one has {len(hosts)}")
        if hosts and not is_host(hosts[0]):
            return MalformedError("the header Host is not a host with or without a port")
        fields = [value for name, value in self.headers if name == b"transfer-encoding"]
        codings = [coding.strip().lower() for coding in b",".join(fields).split(b",")]
        if fields and codings[-1] != b"chunked":
            return MalformedError("the last Transfer-Encoding of a request is chunked")
        if len(codings) > 1:
            return UnknownCodingError(
                "the only Transfer-Encoding that the service knows is chunked"
            )
        return None

    def _reset_head(self) -> None:
        self._head_begun = False
        self._head_since = self.loop.time()
        self._head_bytes = self._head_lines = self._bytes_fed = 0
        self._body_bytes = self._chunks = 0

    def _head_is_too_large(self) -> bool:
        settings = self._settings
        return (
            self._head_bytes > settings.max_header_bytes or self._head_lines > settings.max_headers
        )

    def _too_large(self) -> HeadersTooLargeError:
        settings = self._settings
        return HeadersTooLargeError(
            f"a request may have at most {settings.max_headers} headers with "
            f"{settings.max_header_bytes:,} bytes in total"
        )

    # Ending

    def _refuse(self, problem: ServiceError) -> None:
        """Answer what cannot become a request, and take nothing more from this connection."""
        if self._deaf:
            return
        self._deaf = True
        self._stop_timer("head")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            if not self._in_head:
                # The rest of its body is not to be had: whoever reads it raises this.
                self.cycle.scope["state"][PROBLEM] = problem
                self.cycle.message_event.set()
        elif self.cycle is not None and not self._in_head and self.cycle.scope is self.scope:
            self.leave()  # The request has its answer already.
        else:
            self._leaving = True
            self._metrics.count_rejection(problem.reason)
            self._answer(problem)
            self._linger()

    def _answer(self, problem: ServiceError) -> None:
        request_id.set(self._request_id)
        headers = {"Connection": "close", REQUEST_ID: self._request_id, **HEADERS}
        answer = respond(problem.document(), problem.status, {**headers, **(problem.headers or {})})
        lines = [b"%s%d %s" % (ANSWER_START, problem.status, phrase(problem.status))]
        lines += [b"%s: %s" % header for header in answer.raw_headers]
        body = b"" if self._opening == b"HEAD " else bytes(answer.body)
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        record = AccessRecord(
            method=None,
            path=self.url.partition(b"?")[0].decode("latin-1") if self._head_begun else None,
            status=problem.status,
            seconds=self.loop.time() - self._head_since,
            bytes_in=0,
            bytes_out=len(body),
            client=self.client and self.client[0],
        )
        log_access(record, self._settings.access_log)

    def _linger(self) -> None:
        """End the sending side, and throw away what the client still sends until it ends too."""
        self._unparsed.clear()
        self.transport.write_eof()
        self.flow.hold(False)
        self.flow.resume_reading()
        self._start_timer("rest", self._settings.body_seconds, self.transport.abort)
        self._start_timer("silence", LINGER_SECONDS, self.transport.abort)

    def _watch_half_closed(self) -> None:
        """Abort when a client turns out to have left: nothing is read from it that would say so."""
        if self.transport.get_extra_info("socket").getsockopt(SOL_SOCKET, SO_ERROR):
            self.transport.abort()
        else:
            self._start_timer("gone", GONE_SECONDS, self._watch_half_closed)

    # Timers

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
        def fire() -> None:
            del self._timers[awaited]
            expire()

        self._stop_timer(awaited)
        self._timers[awaited] = self.loop.call_later(seconds, fire)

    def _stop_timer(self, awaited: Awaited) -> None:
        if (timer := self._timers.pop(awaited, None)) is not None:
            timer.cancel()


class HeldFlow(FlowControl):
    """uvicorn's flow control, which reads nothing while it is held."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._held = False

    def hold(self, held: bool) -> None:
        """Pause reading, whoever wants to resume it; or no longer."""
        if held != self._held:
            self._held = held
            (self.pause_reading if held else self.resume_reading)()

    def resume_reading(self) -> None:
        if not self._held:
            super().resume_reading()


class AnswerTransport(Transport):
    """Transport of an answer, whose end is left to the connection."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._connection.write(bytes(data))

    def is_closing(self) -> bool:
        return self._connection.is_leaving

    def close(self) -> None:
        self._connection.leave()


def phrase(status: int) -> bytes:
    """Return the words that stand after a status in the first line of an answer."""
    return HTTPStatus(status).phrase.encode()
