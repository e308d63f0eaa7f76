"""Sends one input to the service, and says what is wrong with the answers."""

import io
import json
import re
import socket
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from PIL import Image

from benchmarks.served import Served

# 504 and 503 are for a client's own deadline; a 500 is never right.
EXPECTED: Final = frozenset(
    {100, 200, 204, 304, 400, 401, 403, 404, 405, 406, 408, 411, 413, 414, 415, 417, 421, 422, 431}
    | {429, 501, 503, 504, 505}
)
BODILESS: Final = frozenset({100, 204, 304})
ANSWER_SECONDS: Final = 30
# Seconds of processor time that one request may take: in itself, for each megabyte that is sent,
# and for each megapixel that is decoded. The clock has ticks of a hundredth.
BASE, PER_MEGABYTE, PER_MEGAPIXEL, TICKS = 0.05, 0.1, 0.03, 0.02
# An input that took too long is sent again, after a growing pause: for a moment, other work on the
# machine makes everything dearer.
TRIES: Final = 6
PAUSE_SECONDS: Final = 0.2
MAX_MEMORY_MIB: Final = 1_536
# Pillow looks for a header byte by byte, and thousands of images may begin in one input.
HEAD_BYTES: Final = 16_384
MAGIC: Final = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP", re.DOTALL)


class Inspector:
    """Judges inputs one after the other, against a service that does nothing else."""

    def __init__(self, service: Served) -> None:
        self._service = service
        # The largest share of its bound that an input took, and that input.
        self.worst, self.worst_wire = 0.0, b""

    def fault(self, wire: bytes) -> str | None:
        """Send an input and return what is wrong, or None."""
        answer, taken = self._try(wire)
        try:
            statuses = read_answers(answer, wire)
        except ValueError as error:
            return str(error)
        if unexpected := set(statuses) - EXPECTED:
            return f"answered with {min(unexpected)}"
        bound = BASE * max(len(statuses), 1) + PER_MEGABYTE * len(wire) / 1e6 + TICKS
        if taken > bound and {200, 422} & set(statuses):
            bound += PER_MEGAPIXEL * megapixels(wire)
        for attempt in range(TRIES):
            if taken <= bound:
                break
            time.sleep(attempt * PAUSE_SECONDS)
            taken = min(taken, self._try(wire)[1])
        if taken / bound > self.worst:
            self.worst, self.worst_wire = taken / bound, wire
        return f"took {taken:.2f} CPU s, over {bound:.2f}" if taken > bound else None

    def health(self) -> str | None:
        """Return why the service is not well, or None."""
        for path in ("/healthz", "/readyz"):
            wire = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
            try:
                statuses = read_answers(self._try(wire)[0], wire)
            except (ValueError, OSError) as error:
                return f"{path}: {error}"
            if statuses != [200]:
                return f"{path} answered with {statuses}"
        peak = self._service.peak_memory
        return f"{peak:.0f} MiB were in use" if peak > MAX_MEMORY_MIB else None

    def _try(self, wire: bytes) -> tuple[bytes, float]:
        """Return what comes back, and the processor seconds that the service took."""
        address = urlsplit(self._service.url)
        before = self._service.processor_seconds
        parts = []
        with socket.create_connection(
            (str(address.hostname), address.port or 80), timeout=ANSWER_SECONDS
        ) as connection:
            with suppress(OSError):  # It may be refused early, and the answer is there.
                connection.sendall(wire)
                connection.shutdown(socket.SHUT_WR)
            try:
                while part := connection.recv(65_536):
                    parts.append(part)
            except TimeoutError:
                parts.append(b"\0 no end within the time")
            except ConnectionResetError:
                pass
        return b"".join(parts), self._service.processor_seconds - before


def read_answers(text: bytes, wire: bytes) -> list[int]:
    """Return the statuses of all answers; raises `ValueError` if they are not valid HTTP.

    There may be none: what was sent need not be a whole request.
    """
    statuses, headless = [], wire.lstrip(b"\r\n").startswith(b"HEAD ")
    start = 0
    while start < len(text):
        end = text.find(b"\r\n\r\n", start)
        head = text[start : end if end >= 0 else start + 80]
        lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) [ -~]*", lines[0])
        if end < 0 or not match:
            raise ValueError(f"is not an answer: {head[:80]!r}")
        start = end + 4
        fields: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name) or "\n" in value:
                raise ValueError(f"has a broken header: {line[:80]!r}")
            fields[name.lower()] = value.strip()
        statuses.append(int(match[1]))
        if statuses[-1] in BODILESS:
            continue
        # An answer to a HEAD that was smuggled in would be read as none, too: none is meant to be.
        if headless:
            headless = False
            continue
        size = int(fields.get("content-length", "-1"))
        body = text[start : start + size]
        start += size
        if size < 0 or len(body) != size:
            raise ValueError(f"is cut off or without a length: {head[:80]!r}")
        if "json" in fields.get("content-type", ""):
            json.loads(body)
    return statuses


def megapixels(wire: bytes) -> float:
    """Return the size of all images in an input, as their headers say."""
    total = 0
    for match in MAGIC.finditer(wire):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                head = wire[match.start() : match.start() + HEAD_BYTES]
                with Image.open(io.BytesIO(head)) as image:
                    total += image.width * image.height
        except Exception:  # Pillow raises anything for a broken header.
            continue
    return total / 1e6


def replay(inspector: Inspector, files: list[Path]) -> list[tuple[Path, str]]:
    """Return the files whose inputs still have a fault, and which."""
    faults = [(file, inspector.fault(file.read_bytes()) or inspector.health()) for file in files]
    return [(file, fault) for file, fault in faults if fault]
