"""Requests that take much work for few bytes: what each costs the service.

    python -m benchmarks.hostile BUNDLE

Each is sent once to a service of its own and prints one row: the service's processor seconds, and
the bound of 0.05 + 0.1 for each megabyte sent + 0.03 for each megapixel that is decoded.
"""

import argparse
import http.client
import io
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from PIL import Image

from benchmarks.served import taillift
from benchmarks.tables import RESULTS, markdown, write_result

MEGABYTE: Final = 1e6
FORM: Final = "multipart/form-data; boundary=b"
LIMIT_SECONDS: Final = 30
# Work may go on after the answer, so the clock is read once it has stood still for so long.
QUIET_SECONDS: Final = 1.0


class Hostile(NamedTuple):
    """One request, and the megapixels that it would have decoded."""

    body: bytes
    megapixels: float = 0
    kind: str = "image/jpeg"
    path: str = "/classify?ensemble=off"


def saved(kind: str, image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, width: int = 64, height: int = 48, bits: int = 8) -> bytes:
    """Return an even grey PNG with these chunks in front of its pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + (width * bits + 7) // 8) * height), 9)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def webp(width: int, height: int) -> bytes:
    """Return a lossless WebP of a few bytes that is one colour all over."""
    data = bytearray(saved("WEBP", Image.new("RGB", (16, 16)), lossless=True))
    struct.pack_into("<I", data, 21, (height - 1) << 14 | (width - 1))
    return bytes(data)


def form(*files: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    return b"".join(head + data + b"\r\n" for data in files) + b"--b--\r\n"


def orientation(kind: int, values: int, size: int) -> bytes:
    entry = struct.pack("<HHII", 0x0112, kind, values, 26)
    return struct.pack("<2sHIH", b"II", 42, 8, 1) + entry + bytes(4) + bytes(size)


def requests() -> Mapping[str, Callable[[], Hostile]]:
    """Return the requests by name, each made when it is needed."""
    jpeg = saved("JPEG", Image.new("RGB", (64, 48)))
    large = Image.new("CMYK", (7_000, 7_000))
    text = b'--b\r\nContent-Disposition: form-data; name="images"\r\n\r\n' + b"a" * 2**20
    return {
        "an ordinary photo": lambda: Hostile(jpeg),
        "form of zeros, 30 MB": lambda: Hostile(form(bytes(30_000_000)), kind=FORM),
        "form of almost-boundaries, 30 MB": lambda: Hostile(
            form(b"\r\n--bX" * 5_000_000), kind=FORM
        ),
        "charset=punycode, text of 1 MiB": lambda: Hostile(
            text + b"\r\n--b--\r\n", kind=f"{FORM}; charset=punycode"
        ),
        "16 WebPs of 34 bytes, 50 Mpx each": lambda: Hostile(
            form(*[webp(16_383, 3_051)] * 16), kind=FORM
        ),
        "1-bit PNG of 49 Mpx": lambda: Hostile(png(width=7_000, height=7_000, bits=1)),
        "8-bit PNG of 49 Mpx": lambda: Hostile(png(width=7_000, height=7_000), 49),
        "progressive CMYK JPEG of 49 Mpx": lambda: Hostile(
            saved("JPEG", large, progressive=True), 49
        ),
        "JPEG with fill bytes, 15 MB": lambda: Hostile(jpeg[:2] + b"\xff" * 15_000_000 + jpeg[2:]),
        "PNG, orientation of millions of rationals, 15 MB": lambda: Hostile(
            png(chunk(b"eXIf", orientation(5, 1_800_000, 15_000_000)))
        ),
        "WebP, orientation of millions of shorts, 15 MB": lambda: Hostile(
            saved("WEBP", Image.new("RGB", (64, 48)), exif=orientation(3, 7_000_000, 15_000_000))
        ),
        "PNG of 1.2 million empty IDATs, 15 MB": lambda: Hostile(
            png(chunk(b"IDAT", b"") * 1_250_000)
        ),
        "PNG with 990 profiles that unpack to 1 MiB": lambda: Hostile(
            png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20))) * 990)
        ),
        "labels repeated in an address of 31 KB": lambda: Hostile(
            jpeg, path="/confidence?ensemble=off&" + "&".join(["classes=" + "t-shirt"] * 1_800)
        ),
    }


def cost(bundle: Path, request: Hostile) -> tuple[int, float, float]:
    """Return the status, the service's processor seconds, and the seconds until the answer.

    The status is 0 if there is no answer in time.
    """
    with taillift(bundle) as service:
        address = urlsplit(service.url)
        connection = http.client.HTTPConnection(
            str(address.hostname), address.port, timeout=LIMIT_SECONDS
        )
        before, start = service.processor_seconds, time.monotonic()
        connection.request("POST", request.path, request.body, {"Content-Type": request.kind})
        try:
            answer = connection.getresponse()
            answer.read()
            status = answer.status
        except TimeoutError:
            status = 0
        seconds = time.monotonic() - start
        end, last = start + LIMIT_SECONDS, -1.0
        while service.processor_seconds - last > 0.02 and time.monotonic() < end:
            last = service.processor_seconds
            time.sleep(QUIET_SECONDS)
        return status, service.processor_seconds - before, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "hostile.md")
    options = parser.parse_args()
    rows = []
    for name, make in requests().items():
        request = make()
        status, processor, seconds = cost(options.bundle, request)
        megabytes = len(request.body) / MEGABYTE
        bound = (
            0.05 + 0.1 * megabytes + 0.03 * (request.megapixels if status == HTTPStatus.OK else 0)
        )
        holds = "yes" if processor <= bound else "no"
        rows.append(
            [
                name,
                f"{megabytes:.3f}",
                str(status),
                f"{processor:.2f}",
                f"{bound:.2f}",
                holds,
                f"{seconds:.2f}",
            ]
        )
    titles = ["request", "MB", "status", "CPU s", "bound", "within", "answered after s"]
    write_result(options.out, [markdown(titles, rows)])


if __name__ == "__main__":
    main()
