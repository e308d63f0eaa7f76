"""Mutated requests of the Open Inference Protocol: refused with 4xx, and in bounded memory."""

import asyncio
import base64
import json
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from taillift.service.http.app import create_app
from taillift.service.http.oip_request import (
    JSON_BYTES,
    InferRequest,
    decoded,
    json_size,
    parse,
    parsing_bytes,
)
from taillift.service.inference.engine import Engine
from taillift.service.problems import ServiceError
from taillift.service.settings import read_settings
from tests.fuzz.mutations import bytes_of
from tests.support.palette import CLASSES, photo

PHOTOS = [photo(CLASSES[label][0], kind) for label, kind in (("red", "PNG"), ("blue", "JPEG"))]
MAX_IMAGES = 16
NUMBERS: Sequence[Any] = (
    0,
    1,
    -1,
    2,
    3,
    255,
    2**31,
    2**63,
    2**64,
    10**300,
    1.5,
    1e308,
    True,
    None,
    "1",
    [],
    {},
)
WORDS = (
    *("image", "BYTES", "UINT8", "FP32", "shape", "data", "inputs", "outputs", "parameters", "id"),
    *(
        "binary_data_size",
        "binary_data",
        "classification",
        "probabilities",
        "set",
        "error",
        "top_k",
    ),
    *("timeout", "coverage", "ensemble", "full", "\ud800", "\0", "", "a" * 300, "é€😀"),
)

Sent = tuple[bytes, str | None]


def in_json(images: Sequence[bytes], **more: object) -> Sent:
    data = [base64.b64encode(image).decode() for image in images]
    tensor = {"name": "image", "shape": [len(images)], "datatype": "BYTES", "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode(), None


def in_text(element: str) -> Sent:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [element]}
    return json.dumps({"inputs": [tensor]}).encode(), None


def in_binary(data: bytes, datatype: str, shape: Sequence[int], **more: object) -> Sent:
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "image", "shape": shape, "datatype": datatype, "parameters": parameters}
    text = json.dumps({"inputs": [tensor], **more}).encode()
    return text + data, str(len(text))


def seeds() -> list[Sent]:
    """Return valid requests of every kind."""
    elements = b"".join(len(image).to_bytes(4, "little") + image for image in PHOTOS)
    outputs = [
        {"name": "label", "parameters": {"binary_data": True}},
        {"name": "probabilities", "parameters": {"classification": 3}},
        {"name": "error"},
    ]
    asked = {"top_k": 2, "timeout": 9_000_000, "ensemble": "full", "binary_data_output": True}
    pixels = bytes(range(4 * 5 * 3)) * 2
    nested = [[[[7] * 3] * 5] * 4]
    tensor = {"name": "image", "shape": [1, 4, 5, 3], "datatype": "UINT8", "data": nested}
    return [
        in_json(PHOTOS, id="a", outputs=outputs),
        in_json(PHOTOS, parameters=asked),
        in_binary(elements, "BYTES", [2, 1], outputs=outputs),
        in_binary(pixels, "UINT8", [2, 4, 5, 3], parameters=asked),
        (json.dumps({"inputs": [tensor]}).encode(), None),
        (PHOTOS[0], "0"),
    ]


def mutated(sent: Sent, random: Random) -> Sent:
    """Return a request with one or two changes: in its bytes, its document or its header."""
    body, header = sent
    for _ in range(random.choice((1, 1, 2))):
        size = len(body) if header is None else min(int(header), len(body))
        match random.randrange(6):
            case 0:
                body = bytes_of(body, random)
            case 1:
                body = body[:size] + bytes_of(body[size:], random)
            case 2:
                numbers = (0, 1, size - 1, size + 1, len(body), len(body) + 1, 10**30)
                header = random.choice((None, *(str(max(0, number)) for number in numbers)))
            case _ if size:
                try:
                    document = json.loads(body[:size])
                except (ValueError, RecursionError):
                    continue
                text = json.dumps(changed(document, random)).encode()
                header = None if header is None else str(len(text))
                body = text + body[size:]
    return body, header


def changed(value: Any, random: Random) -> Any:
    """Return a JSON value with one change somewhere in it."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        name = random.choice(list(value))
        match random.randrange(8):
            case 0:
                return {key: one for key, one in value.items() if key != name}
            case 1:
                return value | {random.choice(WORDS): value[name]}
            case _:
                return value | {name: changed(value[name], random)}
    if isinstance(value, list) and value and random.random() < 0.85:
        at = random.randrange(len(value))
        match random.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value * random.choice((2, 30))
            case 2:
                return [value]
            case _:
                return [*value[:at], changed(value[at], random), *value[at + 1 :]]
    if isinstance(value, str) and random.random() < 0.4:
        return bytes_of(value.encode("utf-8", "replace"), random).decode("utf-8", "replace")
    return random.choice((*NUMBERS, *WORDS))


def parsed(sent: Sent) -> InferRequest | ServiceError:
    body, header = sent
    try:
        size = json_size(header, body)
        parsing_bytes(body, size)
        return parse(body, size, MAX_IMAGES)
    except ServiceError as error:
        return error


def mutations(count: int, seed: int) -> Iterator[Sent]:
    random, valid = Random(seed), seeds()
    return (mutated(random.choice(valid), random) for _ in range(count))


def test_ten_thousand_mutated_bodies_are_parsed_or_refused_with_4xx() -> None:
    assert all(isinstance(parsed(sent), InferRequest) for sent in seeds())
    statuses: dict[int, int] = {}
    for sent in mutations(10_000, seed=1):
        found = parsed(sent)
        if isinstance(found, InferRequest):
            assert 1 <= len(found.images) <= MAX_IMAGES
            status = 200
        else:
            assert 400 <= found.status < 500, sent
            assert len(found.detail) < 500
            status = found.status
        statuses[status] = statuses.get(status, 0) + 1
    # The mutations reach behind the first checks, and most of them do harm.
    assert statuses[200] > 500
    assert statuses[400] > 5_000


@pytest.mark.parametrize("line_end", ["", "\n", "\r\n"])
def test_base64_may_be_in_lines(line_end: str) -> None:
    text = base64.encodebytes(PHOTOS[0]).decode().replace("\n", line_end)
    found = parsed(in_text(text))
    assert isinstance(found, InferRequest)
    assert found.images == [PHOTOS[0]]


def test_mutated_bodies_get_no_500_from_the_service(bundle: Path) -> None:
    async def ask_all() -> set[int]:
        engine = Engine(read_settings(bundle=bundle, max_images=MAX_IMAGES))
        app = create_app(engine)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            while engine.obstacle is not None:
                await asyncio.sleep(0.02)
            statuses = set()
            for body, header in mutations(400, seed=2):
                headers = {} if header is None else {JSON_BYTES: header}
                answer = await client.post(
                    "/v2/models/palette/infer", content=body, headers=headers
                )
                assert answer.status_code < 500, (body, header, answer.text)
                assert answer.is_success or answer.json()["error"]
                statuses.add(answer.status_code)
            return statuses

    assert asyncio.run(ask_all()) >= {200, 400, 415}


DEEP = b'{"inputs":%s}'


@pytest.mark.parametrize("size", [0, 1, 2, 3, 786_431, 786_432, 786_433, 2_000_000])
def test_base64_is_decoded_in_pieces_as_if_it_were_one(size: int) -> None:
    photo = Random(size).randbytes(size)
    assert decoded(base64.b64encode(photo)) == photo


@pytest.mark.parametrize("text", [b"a", b"aa=", b"aaa", b"aa=a", b"a===", b"a-aa"])
def test_what_is_not_base64_is_not_at_any_place_of_a_long_text(text: bytes) -> None:
    good = base64.b64encode(bytes(786_432))
    for wrong in (text, good + text, good + good[:400] + text):
        with pytest.raises(ValueError, match=r"base64|padd|data"):
            decoded(wrong)
    for end in (b"aa==", b"aaa="):
        assert decoded(good + end)
        with pytest.raises(ValueError, match=r"base64|padd|data"):
            decoded(good[:-4] + end + good)


TENSOR = b'{"name":"","shape":[],"datatype":"","parameters":{}},'
LARGE: dict[str, Callable[[], Sent]] = {
    "photos": lambda: in_json([bytes(200_000)] * 10),
    "elements": lambda: in_binary(
        (200_000).to_bytes(4, "little") * 1 + bytes(200_000), "BYTES", [1]
    ),
    "pixels": lambda: in_binary(bytes(10 * 100 * 200 * 3), "UINT8", [10, 100, 200, 3]),
    "lists": lambda: (DEEP % (b"[%s[]]" % (b"[]," * 50_000)), None),
    "objects": lambda: (DEEP % (b"[%s{}]" % (b'{"":0},' * 20_000)), None),
    "texts": lambda: (DEEP % (b'[%s""]' % (b'"ab",' * 50_000)), None),
    "numbers": lambda: (DEEP % (b"[%s0]" % (b"1e9," * 50_000)), None),
    "words": lambda: in_text("aa " * 50_000 + "\n"),
    "outputs": lambda: (
        b'{"inputs":[],"outputs":[%s{"name":""}]}' % (b'{"name":""},' * 20_000),
        None,
    ),
    "tensors": lambda: (DEEP % (b"[%s{}]" % (TENSOR * 10_000)), None),
    "emoji": lambda: (('{"id":"' + "😀" * 50_000 + '"}').encode(), None),
    "members": lambda: (b"{%s}" % b",".join(b'"%d":0' % one for one in range(20_000)), None),
    "shape": lambda: (
        b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[%s0]}]}' % (b"-1," * 50_000),
        None,
    ),
}


@pytest.mark.parametrize("kind", LARGE)
def test_parsing_takes_no_more_memory_than_is_reserved_for_it(kind: str) -> None:
    body, header = LARGE[kind]()
    size = json_size(header, body)
    reserved = parsing_bytes(body, size)
    parsed((PHOTOS[0], "0"))
    tracemalloc.start()
    try:
        parsed((body, header))
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken <= reserved + 2**16
