"""A limit on the parts of an image file, which take time even if its pixels are few."""

import re
from collections.abc import Iterator
from typing import Final

JPEG: Final = b"\xff\xd8\xff"
PNG: Final = b"\x89PNG\r\n\x1a\n"

# Scans of a JPEG: each is a pass over all of its pixels. Encoders write 10 in colour, 18 at most.
MAX_SCANS: Final = 50
# Segments of a JPEG and chunks of a PNG. Metadata of 30 MB are 500 segments. Pillow unpacks each
# chunk to up to 1 MiB, and its time for EXIF segments grows with the square of their number.
MAX_PARTS: Final = 1_000

# The end marker, and the markers that a length follows. In a scan's data FF is followed by 00 or by
# a restart marker.
MARKER: Final = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")
SCAN: Final = b"\xda"
END: Final = b"\xd9"

# Their number grows with a PNG's size or frames, and only the first frame is decoded.
PIXEL_CHUNKS: Final = frozenset({b"IDAT", b"fcTL", b"fdAT"})


def too_many_parts(data: bytes) -> str | None:
    """Return what a JPEG or PNG file has too much of; None if it has nothing too much."""
    parts: Iterator[bytes] = iter(())
    if data.startswith(JPEG):
        parts = jpeg_markers(data)
    elif data.startswith(PNG):
        parts = (kind for kind in png_chunks(data) if kind not in PIXEL_CHUNKS)
    scans = 0
    for count, part in enumerate(parts, 1):
        scans += part == SCAN
        if scans > MAX_SCANS:
            return f"more than {MAX_SCANS} scans"
        if count > MAX_PARTS:
            return f"more than {MAX_PARTS:,} segments or chunks"
    return None


def jpeg_markers(data: bytes) -> Iterator[bytes]:
    """Yield the marker of each segment up to the end of the first image.

    Other images, or a film, may follow.
    """
    position, in_image = 0, False
    while (match := MARKER.search(data, position)) is not None:
        marker, position = match[1], match.end()
        if marker != END:
            yield marker
            in_image = in_image or marker == SCAN
            position += int.from_bytes(data[position : position + 2], "big")
        elif in_image:  # Pillow reads on after an end marker that comes before the first scan.
            return


def png_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the kind of each chunk before the last one."""
    position = len(PNG)
    while (kind := data[position + 4 : position + 8]) not in (b"", b"IEND"):
        yield kind
        position += 12 + int.from_bytes(data[position : position + 4], "big")
