"""Tests of files with too many parts, and of honest files that have many."""

import io
import random
import re
import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from taillift.models.bundle.image_guard import (
    MAX_FILL,
    MAX_PARTS,
    MAX_PIXEL_CHUNKS,
    MAX_SCANS,
    MAX_SCANS_WITHOUT_END,
    MAX_TABLES,
    essence,
    image_size,
    orientation,
)
from taillift.models.bundle.images import (
    BrokenImageError,
    ImageTooLargeError,
    NotAnImageError,
    decode,
    load,
    load_pil,
    pixel_count,
)
from taillift.models.bundle.schema import FREE_PIXELS, PIXELS_PER_BYTE, Preprocessing
from tests.support.png import chunk

PREPROCESSING = Preprocessing(
    size=16,
    expand=0,
    interpolation="bicubic",
    resize_mode="shortest",
    mean=(0, 0, 0),
    std=(1, 1, 1),
)
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


EXIF = segment(b"\xff\xe1", b"Exif\0\0")
PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20)))


@pytest.mark.parametrize("fill", [b"", b"\xff\xff"])
def test_a_jpeg_of_too_many_scans_is_refused(fill: bytes) -> None:
    assert decode(jpeg_of_scans(MAX_SCANS), 16).size == (40, 32)
    data = jpeg_of_scans(MAX_SCANS + 1).replace(SCAN, fill + SCAN)
    with pytest.raises(BrokenImageError, match="the image has more than 50 scans: save it again"):
        decode(data, 16)


def test_a_jpeg_without_an_end_is_decoded_three_times_and_has_fewer_scans() -> None:
    data = jpeg_of_scans(MAX_SCANS_WITHOUT_END)
    assert decode(data.removesuffix(END), 16).tobytes() == decode(data, 16).tobytes()
    data = jpeg_of_scans(MAX_SCANS_WITHOUT_END + 1).removesuffix(END)
    with pytest.raises(BrokenImageError, match="more than 18 scans and no end: save it again"):
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


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (jpeg_with(b"\xff" * (MAX_FILL + 1)), "4,096 bytes between two segments"),
        (jpeg_with(EXIF, bytes(MAX_FILL + 1)), "4,096 bytes between two segments"),
        (jpeg_with(*[segment(b"\xff\xdb", bytes(65_000))] * 3), "131,072 bytes of tables"),
        (png_with(*[chunk(b"IDAT", b"")] * MAX_PIXEL_CHUNKS), "20,000 chunks of pixels"),
        (png_with(chunk(b"tRNS", bytes(MAX_TABLES))), "131,072 bytes of tables"),
    ],
    ids=["fill bytes", "zeros", "tables", "empty pixels", "transparency"],
)
def test_a_file_padded_with_what_costs_time_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(BrokenImageError, match=words):
        decode(data, 16)


@pytest.mark.parametrize(
    ("padded", "plain"),
    [
        (jpeg_with(*[b"\xff" * 100 + segment(b"\xff\xe1", b"x" * 60_000)] * 200), saved("JPEG")),
        (png_with(*[PROFILE] * 900), saved("PNG")),
        (png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24)))), saved("PNG")),
        (png_with(chunk(b"tEXt", b"a\0b")[:-1] + b"x"), saved("PNG")),
        (png_with(chunk(b"eXIf", b"II*\0")), saved("PNG")),
    ],
    ids=["metadata of 12 MB", "profiles", "a long text", "a wrong checksum", "a short EXIF"],
)
def test_what_changes_no_pixel_never_reaches_the_decoder(padded: bytes, plain: bytes) -> None:
    assert essence(padded)._replace(profile=b"") == essence(plain)
    assert decode(padded, 16).tobytes() == decode(plain, 16).tobytes()


def exif_of(kind: int, values: int, value: bytes, order: str = "<") -> bytes:
    """Return EXIF with a width and an orientation of this type, count and value."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    width = struct.pack(f"{order}HHII", 0x0100, 4, 1, 40)
    entry = struct.pack(f"{order}HHI", 0x0112, kind, values) + value.ljust(4, b"\0")
    return mark + struct.pack(f"{order}IH", 8, 2) + width + entry + bytes(4)


@pytest.mark.parametrize(
    ("exif", "expected"),
    [
        (exif_of(3, 1, b"\x06\0"), 6),
        (exif_of(3, 1, b"\0\x06", ">"), 6),
        (exif_of(1, 1, b"\x08"), 8),
        (exif_of(4, 1, b"\x03\0\0\0"), 3),
        (exif_of(3, 1, b"\x09\0"), 1),
        (exif_of(8, 1, b"\xff\xff"), 1),
        (exif_of(3, 2**24, b"\x06\0"), 1),
        (exif_of(5, 2**31, b"\x06\0"), 1),
        (exif_of(99, 1, b"\x06\0"), 1),
        (exif_of(3, 1, b"\x06\0")[:20], 1),
        (b"II*\0" + b"\xff" * 4, 1),
        (b"II*\0" + b"\x08\0\0\0" + b"\xff" * 2**20, 1),
        (b"", 1),
        (b"XX", 1),
    ],
)
def test_only_an_orientation_that_is_one_number_of_1_to_8_turns(exif: bytes, expected: int) -> None:
    assert orientation(exif, b"") == expected
    assert orientation(b"Exif\0\0" + exif, b"") == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tag", [0x0128, 0x011A, 0x0000])
def test_a_photo_is_turned_whatever_its_other_tags_are(kind: str, tag: int) -> None:
    exif = bytearray(exif_of(3, 1, b"\x06\0"))
    exif[10:14] = struct.pack("<HH", tag, 1)  # Resolutions are not bytes.
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(kind, noise(mode="RGB"), exif=b"Exif\0\0" + exif, **options)
    plain = saved(kind, noise(mode="RGB"), **options)
    turned = decode(plain, 16).transpose(Image.Transpose.ROTATE_270)
    assert decode(data, 16).tobytes() == turned.tobytes()


# Dimensions, resolution, its unit, software, date, a thumbnail's place, EXIF, GPS and unknown ones.
TAGS = (0x0100, 0x0101, 0x011A, 0x0128, 0x0131, 0x0132, 0x0201, 0x8769, 0x8825, 0xC4A5, 0xFFFF)
TYPES = (*range(1, 10), 11, 12, 16)
COUNTS = (0, 1, 2, 4, 1_000, 2**32 - 1)


def with_exif(kind: str, exif: bytes) -> bytes:
    return saved(kind, noise(mode="RGB").crop((0, 0, 12, 8)), exif=b"Exif\0\0" + exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tag", TAGS)
def test_no_type_or_count_of_another_tag_keeps_a_photo_from_being_turned(
    kind: str, tag: int
) -> None:
    upright = decode(saved(kind, noise(mode="RGB").crop((0, 0, 12, 8))), 8)
    turned = upright.transpose(Image.Transpose.ROTATE_270)
    for type_ in TYPES:
        for count in COUNTS:
            for value, wanted in ((6, turned), (1, upright)):
                entries = sorted(
                    [
                        struct.pack("<HHI", 0x0112, 3, 1) + struct.pack("<HH", value, 0),
                        struct.pack("<HHI", tag, type_, count) + b"\x26\0\0\xff",
                    ],
                    key=lambda entry: struct.unpack("<H", entry[:2]),
                )
                exif = struct.pack("<2sHIH", b"II", 42, 8, 2) + b"".join(entries) + bytes(4)
                assert decode(with_exif(kind, exif), 8).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of some of these tags.
def test_an_opened_image_is_turned_whatever_its_other_tags_are(kind: str, type_: int) -> None:
    entry = struct.pack("<HHI", 0x011A, type_, 1) + b"\x26\0\0\xff"
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = struct.pack("<2sHIH", b"II", 42, 8, 2) + turned + entry + bytes(4)
    data = with_exif(kind, exif)
    opened = load_pil(Image.open(io.BytesIO(data)), PREPROCESSING)
    assert opened.tobytes() == load(data, PREPROCESSING).tobytes()
    assert opened.shape == (24, 16, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100}, {"mode": "CMYK"}])
@pytest.mark.parametrize("size", [(40, 32), (41, 33), (900, 700)])
def test_a_jpeg_without_its_end_marker_is_taken_if_all_rows_are_there(
    options: dict[str, object], size: tuple[int, int]
) -> None:
    image = noise(mode=str(options.get("mode", "RGB"))).resize(size)
    data = saved("JPEG", image, **{key: options[key] for key in options if key != "mode"})
    whole = decode(data, 16).tobytes()
    assert decode(data[:-2], 16).tobytes() == whole
    assert decode(data[:-1], 16).tobytes() == whole
    scan = data.rindex(SCAN)
    for share in (0.2, 0.6, 0.9):
        with pytest.raises(BrokenImageError, match="cut off"):
            decode(data[: scan + int(share * (len(data) - scan))], 16)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC: convert it, such as with `heif-convert"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0heic", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF: convert it, such as with `avifdec"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0avifmiaf", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\2\0", "a video: convert"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"II*\0\x08\0\0\0", "TIFF or a camera's raw file"),
        (b"GIF89a", "GIF"),
        (saved("BMP"), "BMP"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's raw file: convert"),
        (b"FUJIFILMCCD-RAW 0201FF", "a camera's raw file"),
        (b"IIU\0\x18\0\0\0", "a camera's raw file"),
        (b"IIRO\x08\0\0\0", "a camera's raw file"),
        (b"\0\x05\x16\x07\0\2\0\0Mac OS X        ", "the companion of a file on macOS"),
        (saved("PNG").replace(b"\r\n", b"\n"), "a PNG whose line ends a copy as text has changed"),
    ],
)
def test_another_format_is_named_with_a_way_to_convert_it(data: bytes, words: str) -> None:
    expected = f"not a JPEG, PNG or WebP image, but {words}"
    with pytest.raises(NotAnImageError, match=re.escape(expected)):
        decode(data, 16)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"c" * 60_000}])
def test_a_jpegs_size_is_in_its_header(mode: str, options: dict[str, object]) -> None:
    assert image_size(saved("JPEG", noise(mode=mode), **options)) == (40, 32)


@pytest.mark.parametrize(
    "options",
    [
        {"lossless": True},
        {"quality": 50},
        {"exif": exif_of(3, 1, b"\x06\0")},
        {"save_all": True, "append_images": [noise(1, "RGB")]},
    ],
)
def test_a_webps_size_is_in_its_header(options: dict[str, object]) -> None:
    assert image_size(saved("WEBP", noise(mode="RGB"), **options)) == (40, 32)


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8X", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]
)
def test_what_has_no_header_has_no_size(data: bytes) -> None:
    assert pixel_count(data) == 0


def test_a_png_that_does_not_begin_with_its_header_is_damaged_and_not_large() -> None:
    data = saved("PNG")
    for first in (chunk(b"CgBI", b"\x50\0\x20\2"), chunk(b"tEXt", b"a\0b")):
        with pytest.raises(BrokenImageError, match="the image's header is damaged"):
            decode(data[:8] + first + data[8:], 16)


def test_an_error_without_words_is_named() -> None:
    data = saved("PNG", noise(mode="L").quantize(4))
    start, end = data.index(b"PLTE") - 4, data.index(b"IDAT") - 4
    with pytest.raises(BrokenImageError, match=r"the image cannot be decoded: \w"):
        decode(data[:start] + data[end:], 16)


def test_a_file_that_gives_two_sizes_is_refused() -> None:
    data = saved("PNG")
    large = struct.pack(">II", 4_000, 4_000) + data[24:29]
    place = data.index(b"IDAT") - 4
    with pytest.raises(BrokenImageError, match="two sizes"):
        decode(data[:place] + chunk(b"IHDR", large) + data[place:], 16)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_file_with_more_pixels_than_any_photo_of_its_bytes_is_refused(kind: str) -> None:
    data = saved(kind, Image.new("1", (7_000, 7_000)), lossless=True)
    assert len(data) * PIXELS_PER_BYTE + FREE_PIXELS < 49_000_000
    with pytest.raises(ImageTooLargeError, match="7000 x 7000 pixels in"):
        decode(data, 16)


@pytest.mark.parametrize(
    "data",
    [
        saved("JPEG", Image.new("L", (6_000, 4_000)), quality=1, optimize=True),
        saved("JPEG", Image.new("RGB", (6_000, 4_000)), quality=1, progressive=True),
        saved("PNG", Image.new("RGB", (3_000, 2_000))),
        saved("WEBP", Image.new("RGB", (1_000, 1_000)), lossless=True),
    ],
    ids=["grey", "progressive", "PNG", "a small WebP"],
)
def test_an_even_picture_of_a_common_program_is_taken(data: bytes) -> None:
    assert decode(data, 16).mode == "RGB"
