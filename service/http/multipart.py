"""The files of a multipart form (RFC 7578), found without looking at each byte in Python.

The form is read as UTF-8, whatever the charset parameter says (RFC 7578, section 5.1.2). Text
fields are never decoded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from python_multipart.multipart import parse_options_header

from taillift.service.problems import MalformedError

# Bytes of the headers of one part, and of the boundary (RFC 2046, section 5.1.1).
MAX_PART_HEADERS: Final = 8_192
MAX_BOUNDARY: Final = 70
# Bytes that are searched for a delimiter without a pause.
PIECE: Final = 2**18


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
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary", b"")
    if not 1 <= len(boundary) <= MAX_BOUNDARY:
        raise MalformedError(
            f"the form cannot be read: its Content-Type needs a boundary of 1 to {MAX_BOUNDARY} "
            "characters"
        )
    return boundary


def form_parts(body: bytes, boundary: bytes) -> Iterator[FormPart]:
    """Yield the parts of a form, in order; raises `MalformedError` if it is not one.

    A delimiter is searched for together with its end, so that a file of almost-boundaries takes no
    longer than another.
    """
    first = b"--" + boundary
    following, last = b"\r\n" + first + b"\r\n", b"\r\n" + first + b"--"
    if body.startswith(first + b"--"):
        return
    if body.startswith(first + b"\r\n"):
        start = len(first) + 2
    elif (preamble := _find(body, following, 0, len(body))) >= 0:
        start = preamble + len(following)
    else:
        raise MalformedError("the form cannot be read: it does not begin with its boundary")
    closing = _find(body, last, start - 2, len(body))
    if closing < 0:
        raise MalformedError("the form cannot be read: it ends before its closing boundary")
    while True:
        # A following delimiter that stands behind the closing one belongs to the epilogue.
        end = _find(body, following, start - 2, min(closing + len(following), len(body)))
        end = closing if end < 0 or end > closing else end
        yield _part(body, start, end)
        if end == closing:
            return
        start = end + len(following)


def _find(body: bytes, delimiter: bytes, start: int, end: int) -> int:
    """Return the place of a delimiter, or -1; other threads may run between two pieces."""
    for place in range(start, end, PIECE):
        found = body.find(delimiter, place, min(place + PIECE + len(delimiter) - 1, end))
        if found >= 0:
            return found
    return -1


def _part(body: bytes, start: int, end: int) -> FormPart:
    head = body.find(b"\r\n\r\n", start, min(end + 2, start + MAX_PART_HEADERS))
    if head < 0:
        raise MalformedError(
            f"the form cannot be read: a part has no headers within {MAX_PART_HEADERS:,} bytes"
        )
    disposition: dict[bytes, bytes] = {}
    is_file = False
    for line in body[start:head].split(b"\r\n"):
        field, colon, value = line.partition(b":")
        if not colon or not field.strip():
            raise MalformedError("the form cannot be read: a part's header has no name or no colon")
        match field.strip().lower():
            case b"content-disposition":
                _, disposition = parse_options_header(value.strip())
            case b"content-type":
                is_file = not value.strip().lower().startswith(b"text/")
    if b"name" not in disposition:
        raise MalformedError("the form cannot be read: a part has no name in Content-Disposition")
    filename = disposition.get(b"filename", b"" if is_file else None)
    return FormPart(
        name=_text(disposition[b"name"]),
        filename=None if filename is None else _text(filename),
        data=body[head + 4 : end],
    )


def _text(value: bytes) -> str:
    """Decode a name as UTF-8, or as Latin-1 if it is not: browsers of old send it."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
