"""A photo's file without what it tells besides its pixels: the place, and other secrets.

Pixels are copied as they are encoded. Of EXIF everything stays but the place, the maker's note,
which no one else can read, and the small copy of the photo. Colour profiles stay. XMP, IPTC,
comments, and whatever follows the photo, may name the place as well, and are left out.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final, Literal

from PIL import ExifTags, Image

from taillift.models.bundle.image_guard import (
    EXIF_ID,
    JPEG,
    METADATA,
    ORIENTATION,
    PNG,
    PROFILE,
    PROFILE_ID,
    essence,
    jpeg_segments,
    png_chunks,
    riff_chunks,
)

# Longer EXIF, which no camera writes without a small copy of the photo, is not read.
MAX_EXIF: Final = 2**20
# The most that a segment of a JPEG can hold.
MAX_SEGMENT: Final = 2**16 - 3
# Tags that hold the place and the maker's note, and those that point to further directories.
LEFT_OUT: Final = frozenset({*map(int, ExifTags.IFD), ExifTags.Base.MakerNote})
PNG_KEPT: Final = frozenset(
    {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
    | {b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"sBIT", b"pHYs"}
)
WEBP_KEPT: Final = frozenset({b"VP8X", b"ICCP", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L"})
# Flags of a WebP's first chunk (RFC 9649, section 2.7).
HAS_EXIF, HAS_XMP = 0x08, 0x04

Kind = Literal["jpg", "png", "webp"]
TYPES: Final[dict[Kind, str]] = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


def photo_kind(data: bytes) -> Kind:
    """Return the ending of a photo's file name, one of `TYPES`, by its first bytes."""
    if data.startswith(JPEG):
        return "jpg"
    return "png" if data.startswith(PNG) else "webp"


def without_place(data: bytes) -> bytes:
    """Return the file of a JPEG, PNG or WebP that the service could decode, without the place.

    The pixels, how they are turned, and their colours do not change.
    """
    match photo_kind(data):
        case "jpg":
            return _clean_jpeg(data)
        case "png":
            return _clean_png(data)
        case _:
            return _clean_webp(data)


def clean_exif(raw: bytes, turned: int) -> bytes:
    """Return EXIF as `raw` without place, maker's note and small copy; empty if nothing is left.

    What cannot be read is left out. `turned` is the orientation of the photo, 1 to 8. The result
    begins with `Exif` and two zeros.
    """
    given, kept = Image.Exif(), Image.Exif()
    try:
        given.load(raw if len(raw) <= MAX_EXIF else b"")
        tags, details = (
            {tag: value for tag, value in directory.items() if tag not in LEFT_OUT}
            for directory in (given, given.get_ifd(ExifTags.IFD.Exif))
        )
        kept.update(tags)
        if details:
            kept[ExifTags.IFD.Exif] = details
        if kept or turned != 1:
            kept[ORIENTATION] = turned
        written = kept.tobytes() if kept else b""
    except Exception:  # Pillow's errors for damaged EXIF have no common base.
        written = None
    if written is None or len(written) > MAX_SEGMENT:
        return b"" if turned == 1 else clean_exif(b"", turned)
    return written


def _clean_jpeg(data: bytes) -> bytes:
    needed = essence(data)
    raw = next(
        (
            data[part.contents : part.end]
            for part in jpeg_segments(data)
            if part.kind == METADATA and data.startswith(EXIF_ID, part.contents)
        ),
        b"",
    )
    exif = clean_exif(raw, needed.orientation)
    size = MAX_SEGMENT - len(PROFILE_ID) - 2
    pieces = [needed.profile[at : at + size] for at in range(0, len(needed.profile), size)]
    segments = [
        *([(METADATA, exif)] if exif else []),
        *(
            (PROFILE, PROFILE_ID + bytes([number, len(pieces)]) + piece)
            for number, piece in enumerate(pieces, 1)
        ),
    ]
    head = b"".join(
        b"\xff" + kind + struct.pack(">H", len(contents) + 2) + contents
        for kind, contents in segments
    )
    return needed.data[:2] + head + needed.data[2:]


def _clean_png(data: bytes) -> bytes:
    def chunks() -> Iterator[bytes]:
        yield PNG
        exif = b""
        for part in png_chunks(data):
            if part.kind == b"eXIf":
                exif = exif or data[part.contents : part.end - 4]
            elif part.kind in PNG_KEPT:
                if part.kind == b"IEND":
                    cleaned = clean_exif(exif, essence(data).orientation).removeprefix(EXIF_ID)
                    if cleaned:
                        body = b"eXIf" + cleaned
                        yield struct.pack(">I", len(cleaned)) + body
                        yield struct.pack(">I", zlib.crc32(body))
                yield data[part.start : part.end]

    return b"".join(chunks())


def _clean_webp(data: bytes) -> bytes:
    exif, kept = b"", list[bytes]()
    for part in riff_chunks(data):
        if part.kind == b"EXIF":
            exif = exif or data[part.contents : part.end]
        elif part.kind in WEBP_KEPT:
            kept.append(data[part.start : part.end] + bytes((part.end - part.contents) % 2))
    cleaned = clean_exif(exif, essence(data).orientation).removeprefix(EXIF_ID)
    if kept and kept[0].startswith(b"VP8X"):
        flags = kept[0][8] & ~(HAS_EXIF | HAS_XMP) | (HAS_EXIF if cleaned else 0)
        kept[0] = kept[0][:8] + bytes([flags]) + kept[0][9:]
        if cleaned:
            size = struct.pack("<I", len(cleaned))
            kept.append(b"EXIF" + size + cleaned + bytes(len(cleaned) % 2))
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body
