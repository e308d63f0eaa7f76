"""Mutations: of an image's bytes, a form, a JSON document, a request's fields, its wire."""

import gzip
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from tests.fuzz.seeds import FORM, Message, documents, form
from tests.support.png import chunk

Chunks = list[tuple[bytes, bytes]]

INTERESTING: Final = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    32_767,
    65_535,
    2**24,
    2**31 - 1,
    2**32 - 1,
)
MOST_BYTES: Final = 4 * 2**20
HEADERS: Final[Sequence[tuple[bytes, bytes]]] = (
    (b"Content-Length", b"0"),
    (b"Content-Length", b"-1"),
    (b"Content-Length", b"5, 5"),
    (b"Content-Length", b"99999999999999999999"),
    (b"Transfer-Encoding", b"chunked"),
    (b"Transfer-Encoding", b"gzip, chunked"),
    (b"Content-Encoding", b"gzip"),
    (b"Content-Encoding", b"br, gzip"),
    (b"Content-Type", b"multipart/form-data"),
    (b"Content-Type", FORM + b"; charset=punycode"),
    (b"Content-Type", b'multipart/form-data; boundary="\xff"'),
    (b"Content-Type", b"application/json"),
    (b"Expect", b"100-continue"),
    (b"Expect", b"nothing"),
    (b"Upgrade", b"h2c"),
    (b"Connection", b"close"),
    (b"Connection", b"upgrade, keep-alive"),
    (b"Host", b"elsewhere.example"),
    (b"Host", b""),
    (b"Origin", b"http://elsewhere.example"),
    (b"Origin", b"null"),
    (b"Sec-Fetch-Site", b"cross-site"),
    (b"Accept", b"text/plain; version=x"),
    (b"Accept", b"application/openmetrics-text; version=1.0.0"),
    (b"Accept-Encoding", b"gzip;q=x, *"),
    (b"If-None-Match", b'W/"\xe9'),
    (b"Range", b"bytes=0-1,1-2"),
    (b"Authorization", b"Bearer \xff"),
    (b"X-Request-Timeout", b"nan"),
    (b"X-Request-Timeout", b"1e-9"),
    (b"X-Taillift-Group", b"\xe4\x00"),
    (b"X-Taillift-Count", b"no"),
    (b"X-Request-ID", b"a\tb" * 99),
    (b"Forwarded", b"for=_x;proto=\x7f"),
)
TARGETS: Final[Sequence[bytes]] = (
    b"*", b"//", b"/%", b"/%00", b"/%ff%fe", b"/classes/%0a", b"/classes/" + b"a" * 3_000,
    b"/classify?top_k=99999999999999999999", b"/classify?top_k=nan", b"/classify?coverage=1e999",
    b"/classify?ensemble=", b"/classify?prior=nan", b"/classify?&&=&=", b"/classify?%ff=%fe",
    b"/confidence?" + b"&".join([b"classes=red"] * 900), b"/confidence?classes=" + b"r" * 9_000,
    b"/classes?group=many&group=", b"/classes?sort=%00", b"http://x/classify", b"x:1", b"/../etc",
    b"/static/../../x", b"/classify;x", b"/metrics?name[]=" + b"x" * 500, b"/\xc3\xa9",
)  # fmt: skip
REQUEST: Final = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LINES: Final[Sequence[bytes]] = (
    b"\r\n", b"\n", b"\r", b"\0", b"--b", b"\r\n--b--\r\n", b"\r\n--b\r\n\r\n", b"\r\n\r\n", b" ",
    b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b"5;x=y\r\n", b": ", b"\r\n folded", b"\xff",
    b'Content-Disposition: form-data; name="images"\r\n', REQUEST,
    b"Content-Type: text/plain; charset=idna\r\n", b"Content-Transfer-Encoding: base64\r\n",
)  # fmt: skip
MEMBERS: Final = (b'"%x":0,', b'{"%d":[]},', b"[%d,", b'{"id":"%d","label":""},', b"%de9,")
METHODS: Final = (b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE", b"PRI", b"\0")
VERSIONS: Final = (b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.10", b"HTTP", b"")


def bytes_of(data: bytes, random: Random) -> bytes:
    """Return `data` with one change at a random place."""
    place = random.randrange(len(data) + 1)
    other = random.randrange(len(data) + 1)
    first, last = sorted((place, other))
    number = random.choice(INTERESTING)
    match random.randrange(9):
        case 0 if place < len(data):
            changed = bytes([data[place] ^ (1 << random.randrange(8))])
            return data[:place] + changed + data[place + 1 :]
        case 1:
            order = random.choice("<>")
            value = struct.pack(order + "I", number)[:: random.choice((1, -1))]
            width = random.choice((1, 2, 4))
            return data[:place] + value[:width] + data[place + width :]
        case 2:
            return data[:place]
        case 3:
            return data[:first] + data[last:]
        case 4:
            times = random.choice((1, 1, 1, 30, 2_000))
            piece = data[first : min(last, first + MOST_BYTES // times)]
            return data[:last] + piece * times + data[last:]
        case 5:
            line = random.choice(LINES)
            # Each request is answered with the page: thousands would be gigabytes.
            times = random.choice((1, 1, 9, 200 if line == REQUEST else 20_000))
            return data[:place] + line * times + data[place:]
        case 6:
            return data[:place] + random.randbytes(random.choice((1, 4, 64))) + data[place:]
        case 7:
            size = random.choice((1_000, 300_000))
            return data[:place] + bytes([random.choice((0, 255))]) * size + data[place:]
        case _:
            width = random.choice((1, 4, 16))
            return data[:place] + random.randbytes(width) + data[place + width :]


def image(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Return an image file with some changes; checksums and sizes in it are often right."""
    if random.random() < 0.1:
        other = random.choice(others)
        return data[: random.randrange(len(data))] + other[random.randrange(len(other)) :]
    if random.random() < 0.6:
        match data[:4]:
            case b"\x89PNG":
                return png_of_chunks(changed(png_chunks(data), random))
            case b"RIFF":
                return webp_of_chunks(changed(webp_chunks(data), random))
            case _ if data[:2] == b"\xff\xd8":
                # Split before each marker, but not before restarts and escaped bytes.
                segments = re.split(rb"(?=\xff[\xc0-\xcf\xd8-\xfe])", data)
                pairs = changed([(each[:2], each[2:]) for each in segments], random)
                return b"".join(kind + content for kind, content in pairs)
    for _ in range(random.choice((1, 1, 2, 5))):
        data = bytes_of(data, random)
    return data


def changed(chunks: Chunks, random: Random) -> Chunks:
    """Return the chunks of a file with one of them lost, doubled, moved or changed."""
    at = random.randrange(len(chunks))
    before, (kind, content), after = chunks[:at], chunks[at], chunks[at + 1 :]
    match random.randrange(5):
        case 0:
            return before + after
        case 1:
            return before + [(kind, content)] * random.choice((2, 4, 90, 4_000)) + after
        case 2:
            place = random.randrange(len(chunks))
            others = before + after
            return [*others[:place], (kind, content), *others[place:]]
        case 3 if kind == b"IDAT":
            pixels = bytes_of(zlib.decompress(content), random)
            return [*before, (kind, zlib.compress(pixels)), *after]
        case _:
            return [*before, (kind, bytes_of(content, random)[:MOST_BYTES]), *after]


def png_chunks(data: bytes) -> Chunks:
    chunks, place = [], 8
    while place + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    return chunks


def png_of_chunks(chunks: Chunks) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in chunks)


def webp_chunks(data: bytes) -> Chunks:
    chunks, place = [], 12
    while place + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, place + 4)
        chunks.append((data[place : place + 4], data[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    return chunks


def webp_of_chunks(chunks: Chunks) -> bytes:
    parts = [
        kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
        for kind, content in chunks
    ]
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def sent_image(message: Message, images: Sequence[bytes], random: Random) -> bytes:
    """Return a well-formed request with a changed image."""
    return replace(message, body=image(random.choice(images), images, random)).wire()


def sent_form(message: Message, images: Sequence[bytes], random: Random) -> bytes:
    """Return a request whose form is changed, in its parts or in their limits."""
    parts = [
        image(each, images, random) if random.random() < 0.5 else each
        for each in random.choices(images, k=random.choice((1, 2, 5, 40)))
    ]
    body = form(parts, random.choice((b"images", b"image", b"")))
    for _ in range(random.randrange(3)):
        body = bytes_of(body, random)
    target = random.choice((b"/classify", b"/confidence"))
    return replace(message, body=body, target=target, headers=((b"Content-Type", FORM),)).wire()


def sent_document(_: Message, _images: Sequence[bytes], random: Random) -> bytes:
    """Return a well-formed request with a changed JSON document, or one of many members."""
    message = random.choice(list(documents().values()))
    body = message.body
    for _number in range(random.choice((0, 1, 1, 2, 4))):
        body = bytes_of(body, random)
    if random.random() < 0.3:
        # So many that the body is within the limits, and some that are not.
        member, times = random.choice(MEMBERS), random.choice((90, 9_000, 30_000))
        place = random.choice([0, *(match.end() for match in re.finditer(rb"[\[{]", body))])
        body = body[:place] + b"".join(member % number for number in range(times)) + body[place:]
    return replace(message, body=body).wire()


def sent_fields(message: Message, _: Sequence[bytes], random: Random) -> bytes:
    """Return a request with another method, target, version or other headers."""
    for _number in range(random.randint(1, 3)):
        match random.randrange(6):
            case 0:
                message = replace(message, method=random.choice(METHODS))
            case 1:
                message = replace(message, target=random.choice(TARGETS))
            case 2:
                message = replace(message, version=random.choice(VERSIONS))
            case 3:
                message = replace(message, target=bytes_of(message.target, random)[:9_000])
            case 4:
                packed = gzip.compress(bytes(random.choice((1, 10**6, 3 * 10**7))), mtime=0)
                message = replace(message, body=packed).with_header(b"Content-Encoding", b"gzip")
            case _:
                message = message.with_header(*random.choice(HEADERS))
    return message.wire()


def sent_wire(message: Message, _: Sequence[bytes], random: Random) -> bytes:
    """Return the bytes of a request with changes anywhere, perhaps with another behind it."""
    wire = message.wire()
    for _number in range(random.choice((1, 1, 2, 4))):
        wire = bytes_of(wire, random)
    return wire + (message.wire() if random.random() < 0.2 else b"")


WAYS: Final[Sequence[Callable[[Message, Sequence[bytes], Random], bytes]]] = (
    sent_image,
    sent_image,
    sent_form,
    sent_document,
    sent_fields,
    sent_wire,
)
