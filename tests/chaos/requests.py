"""A request's bytes, and what must come back."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlencode

from taillift.models.bundle.ensemble import Ensemble
from taillift.service.problems import UndecodableError
from tests.chaos.photos import Photo

BOUNDARY: Final = "chaos"
TOP: Final = 5
PIECES: Final = 8
Leave = Literal["while sending", "before the answer"]


@dataclass(frozen=True)
class Request:
    """`head` and `parts` of the body are sent, with `pause` seconds before each part but the first.

    A client that is to `leave` does so `pause` seconds after the last part. Any other must get one
    of `statuses`; with 200 from an inference route, `photos` tell what for each image, in order.
    """

    head: bytes
    parts: Sequence[bytes]
    statuses: frozenset[int]
    photos: Sequence[Photo] = ()
    ensemble: Ensemble = Ensemble.FULL
    pause: float = 0.0
    leave: Leave | None = None


def image(photo: Photo, choose: random.Random) -> Request:
    """One image as the body."""
    path, ensemble = _path(choose)
    return Request(
        head(path, photo.data), [photo.data], frozenset({photo.status}), [photo], ensemble
    )


def images(photos: Sequence[Photo], choose: random.Random) -> Request:
    """One or more images as a form."""
    path, ensemble = _path(choose)
    body = form(photos)
    statuses = frozenset({_status(photos)})
    return Request(head(path, body, form=True), [body], statuses, photos, ensemble)


def _path(choose: random.Random) -> tuple[str, Ensemble]:
    ensemble = choose.choice(list(Ensemble))
    if choose.random() < 0.2:
        return "/confidence?" + urlencode({"ensemble": ensemble}), ensemble
    return "/classify?" + urlencode({"ensemble": ensemble, "top_k": TOP}), ensemble


def _status(photos: Sequence[Photo]) -> int:
    """200 where one can be used; else the status that all share, or 422."""
    statuses = {photo.status for photo in photos}
    if 200 in statuses:
        return 200
    return statuses.pop() if len(statuses) == 1 else UndecodableError.status


def head(path: str, body: bytes | None, method: str = "POST", form: bool = False) -> bytes:
    """Without a body's length where `body` is None: it comes in chunks."""
    length = "Transfer-Encoding: chunked" if body is None else f"Content-Length: {len(body)}"
    kind = f"multipart/form-data; boundary={BOUNDARY}" if form else "application/octet-stream"
    lines = [f"{method} {path} HTTP/1.1", "Host: chaos", length, f"Content-Type: {kind}"]
    return "\r\n".join([*lines, "", ""]).encode()


def with_header(head: bytes, line: str) -> bytes:
    return head.removesuffix(b"\r\n") + f"{line}\r\n\r\n".encode()


def form(photos: Sequence[Photo], name: str = "images") -> bytes:
    """Each file is called by its place."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{place}"'
        "\r\n\r\n".encode()
        + photo.data
        + b"\r\n"
        for place, photo in enumerate(photos)
    ]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def pieces(body: bytes) -> list[bytes]:
    step = max(1, -(-len(body) // PIECES))
    return [body[start : start + step] for start in range(0, len(body), step)]


def chunked(parts: Iterable[bytes]) -> list[bytes]:
    """As `Transfer-Encoding: chunked` wants them."""
    return [b"%x\r\n%s\r\n" % (len(part), part) for part in parts] + [b"0\r\n\r\n"]
