"""Every kind of request: a function that draws one at random."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from tests.chaos.photos import Photo, Photos
from tests.chaos.requests import (
    PIECES,
    Request,
    chunked,
    form,
    head,
    image,
    images,
    pieces,
    with_header,
)

# The service is started with these.
MAX_IMAGES: Final = 64
MAX_BODY_BYTES: Final = 2 * 2**20
BODY_SECONDS: Final = 2.0

NO_TIME: Final = ("0.000001", "0.0001")

Kind = Callable[[Photos, random.Random], Request]


def some(photos: Sequence[Photo], choose: random.Random, least: int, most: int) -> list[Photo]:
    return choose.choices(photos, k=choose.randint(least, most))


def good(photos: Photos, choose: random.Random) -> Request:
    return images(some(photos.good, choose, 1, 6), choose)


def one_good(photos: Photos, choose: random.Random) -> Request:
    return image(choose.choice(photos.good), choose)


def damaged(photos: Photos, choose: random.Random) -> Request:
    return image(choose.choice(photos.damaged), choose)


def foreign(photos: Photos, choose: random.Random) -> Request:
    return image(choose.choice(photos.foreign), choose)


def bomb(photos: Photos, choose: random.Random) -> Request:
    return image(choose.choice(photos.bombs), choose)


def mixed(photos: Photos, choose: random.Random) -> Request:
    every = [*photos.damaged, *photos.foreign, *photos.bombs, *photos.poison]
    chosen = some(photos.good, choose, 1, 3) + some(every, choose, 1, 4)
    choose.shuffle(chosen)
    return images(chosen, choose)


def many(photos: Photos, choose: random.Random) -> Request:
    return images(
        some([*photos.good, *photos.damaged], choose, MAX_IMAGES // 2, MAX_IMAGES), choose
    )


def too_many(photos: Photos, choose: random.Random) -> Request:
    body = form(some(photos.good, choose, MAX_IMAGES + 1, 2 * MAX_IMAGES))
    return Request(head("/classify", body, form=True), [body], frozenset({400}))


def poison(photos: Photos, choose: random.Random) -> Request:
    return image(choose.choice(photos.poison), choose)


def slow(photos: Photos, choose: random.Random) -> Request:
    return image(choose.choice(photos.slow), choose)


def malformed(photos: Photos, choose: random.Random) -> Request:
    photo = choose.choice(photos.good).data
    whole = form([choose.choice(photos.good)])
    path, body, is_form = choose.choice(
        [
            ("/classify", b"", False),
            ("/classify?ensemble=nine", photo, False),
            ("/classify?unknown=1", photo, False),
            ("/classify?top_k=0", photo, False),
            ("/confidence?classes=nothing", photo, False),
            ("/classify", form([], "pictures"), True),
            ("/classify", form([choose.choice(photos.good)], "pictures"), True),
            ("/classify", whole[: len(whole) // 2], True),
        ]
    )
    return Request(head(path, body, form=is_form), [body], frozenset({400}))


def elsewhere(_: Photos, choose: random.Random) -> Request:
    method, path, status = choose.choice(
        [("GET", "/classify", 405), ("POST", "/classes", 405), ("GET", "/nothing", 404)]
    )
    return Request(head(path, b"", method=method), [], frozenset({status}))


def asked(_: Photos, choose: random.Random) -> Request:
    paths = ["/healthz", "/readyz", "/model", "/classes", "/metrics", "/docs"]
    path = choose.choice([*paths, "/review", "/review/summary"])
    return Request(head(path, b"", method="GET"), [], frozenset({200}))


def labelled(_: Photos, choose: random.Random) -> Request:
    """Labels for ids of nobody, or a document that is refused as soon as it is wrong."""
    body, status = choose.choice(
        [
            (b'{"labels":[%s{"id":"a","label":null}]}' % (b'{"id":"b","label":"red"},' * 99), 200),
            (b'{"labels":[%s{}]}' % (b"{}," * 50_000), 400),
            (b"{%s}" % b",".join(b'"%d":0' % number for number in range(20_000)), 400),
            (b'{"labels":%s' % (b"[" * 90_000), 400),
            (b" " * 2**19, 413),
        ]
    )
    return Request(head("/feedback", body), [body], frozenset({status}))


def oversize(_: Photos, choose: random.Random) -> Request:
    """With a Content-Length, which is refused before the body comes."""
    body = choose.randbytes(MAX_BODY_BYTES + choose.randint(1, 10_000))
    return Request(head("/classify", body), pieces(body), frozenset({413}))


def oversize_chunked(_: Photos, choose: random.Random) -> Request:
    body = choose.randbytes(MAX_BODY_BYTES + choose.randint(1, 10_000))
    return Request(head("/classify", None), chunked(pieces(body)), frozenset({413}))


def chunked_good(photos: Photos, choose: random.Random) -> Request:
    request = one_good(photos, choose)
    (body,) = request.parts
    length = b"Content-Length: %d" % len(body)
    chunks = request.head.replace(length, b"Transfer-Encoding: chunked")
    return replace(request, head=chunks, parts=chunked(pieces(body)))


def slow_sender(photos: Photos, choose: random.Random) -> Request:
    """Slow, and in time."""
    request = one_good(photos, choose)
    (body,) = request.parts
    return replace(request, parts=pieces(body), pause=BODY_SECONDS / 4 / PIECES)


def too_slow_sender(photos: Photos, choose: random.Random) -> Request:
    body = choose.choice(photos.good).data
    return Request(head("/classify", body), pieces(body), frozenset({408}), pause=BODY_SECONDS)


def left_sending(photos: Photos, choose: random.Random) -> Request:
    request = good(photos, choose)
    (body,) = request.parts
    part = body[: choose.randrange(len(body))]
    return replace(request, parts=[part], leave="while sending")


def left_waiting(photos: Photos, choose: random.Random) -> Request:
    pause = choose.choice([0.0, 0.0, 0.001, 0.01])
    return replace(good(photos, choose), pause=pause, leave="before the answer")


def no_time(photos: Photos, choose: random.Random) -> Request:
    request = good(photos, choose)
    late = with_header(request.head, f"X-Request-Timeout: {choose.choice(NO_TIME)}")
    return replace(request, head=late, statuses=frozenset({408}), photos=())


def time_enough(photos: Photos, choose: random.Random) -> Request:
    request = good(photos, choose)
    return replace(request, head=with_header(request.head, "X-Request-Timeout: 60"))


KINDS: Final[Mapping[Kind, float]] = {
    one_good: 24,
    good: 18,
    chunked_good: 4,
    time_enough: 4,
    damaged: 10,
    foreign: 4,
    bomb: 3,
    mixed: 6,
    poison: 3,
    slow: 0.3,
    many: 1,
    too_many: 0.5,
    malformed: 5,
    elsewhere: 1,
    asked: 3,
    labelled: 2,
    oversize: 1,
    oversize_chunked: 1,
    slow_sender: 1.5,
    too_slow_sender: 0.5,
    left_sending: 4,
    left_waiting: 4,
    no_time: 4,
}


def draw(photos: Photos, choose: random.Random) -> tuple[Kind, Request]:
    """A request of any kind that these photos allow."""
    kinds = {
        kind: weight
        for kind, weight in KINDS.items()
        if not ((kind is poison and not photos.poison) or (kind is slow and not photos.slow))
    }
    (kind,) = choose.choices(list(kinds), list(kinds.values()))
    return kind, kind(photos, choose)
