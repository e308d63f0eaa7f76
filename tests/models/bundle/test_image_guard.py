"""Tests of files with too many parts, and of honest files that have many."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from taillift.models.bundle.image_guard import MAX_PARTS, MAX_SCANS
from taillift.models.bundle.images import BrokenImageError, decode

SCAN, END = b"\xff\xda", b"\xff\xd9"


def noise(seed: int = 0, mode: str = "L") -> Image.Image:
    width, height = 40, 32
    count = width * height * len(mode)
    return Image.frombytes(mode, (width, height), random.Random(seed).randbytes(count))


def saved(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    (image or noise()).save(file, kind, **options)
    return file.getvalue()


def jpeg_of_scans(count: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    data = saved("JPEG", progressive=True)
    last = data[data.rindex(SCAN) : -len(END)]
    return data[: -len(END)] + (count - data.count(SCAN)) * last + END


def jpeg_with(*segments: bytes) -> bytes:
    data = saved("JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def png_with(*chunks: bytes) -> bytes:
    data = saved("PNG")
    offset = data.index(b"IDAT") - 4
    return data[:offset] + b"".join(chunks) + data[offset:]


def png_of_small_chunks() -> bytes:
    """Return a PNG with each byte of its pixels in a chunk of its own."""
    data = saved("PNG")
    offset = data.index(b"IDAT") - 4
    start, length = offset + 8, int.from_bytes(data[offset : offset + 4], "big")
    chunks = [chunk(b"IDAT", bytes([value])) for value in data[start : start + length]]
    return data[:offset] + b"".join(chunks) + data[start + length + 4 :]


def segment(marker: bytes, content: bytes) -> bytes:
    return marker + struct.pack(">H", 2 + len(content)) + content


def chunk(kind: bytes, content: bytes) -> bytes:
    sum_ = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + sum_


EXIF = segment(b"\xff\xe1", b"Exif\0\0")
PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20)))


@pytest.mark.parametrize("fill", [b"", b"\xff\xff"])
def test_a_jpeg_of_too_many_scans_is_refused(fill: bytes) -> None:
    assert decode(jpeg_of_scans(MAX_SCANS), 16).size == (40, 32)
    data = jpeg_of_scans(MAX_SCANS + 1).replace(SCAN, fill + SCAN)
    with pytest.raises(BrokenImageError, match="the image has more than 50 scans: save it again"):
        decode(data, 16)


@pytest.mark.parametrize(
    "data",
    [
        jpeg_with(*[EXIF] * MAX_PARTS),
        jpeg_with(END, *[EXIF] * MAX_PARTS),
        jpeg_with(*[b"\xff\xf0" + EXIF] * MAX_PARTS),
        jpeg_with(*[b"\xff\xfe\0\0"] * MAX_PARTS),
        png_with(*[PROFILE] * MAX_PARTS),
    ],
    ids=["segments", "behind an end", "behind markers alone", "of no length", "chunks"],
)
def test_a_file_of_too_many_segments_or_chunks_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenImageError, match="more than 1,000 segments or chunks"):
        decode(data, 16)


@pytest.mark.parametrize(
    "make",
    [
        lambda: saved("JPEG", noise(mode="CMYK"), progressive=True),
        lambda: jpeg_with(*[segment(b"\xff\xe2", 30_000 * SCAN)] * 500),
        lambda: saved("JPEG") + 2 * MAX_PARTS * segment(SCAN, b""),
        lambda: saved("MPO", save_all=True, append_images=[noise()] * 2 * MAX_SCANS),
        lambda: png_of_small_chunks() + bytes(100_000),
        lambda: saved("PNG", save_all=True, append_images=[*map(noise, range(MAX_PARTS))]),
    ],
    ids=[
        "four colours",
        "a profile of 30 MB",
        "a film behind the photo",
        "many photos",
        "small chunks and zeros behind the end",
        "many frames",
    ],
)
def test_what_an_honest_file_has_many_of_is_taken(make: Callable[[], bytes]) -> None:
    assert decode(make(), 16).mode == "RGB"
