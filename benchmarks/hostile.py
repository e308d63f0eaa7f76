"""Requests that take much work for few bytes: what each costs the service.

    python -m benchmarks.hostile BUNDLE

Each is sent to a service of its own and makes one row: the service's processor seconds, the least
of three times, and the bound of 0.05 + 0.1 for each megabyte sent + 0.03 for each megapixel that is
decoded.
Then 8 connections send each of them as fast as they can, and ordinary photos are sent one after the
other as well: their time, compared with that next to 8 connections with ordinary photos, the photos
that were lost, the times of /healthz, and the memory before, meanwhile and after.
"""

import argparse
import http.client
import io
import multiprocessing
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from benchmarks.photos import read_photos
from benchmarks.served import Served, direct, taillift
from benchmarks.tables import RESULTS, markdown, write_result
from tests.support.png import chunk

MEGABYTE: Final = 1e6
FORM: Final = "multipart/form-data; boundary=b"
LIMIT_SECONDS: Final = 30
TRIES: Final = 3
CONNECTIONS: Final = 8
# Work may go on after the answer, so the clock is read once it has stood still for so long.
QUIET_SECONDS: Final = 1.0
# Before and after a crowd, for the memory of a service that has worked and is idle.
WARM_PHOTOS: Final = 20
REST_SECONDS: Final = 6


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


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data


def arithmetic_jpeg(scans: int, comment: bytes) -> bytes:
    """Return an even JPEG of 7,000 x 7,000 pixels in arithmetic coding.

    The first scan has the means of all blocks, and each other one coefficient of one component: 0
    in all blocks, which is two bytes (ITU-T T.81, annexes D and G).
    """
    parts = [segment(0xFE, comment), segment(0xDB, bytes(1) + bytes([16] * 64))]
    components = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    parts.append(segment(0xCA, struct.pack(">BHHB", 8, 7_000, 7_000, 3) + components))
    first = segment(0xDA, bytes([3, 1, 0, 2, 0, 3, 0, 0, 0, 0]))
    parts.append(first + bytes.fromhex("fdcc8e6f305850"))
    for number in range(scans - 1):
        coefficient, component = divmod(number, 3)
        band = bytes([1, 1 + component, 0, 1 + coefficient, 1 + coefficient, 0])
        parts.append(segment(0xDA, band) + bytes.fromhex("a5e3"))
    return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"


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
        "1-bit PNG of 49 Mpx, in as many bytes as it needs": lambda: Hostile(
            png(chunk(b"tEXt", bytes(45_000)), width=7_000, height=7_000, bits=1), 49
        ),
        "8-bit PNG of 49 Mpx": lambda: Hostile(png(width=7_000, height=7_000), 49),
        "progressive CMYK JPEG of 49 Mpx": lambda: Hostile(
            saved("JPEG", large, progressive=True), 49
        ),
        "arithmetic-coded JPEG of 49 scans, 49 Mpx": lambda: Hostile(
            arithmetic_jpeg(49, bytes(48_000)), 49
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


def post(service: Served, request: Hostile) -> tuple[int, float]:
    """Return the status, 0 without an answer, and the seconds until the answer."""
    address = urlsplit(service.url)
    start = time.monotonic()
    connection = http.client.HTTPConnection(
        str(address.hostname), address.port, timeout=LIMIT_SECONDS
    )
    try:
        connection.request("POST", request.path, request.body, {"Content-Type": request.kind})
        answer = connection.getresponse()
        answer.read()
        return answer.status, time.monotonic() - start
    except OSError:
        return 0, time.monotonic() - start
    finally:
        connection.close()


def cost(bundle: Path, request: Hostile) -> tuple[int, float, float]:
    """Return the status, the service's processor seconds, and the seconds until the answer.

    Of several tries, it is the one with the least processor time. The status is 0 if there is no
    answer in time.
    """
    trials = []
    with taillift(bundle) as service:
        for _ in range(TRIES):
            before = service.processor_seconds
            status, seconds = post(service, request)
            end, last = time.monotonic() + LIMIT_SECONDS, -1.0
            while service.processor_seconds - last > 0.02 and time.monotonic() < end:
                last = service.processor_seconds
                time.sleep(QUIET_SECONDS)
            trials.append((status, service.processor_seconds - before, seconds))
    return min(trials, key=lambda trial: trial[1])


class Crowd(NamedTuple):
    """The effects of a crowd on a service and on its other clients.

    The seconds of each ordinary photo, how many were lost, the seconds of each /healthz, and the
    resident MiB before, at most, and `REST_SECONDS` after.
    """

    photos: list[float]
    lost: int
    health: list[float]
    memory: tuple[float, float, float]


def press(service: Served, request: Hostile) -> None:
    """Send `request` over and over from `CONNECTIONS` threads."""

    def send() -> None:
        while True:
            post(service, request)

    for _ in range(CONNECTIONS):
        threading.Thread(target=send).start()


def next_to(bundle: Path, request: Hostile, photo: Hostile, seconds: float) -> Crowd:
    """Send ordinary photos for so long while another process sends `request`."""
    ended, health = threading.Event(), [0.0]

    def ask() -> None:
        while not ended.wait(0.1):
            start = time.monotonic()
            with direct.open(f"{service.url}/healthz", timeout=LIMIT_SECONDS) as answer:
                answer.read()
            health.append(time.monotonic() - start)

    with taillift(bundle) as service:
        for _ in range(WARM_PHOTOS):
            post(service, photo)
        before = service.memory
        service.forget_peak()
        crowd = multiprocessing.Process(target=press, args=(service, request))
        crowd.start()
        asking = threading.Thread(target=ask)
        asking.start()
        end, found = time.monotonic() + seconds, []
        while time.monotonic() < end:
            found.append(post(service, photo))
        ended.set()
        asking.join()
        crowd.kill()
        crowd.join()
        time.sleep(REST_SECONDS)
        memory = (before, service.peak_memory, service.memory)
    taken = [time_taken for status, time_taken in found if status == HTTPStatus.OK]
    return Crowd(taken, len(found) - len(taken), health, memory)


def crowds(bundle: Path, made: Mapping[str, Callable[[], Hostile]], seconds: float) -> str:
    """Return a table of ordinary photos, and of memory, next to 8 connections with each request."""
    photo = Hostile(read_photos(None)[0])
    rows, ordinary = [], 0.0
    for name, make in {"ordinary photos": lambda: photo, **made}.items():
        crowd = next_to(bundle, make(), photo, seconds)
        p99 = float(np.quantile(crowd.photos or [np.inf], 0.99))
        ordinary = ordinary or p99
        rows.append(
            [
                name,
                str(len(crowd.photos)),
                str(crowd.lost),
                f"{p99:.2f}",
                f"{p99 / ordinary:.1f}",
                f"{1e3 * np.quantile(crowd.health, 0.99):.0f}",
                f"{1e3 * max(crowd.health):.0f}",
                *(f"{mebibytes:.0f}" for mebibytes in crowd.memory),
            ]
        )
    titles = [f"{CONNECTIONS} connections send", "photos next to them", "lost", "p99, s"]
    titles += ["times the ordinary p99", "p99 of /healthz, ms", "slowest"]
    return markdown([*titles, "MiB before", "at most", "after"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--seconds", type=float, default=20, help="how long photos are sent next to a crowd"
    )
    parser.add_argument("--only", default="", help="requests whose names contain this")
    parser.add_argument("--out", type=Path, default=RESULTS / "hostile.md")
    options = parser.parse_args()
    made = {name: make for name, make in requests().items() if options.only in name}
    rows = []
    for name, make in made.items():
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
    costs, others = markdown(titles, rows), crowds(options.bundle, made, options.seconds)
    write_result(options.out, [costs, others])


if __name__ == "__main__":
    main()
