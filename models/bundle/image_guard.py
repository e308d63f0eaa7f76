"""The parts of an image file, which take time however few its pixels are."""

import re
from collections.abc import Iterator
from typing import Final

JPEG: Final = b"\xff\xd8\xff"
PNG: Final = b"\x89PNG\r\n\x1a\n"

# Of a JPEG, each a pass over all of its pixels. Encoders write 10 in colour, or up to 18.
MAX_SCANS: Final = 50
# Segments of a JPEG and chunks of a PNG. Metadata of 30 MB are 500 segments; Pillow unpacks each
# chunk to up to 1 MiB, and takes a time for EXIF segments that grows with the square of their
# number.
MAX_PARTS: Final = 1_000

# The end, and the markers that a length follows. In a scan's data 00 or a restart follows FF.
_MARKER: Final = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")
_SCAN: Final = b"\xda"
_END: Final = b"\xd9"

# A PNG has as many as it is large, or has frames; only the first frame is decoded.
_PIXELS: Final = frozenset({b"IDAT", b"fcTL", b"fdAT"})


def too_many_parts(data: bytes) -> str | None:
    """What a JPEG or PNG file has too much of; None where nothing."""
    scans = 0
    for count, part in enumerate(_parts(data), 1):
        scans += part == _SCAN
        if scans > MAX_SCANS:
            return f"more than {MAX_SCANS} scans"
        if count > MAX_PARTS:
            return f"more than {MAX_PARTS:,} segments or chunks"
    return None


def _parts(data: bytes) -> Iterator[bytes]:
    if data.startswith(JPEG):
        return _segments(data)
    if data.startswith(PNG):
        return (kind for kind in _chunks(data) if kind not in _PIXELS)
    return iter(())


def _segments(data: bytes) -> Iterator[bytes]:
    """The marker of each, to the end of the first image: others, or a film, may follow."""
    place, begun = 0, False
    while (found := _MARKER.search(data, place)) is not None:
        marker, place = found[1], found.end()
        if marker != _END:
            yield marker
            begun = begun or marker == _SCAN
            place += int.from_bytes(data[place : place + 2], "big")
        elif begun:  # Before the first scan Pillow reads on.
            return


def _chunks(data: bytes) -> Iterator[bytes]:
    place = len(PNG)
    while (kind := data[place + 4 : place + 8]) not in (b"", b"IEND"):
        yield kind
        place += 12 + int.from_bytes(data[place : place + 4], "big")
