"""Find what a decoder needs of an image file: its size before anything is read, and no more.

Metadata, fill bytes and empty chunks take time and memory though they change no pixel. They are
counted, and left out of what the decoder gets. Orientation and colour profile are read here.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final, NamedTuple

JPEG: Final = b"\xff\xd8\xff"
PNG: Final = b"\x89PNG\r\n\x1a\n"
PNG_HEADER: Final = PNG + b"\0\0\0\rIHDR"
WEBP: Final = re.compile(rb"RIFF.{4}WEBPVP8", re.DOTALL)

# Scans of a JPEG: each is a pass over all of its pixels. Encoders write 10 in colour, 18 at most.
MAX_SCANS: Final = 50
# The same of a JPEG without an end, which is decoded three times to see if rows are missing.
MAX_SCANS_WITHOUT_END: Final = 18
# Segments of a JPEG and chunks of a PNG, other than pixels. Metadata of 30 MB are 500 segments.
MAX_PARTS: Final = 1_000
# Chunks of pixels: a PNG of 16 MB has 2,000 of the common 8 KiB.
MAX_PIXEL_CHUNKS: Final = 20_000
# Bytes of tables in front of a JPEG's first scan (three kilobytes are usual) or of a PNG's palette.
MAX_TABLES: Final = 2**17
# Bytes between two segments of a JPEG: fill bytes, or damage.
MAX_FILL: Final = 2**12
# Entries of an EXIF directory that are read: they are sorted, and the orientation comes early.
MAX_TAGS: Final = 1_000
MAX_XMP: Final = 2**16
# Bytes of a colour profile, unpacked. Cameras write 500, presses up to 3 MB.
MAX_PROFILE: Final = 2**22

# Other formats: how their files begin, their names, and a command that converts them.
FOREIGN: Final = (
    (rb".{4}ftyp.{0,60}avi[fs]", "AVIF", "avifdec photo.avif photo.png"),
    (
        rb".{4}ftyp.{0,60}(hei[cxms]|hev[cxms]|mif1|msf1)",
        "HEIC",
        "heif-convert photo.heic photo.jpg",
    ),
    (
        rb".{4}ftypcrx |FUJIFILMCCD-RAW|IIU\0|IIR[OS]|MMOR",
        "a camera's raw file",
        "darktable-cli photo.cr3 photo.jpg",
    ),
    (rb".{4}ftyp", "a video", "ffmpeg -i video.mp4 -frames:v 1 photo.jpg"),
    (rb"(\0\0\0\x0c)?(JXL \r\n|\xff\x0a)", "JPEG XL", "djxl photo.jxl photo.png"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000", "magick photo.jp2 photo.jpg"),
    (rb"GIF8[79]a", "GIF", "magick 'photo.gif[0]' photo.png"),
    (rb"BM.{12}", "BMP", "magick photo.bmp photo.png"),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "TIFF or a camera's raw file", "magick photo.tif photo.jpg"),
    (rb"8BPS", "Photoshop", "magick 'photo.psd[0]' photo.jpg"),
    (rb"%PDF-", "PDF", "pdftoppm -jpeg -r 150 file.pdf photo"),
    (rb"\s*(<\?xml.{0,500})?<svg", "SVG", "rsvg-convert drawing.svg -o photo.png"),
    (rb"(?i)\s*<(!doctype )?html", "a web page", ""),
    (rb"\0\x05\x16\x07", "the companion of a file on macOS, without its pixels", ""),
    (rb"\x89PNG(\n\x1a|\r\x1a|\r\r\n)", "a PNG whose line ends a copy as text has changed", ""),
    (rb"version https://git-lfs", "a Git LFS pointer: fetch the photo with `git lfs pull`", ""),
)

# The end marker, and the markers that a length follows. In a scan's data FF is followed by 00 or by
# a restart marker.
MARKER: Final = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")
SCAN: Final = b"\xda"
END: Final = b"\xd9"
METADATA: Final = b"\xe1"
PROFILE: Final = b"\xe2"
FRAMES: Final = frozenset(bytes([code]) for code in range(0xC0, 0xD0)) - {b"\xc4", b"\xc8", b"\xcc"}
# Frames and tables, and the two that tell the colours: JFIF and Adobe.
TABLES: Final = FRAMES | {b"\xc4", b"\xcc", b"\xdb", b"\xdc", b"\xdd", b"\xde", b"\xe0", b"\xee"}
EXIF_ID: Final = b"Exif\0\0"
XMP_ID: Final = b"http://ns.adobe.com/xap/1.0/\0"
PROFILE_ID: Final = b"ICC_PROFILE\0"

TABLE_CHUNKS: Final = frozenset({b"IHDR", b"PLTE", b"tRNS"})
# Their number grows with a PNG's size or frames, and only the first frame is decoded.
PIXEL_CHUNKS: Final = frozenset({b"IDAT", b"fcTL", b"fdAT"})
WEBP_PIXELS: Final = frozenset({b"VP8 ", b"VP8L", b"ALPH", b"ANMF"})

ORIENTATION: Final = 0x0112
XMP_ORIENTATION: Final = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
INTEGERS: Final = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}


class ExcessError(Exception):
    """An image file that has too much of something; the text says of what."""


class FilePart(NamedTuple):
    """A segment or chunk: its marker or kind, and where it and its contents are in the file."""

    kind: bytes
    start: int
    contents: int
    end: int


class Essence(NamedTuple):
    """The needed part of an image file: one with the same pixels, and how these are meant.

    `orientation` is 1 to 8, and `profile` the bytes of the colour profile, empty if there is none
    that can be read. `ended` is False if the end marker of a JPEG was missing; `data` has one.
    """

    data: bytes
    orientation: int
    profile: bytes = b""
    ended: bool = True


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height that a file's header gives; None if it is not an image.

    Raises `ExcessError` if the header has too many segments.
    """
    if data.startswith(PNG_HEADER) and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    if data.startswith(JPEG):
        for part in jpeg_segments(data):
            if part.kind in FRAMES and part.contents + 5 <= len(data):
                height, width = struct.unpack_from(">HH", data, part.contents + 1)
                return width, height
    if WEBP.match(data) and len(data) >= 30:
        if data[15:16] == b"X":
            return (
                1 + int.from_bytes(data[24:27], "little"),
                1 + int.from_bytes(data[27:30], "little"),
            )
        if data[15:16] == b"L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def foreign_format(data: bytes) -> str:
    """Return the format of a file that is not decoded and how to convert it; empty if unknown."""
    for beginning, name, command in FOREIGN:
        if re.match(beginning, data[:1_000], re.DOTALL):
            return f"{name}: convert it, such as with `{command}`" if command else name
    return ""


def essence(data: bytes) -> Essence:
    """Return what is needed of an image file; raises `ExcessError` if it has too much."""
    if data.startswith(JPEG):
        return _jpeg_essence(data)
    if data.startswith(PNG):
        return _png_essence(data)
    exif = xmp = profile = b""
    if WEBP.match(data):
        for count, part in enumerate(riff_chunks(data)):
            if count > MAX_PIXEL_CHUNKS:
                raise ExcessError(f"more than {MAX_PIXEL_CHUNKS:,} chunks")
            if part.kind == b"EXIF":
                exif = exif or data[part.contents : part.end]
            elif part.kind == b"XMP ":
                xmp = xmp or data[part.contents : part.contents + MAX_XMP]
            elif part.kind == b"ICCP" and part.end - part.contents <= MAX_PROFILE:
                profile = profile or data[part.contents : part.end]
    return Essence(data, orientation(exif, xmp), profile)


def pixel_content(data: bytes) -> bytes:
    """Return the part of an image file that its pixels are decoded from; all of it if unknown.

    Copies of a photo have the same, whatever metadata they have gained or lost, and if only the
    metadata say how they are turned. Raises `ExcessError` as `essence` does.
    """
    if not WEBP.match(data):
        return essence(data).data
    parts = islice(riff_chunks(data), MAX_PIXEL_CHUNKS)
    pixels = [data[part.start : part.end] for part in parts if part.kind in WEBP_PIXELS]
    return b"".join(pixels) or data


def _jpeg_essence(data: bytes) -> Essence:
    """Keep the tables and everything from the first scan to the end of the first image."""
    kept, exif, xmp, scans, tables, end = [data[:2]], b"", b"", 0, 0, None
    first_scan = None
    profile: dict[bytes, bytes] = {}
    for part in jpeg_segments(data):
        if part.kind == SCAN:
            first_scan = part.start if first_scan is None else first_scan
            scans += 1
            if scans > MAX_SCANS:
                raise ExcessError(f"more than {MAX_SCANS} scans")
        elif part.kind == END:
            end = part.end
        elif first_scan is None and part.kind in TABLES:
            kept.append(data[part.start : part.end])
            tables += part.end - part.start
            if tables > MAX_TABLES:
                raise ExcessError(f"more than {MAX_TABLES:,} bytes of tables")
        elif part.kind == METADATA:
            if not exif and data.startswith(EXIF_ID, part.contents):
                exif = data[part.contents : part.end]
            elif not xmp and data.startswith(XMP_ID, part.contents):
                xmp = data[part.contents : part.end]
        elif part.kind == PROFILE and data.startswith(PROFILE_ID, part.contents):
            start = part.contents + len(PROFILE_ID)
            profile.setdefault(data[start : start + 1], data[start + 1 : part.end])
    if first_scan is not None:
        kept.append(data[first_scan:end])
        if end is None:
            if scans > MAX_SCANS_WITHOUT_END:
                raise ExcessError(f"more than {MAX_SCANS_WITHOUT_END} scans and no end")
            kept[-1] = kept[-1].rstrip(b"\xff") + b"\xff" + END
    return Essence(
        b"".join(kept),
        orientation(exif, xmp),
        join_profile(profile),
        first_scan is None or end is not None,
    )


def join_profile(parts: Mapping[bytes, bytes]) -> bytes:
    """Return the profile in the segments of a JPEG, by their numbers; empty if one is missing.

    Each part begins with the number of parts (ICC.1:2022, annex B.4).
    """
    counts = {part[:1] for part in parts.values()}
    profile = b"".join(parts[number][1:] for number in sorted(parts))
    complete = counts == {bytes([len(parts)])} and len(profile) <= MAX_PROFILE
    return profile if complete else b""


def unpack_profile(contents: bytes) -> bytes:
    """Return the profile in a PNG's iCCP chunk: name, zero, method, zlib stream; empty if broken.

    No more than `MAX_PROFILE` bytes are unpacked (PNG, third edition, section 11.3.2.3).
    """
    name, zero, packed = contents.partition(b"\0")
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(packed[1:], MAX_PROFILE)
    except zlib.error:
        return b""
    return profile if zero and len(name) < 80 and stream.eof else b""


def _png_essence(data: bytes) -> Essence:
    """Keep the first image: header, palette, transparency and pixels."""
    kept, exif, xmp, others, pixels, tables = [PNG], b"", b"", 0, 0, 0
    profile: bytes | None = None
    for part in png_chunks(data):
        others += part.kind not in PIXEL_CHUNKS
        pixels += part.kind in PIXEL_CHUNKS
        if others > MAX_PARTS:
            raise ExcessError(f"more than {MAX_PARTS:,} segments or chunks")
        if pixels > MAX_PIXEL_CHUNKS:
            raise ExcessError(f"more than {MAX_PIXEL_CHUNKS:,} chunks of pixels")
        if part.kind in TABLE_CHUNKS:
            tables += part.end - part.start
            if tables > MAX_TABLES:
                raise ExcessError(f"more than {MAX_TABLES:,} bytes of tables")
        if part.kind in TABLE_CHUNKS or part.kind in (b"IDAT", b"IEND"):
            kept.append(data[part.start : part.end])
        elif part.kind == b"eXIf":
            exif = exif or data[part.contents : part.end]
        elif part.kind == b"iTXt" and data.startswith(b"XML:com.adobe.xmp\0\0", part.contents):
            xmp = xmp or data[part.contents : min(part.end, part.contents + MAX_XMP)]
        elif part.kind == b"iCCP" and profile is None and not pixels:
            profile = unpack_profile(data[part.contents : part.end - 4])
    return Essence(b"".join(kept), orientation(exif, xmp), profile or b"")


def jpeg_segments(data: bytes) -> Iterator[FilePart]:
    """Yield each segment up to the end of the first image; other images, or a film, may follow.

    Raises `ExcessError` if there are too many, or too many bytes between two of them.
    """
    position, in_image, count = 2, False, 0
    while True:
        limit = len(data) if in_image else position + MAX_FILL
        match = MARKER.search(data, position, limit)
        if match is None:
            if limit < len(data):
                raise ExcessError(f"more than {MAX_FILL:,} bytes between two segments")
            return
        marker, position = match[1], match.end()
        if marker == END:
            # Pillow reads on after an end marker that comes before the first scan.
            if in_image:
                yield FilePart(marker, match.start(), position, position)
                return
            continue
        count += 1
        if count > MAX_PARTS:
            raise ExcessError(f"more than {MAX_PARTS:,} segments or chunks")
        contents = position + 2
        position += int.from_bytes(data[position:contents], "big")
        yield FilePart(marker, match.start(), contents, position)
        in_image = in_image or marker == SCAN


def png_chunks(data: bytes) -> Iterator[FilePart]:
    """Yield each chunk up to the last one."""
    position = len(PNG)
    while kind := data[position + 4 : position + 8]:
        contents = position + 8
        end = contents + 4 + int.from_bytes(data[position : position + 4], "big")
        yield FilePart(kind, position, contents, end)
        if kind == b"IEND":
            return
        position = end


def riff_chunks(data: bytes) -> Iterator[FilePart]:
    """Yield each chunk of a WebP file."""
    position = 12
    while kind := data[position : position + 4]:
        contents = position + 8
        size = int.from_bytes(data[position + 4 : contents], "little")
        yield FilePart(kind, position, contents, contents + size)
        position = contents + size + size % 2


def orientation(exif: bytes, xmp: bytes) -> int:
    """Return the orientation that EXIF gives, else XMP; 1 if neither does, or none of 1 to 8.

    Nothing else of the metadata is read (EXIF 2.32, section 4.6.4; TIFF 6.0, section 2).
    """
    tiff = exif.removeprefix(EXIF_ID)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    try:
        if order is not None:
            (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
            (count,) = struct.unpack_from(f"{order}H", tiff, offset)
            for entry in range(offset + 2, offset + 2 + 12 * min(count, MAX_TAGS), 12):
                tag, kind, values = struct.unpack_from(f"{order}HHI", tiff, entry)
                if tag == ORIENTATION and kind in INTEGERS and values == 1:
                    (value,) = struct.unpack_from(order + INTEGERS[kind], tiff, entry + 8)
                    return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    found = XMP_ORIENTATION.search(xmp)
    return 1 if found is None else int(found[1])
