"""The requests that are mutated: images of every kind, forms, and others, as bytes on the wire."""

import gzip
import struct
import zlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from PIL import Image

from benchmarks.hostile import orientation, png, saved, webp
from tests.support.png import chunk

BOUNDARY: Final = b"b"
FORM: Final = b"multipart/form-data; boundary=b"


@dataclass(frozen=True)
class Message:
    """One request; its Content-Length is that of `body` if it has none of its own."""

    body: bytes = b""
    target: bytes = b"/classify"
    method: bytes = b"POST"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    version: bytes = b"HTTP/1.1"

    def wire(self) -> bytes:
        lines = [b" ".join((self.method, self.target, self.version)), b"Host: 127.0.0.1"]
        lines += [name + b": " + value for name, value in self.headers]
        names = {name.lower() for name, _ in self.headers}
        if not names & {b"content-length", b"transfer-encoding"} and self.method == b"POST":
            lines.append(b"Content-Length: %d" % len(self.body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body

    def with_header(self, name: bytes, value: bytes) -> "Message":
        return replace(self, headers=(*self.headers, (name, value)))


def form(parts: list[bytes], name: bytes = b"images") -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="' + name + b'"; filename="a.jpg"\r\n\r\n'
    return b"".join(head + part + b"\r\n" for part in parts) + b"--b--\r\n"


def images() -> Mapping[str, bytes]:
    """Return small images of every kind that a decoder treats in another way."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 4), np.uint8)
    colour, alpha = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    grey, frames = colour.convert("L"), [colour.rotate(turn) for turn in (0, 90)]
    exif = b"Exif\0\0" + orientation(3, 1, 0)
    large = Image.linear_gradient("L").resize((1_800, 1_200)).convert("RGB")
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    return {
        "jpeg": saved("JPEG", colour),
        "jpeg, progressive": saved("JPEG", colour, progressive=True, subsampling=0),
        "jpeg, grey, restarts": saved("JPEG", grey, restart_marker_blocks=2),
        "jpeg, cmyk": saved("JPEG", colour.convert("CMYK")),
        "jpeg, turned": saved("JPEG", colour, exif=exif, comment=b"a" * 40),
        "png": saved("PNG", colour),
        "png, alpha": saved("PNG", alpha),
        "png, palette": saved("PNG", colour.quantize(16), transparency=3),
        "png, 16 bits": saved("PNG", deep),
        "png, one bit": saved("PNG", grey.convert("1")),
        "png, chunks": png(
            chunk(b"eXIf", orientation(3, 1, 4)),
            chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200))),
            chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 5_000)),
            chunk(b"tRNS", struct.pack(">H", 3)),
        ),
        "webp": saved("WEBP", colour),
        "webp, lossless": saved("WEBP", alpha, lossless=True, exif=exif),
        "webp, animated": saved("WEBP", colour, save_all=True, append_images=frames),
        "webp, tiny": webp(90, 70),
        "jpeg, large": saved("JPEG", large.convert("CMYK"), progressive=True, quality=20),
        "png, large": saved("PNG", large),
        "png, one bit, large": png(width=3_000, height=2_000, bits=1),
        "webp, large": saved("WEBP", large, lossless=True),
        "gif": saved("GIF", colour),
        "bmp": saved("BMP", colour),
        "tiff": saved("TIFF", colour, compression="tiff_lzw"),
    }


LABEL: Final = b'{"id":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIj","label":"red"}'


def documents() -> Mapping[str, Message]:
    """Return requests whose body is a JSON document."""
    oip_json = (
        b'{"id":"a","inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":["%s"]}],'
        b'"parameters":{"top_k":2},"outputs":[{"name":"label"}]}'
    ) % b64encode(saved("JPEG", Image.new("RGB", (48, 64))))
    return {
        "label": Message(b'{"labels":[%s]}' % LABEL, b"/feedback"),
        "labels": Message(
            b'{"labels":[%s,{"id":"","label":null,"note":"unsure"}]}' % b",".join([LABEL] * 9),
            b"/feedback",
            headers=((b"Content-Type", b"application/json"),),
        ),
        "oip, json": Message(oip_json, b"/v2/models/palette/infer"),
        "oip, index": Message(b'{"ready":true}', b"/v2/repository/index"),
    }


def messages() -> Mapping[str, Message]:
    """Return one request for each image, and others."""
    kinds = images()
    body = kinds["jpeg"]
    compressed = gzip.compress(body, mtime=0)
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:99], body[99:]))
    typed = (b"Content-Type", FORM)
    oip_tensor = b"".join(struct.pack("<I", len(image)) + image for image in (body, kinds["png"]))
    oip_head = (
        b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[2],"parameters":'
        b'{"binary_data_size":%d}}],"outputs":[{"name":"label"},{"name":"error"}]}'
    ) % len(oip_tensor)
    return {
        **{name: Message(image) for name, image in kinds.items()},
        "form": Message(form([body, kinds["png"], kinds["webp"]]), headers=(typed,)),
        "form, query": Message(
            form([body]), b"/classify?ensemble=full&top_k=3&coverage=0.9", headers=(typed,)
        ),
        "confidence": Message(body, b"/confidence?classes=red&classes=blue&prior=train"),
        "chunked": Message(chunked + b"0\r\n\r\n", headers=((b"Transfer-Encoding", b"chunked"),)),
        **documents(),
        "oip, binary": Message(
            oip_head + oip_tensor,
            b"/v2/models/palette/versions/1/infer",
            headers=((b"Inference-Header-Content-Length", b"%d" % len(oip_head)),),
        ),
        "review, delete": Message(b"", b"/review/AAECAwQFBgcICQoL", b"DELETE"),
        "gzip": Message(compressed, headers=((b"Content-Encoding", b"gzip"),)),
        **{
            path: Message(b"", path.encode(), b"GET")
            for path in (
                "/",
                "/healthz",
                "/readyz",
                "/metrics",
                "/classes",
                "/classes/red",
                "/classes?group=few",
                "/model",
                "/docs",
                "/openapi.json",
                "/review?limit=5&after=AAECAwQFBgcICQoL",
                "/review/summary",
                "/review/AAECAwQFBgcICQoL/photo",
                "/nothing",
            )
        },
    }
