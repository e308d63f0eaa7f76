"""The parts of a multipart form (RFC 7578), taken from its bytes as they come.

No byte is looked at in Python, and other requests have their turn after each piece: a large form
holds up none of them. The form is read as UTF-8, whatever the charset parameter says (RFC 7578,
section 5.1.2). Text fields are never decoded.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Final
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header

from taillift.service.problems import MalformedError

# Bytes of the headers of one part, and of the boundary (RFC 2046, section 5.1.1).
MAX_PART_HEADERS: Final = 8_192
MAX_BOUNDARY: Final = 70
# Parameters of a header, and semicolons in quotes: taking many apart would hold up other requests.
MAX_PARAMETERS: Final = 64
# Bytes that are searched for a delimiter without a pause.
PIECE: Final = 2**16
HEAD_END: Final = b"\r\n\r\n"
# Where a header goes on in the next line, as programs for mail write it (RFC 5322, section 2.2.3).
FOLD: Final = re.compile(rb"\r\n(?=[ \t])")
# A file's name as some programs write one that is not ASCII (RFC 8187, section 3.2).
CODED_NAME: Final = re.compile(rb"""filename\*\s*=\s*"?[\w-]*'[^']*'([^\s;"]*)""", re.IGNORECASE)


@dataclass(frozen=True)
class FormPart:
    """One part of a form; `filename` is None if it is a text field.

    A part without a file name is a file if its Content-Type is given and is not text.
    """

    name: str
    filename: str | None
    data: bytes


def form_boundary(content_type: str) -> bytes:
    """Return the boundary that a Content-Type names; raises `MalformedError`."""
    parameters = _parameters(content_type.encode("latin-1", "replace"))
    boundary = parameters.get(b"boundary", b"")
    if not 1 <= len(boundary) <= MAX_BOUNDARY:
        raise MalformedError(
            f"the form cannot be read: its Content-Type needs a boundary of 1 to {MAX_BOUNDARY} "
            "characters"
        )
    return boundary


async def form_parts(body: AsyncIterator[bytes], boundary: bytes) -> AsyncGenerator[FormPart, None]:
    """Yield the parts of a form, in order; raises `MalformedError` if it is not one."""
    first = b"--" + boundary
    form = DelimitedReader(body, b"\r\n" + first)
    if (is_last := await form.copy_part(lambda _: None)) is None:
        raise MalformedError("the form cannot be read: it does not begin with its boundary")
    while not is_last:
        head = await form.take_head()
        if head is None or b"\r\n" + first in b"\r\n" + head:
            raise MalformedError(
                f"the form cannot be read: a part has no headers within {MAX_PART_HEADERS:,} bytes"
            )
        data = BytesIO()
        is_last = await form.copy_part(data.write)
        if is_last is None:
            raise MalformedError("the form cannot be read: it ends before its closing boundary")
        yield _part(head, data.getvalue())
    async for _ in body:
        pass  # The epilogue.


class DelimitedReader:
    """Takes a form apart at its delimiters; holds no more of it than came last."""

    def __init__(self, body: AsyncIterator[bytes], delimiter: bytes) -> None:
        """`delimiter` is a line end, two hyphens and the boundary."""
        self._body = body
        # With its end, so that a file of almost-boundaries takes no longer than another.
        self._delimiter = re.compile(re.escape(delimiter) + rb"(?:\r\n|--)")
        self._delimiter_bytes = len(delimiter) + 2
        # The first delimiter may be the form's first line, and has a line end for us as well.
        self._rest = b"\r\n"
        self._coming = b""

    async def copy_part(self, write: Callable[[bytes], object]) -> bool | None:
        """Write what comes before the next delimiter; return whether that closes the form.

        None: the form ends without a delimiter. The line end that comes first is not written: it is
        that of the headers, and of an empty part's delimiter as well.
        """
        line_end = 2
        while (found := self._delimiter.search(self._rest)) is None:
            # The last bytes may be the beginning of a delimiter.
            done = max(0, len(self._rest) - self._delimiter_bytes + 1)
            write(self._rest[line_end:done])
            line_end = max(0, line_end - done)
            self._rest = self._rest[done:]
            if not await self._read():
                return None
        write(self._rest[line_end : found.start()])
        self._rest = self._rest[found.end() :]
        return found[0].endswith(b"--")

    async def take_head(self) -> bytes | None:
        """Take the headers of a part, without their last line end.

        None: they have no end within `MAX_PART_HEADERS`.
        """
        while (end := self._rest.find(HEAD_END, 0, MAX_PART_HEADERS)) < 0:
            if len(self._rest) >= MAX_PART_HEADERS or not await self._read():
                return None
        head, self._rest = self._rest[:end], self._rest[end + 2 :]
        return head

    async def _read(self) -> bool:
        """Add one piece of what comes to the rest; return False at the end of the body."""
        await asyncio.sleep(0)  # Other requests have their turn.
        while not self._coming:
            more = await anext(self._body, None)
            if more is None:
                return False
            self._coming = more
        self._rest += self._coming[:PIECE]
        self._coming = self._coming[PIECE:]
        return True


def _part(head: bytes, data: bytes) -> FormPart:
    disposition: dict[bytes, bytes] = {}
    filename: bytes | None = None
    for line in FOLD.sub(b"", head).split(b"\r\n"):
        field, colon, value = line.partition(b":")
        if not colon or not field.strip():
            raise MalformedError("the form cannot be read: a part's header has no name or no colon")
        match field.strip().lower():
            case b"content-disposition":
                disposition = _parameters(value.strip())
                if (coded := CODED_NAME.search(value)) is not None:
                    filename = unquote_to_bytes(coded[1])
            case b"content-type":
                if not value.strip().lower().startswith(b"text/"):
                    filename = filename or b""
    if b"name" not in disposition:
        raise MalformedError("the form cannot be read: a part has no name in Content-Disposition")
    filename = disposition.get(b"filename", filename)
    return FormPart(
        name=_text(disposition[b"name"]),
        filename=None if filename is None else _text(filename),
        data=data,
    )


def _parameters(value: bytes) -> dict[bytes, bytes]:
    """Return the parameters of a header; raises `MalformedError` if there are too many."""
    if value.count(b";") > MAX_PARAMETERS:
        raise MalformedError(
            f"the form cannot be read: a header has more than {MAX_PARAMETERS} parameters"
        )
    return parse_options_header(value)[1]


def _text(value: bytes) -> str:
    """Decode a name as UTF-8, or as Latin-1 if it is not: browsers of old send it."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
