"""Bad input gets a clear error of its own, and unusual but valid input the right answer."""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from encodings.aliases import aliases
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.palette import CLASSES, photo
from tests.support.png import chunk
from tests.support.serving import form, running, top_labels

RED, BLUE = CLASSES["red"][0], CLASSES["blue"][0]


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_bomb(side: int) -> bytes:
    """Return a small PNG file that declares `side` x `side` pixels, and has them."""
    rows = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(rows.compress(row) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def refused(response: httpx.Response, status: int, *words: str) -> None:
    """Assert that the answer is a problem document with all `words` in its detail."""
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert (response.status_code, document["status"]) == (status, status)
    assert set(document) >= {"type", "title", "status", "detail"}
    for word in words:
        assert word in document["detail"]


@pytest.fixture(autouse=True)
def nothing_else_breaks(client: httpx.Client) -> Iterator[None]:
    yield
    assert top_labels(client.post("/classify", content=photo(RED))) == ["red"]


def test_an_empty_body_is_malformed(client: httpx.Client) -> None:
    refused(client.post("/classify"), 400, "no image", "`images`")


def test_a_form_without_parts_is_malformed(client: httpx.Client) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    refused(client.post("/classify", content=b"--b--\r\n", headers=headers), 400, "no image")


def test_a_form_without_boundary_is_malformed(client: httpx.Client) -> None:
    headers = {"content-type": "multipart/form-data"}
    refused(client.post("/classify", content=b"x", headers=headers), 400, "boundary")


def coded(client: httpx.Client, charset: str, name: str, filename: str) -> httpx.Response:
    """Send a form of one image whose names are declared to be in `charset`."""
    parts = f'form-data; name="{name}"; filename="{filename}"'
    head = f"--b\r\nContent-Disposition: {parts}\r\n\r\n".encode()
    kind = f"multipart/form-data; charset={charset}; boundary=b".encode()
    headers = {b"content-type": kind}
    return client.post("/classify", content=head + photo(RED) + b"\r\n--b--\r\n", headers=headers)


@pytest.mark.parametrize("charset", ["undefined", "punycode", "idna", "utf-7", "utf-16", "é", ""])
def test_a_form_is_read_as_utf_8_whatever_its_charset_says(
    client: httpx.Client, charset: str
) -> None:
    answer = coded(client, charset, "images", "grün +2AA-.png")
    assert top_labels(answer) == ["red"]
    assert answer.json()["results"][0]["filename"] == "grün +2AA-.png"


def test_a_form_field_whose_name_looks_coded_is_unknown(client: httpx.Client) -> None:
    refused(coded(client, "utf-7", "+2AA-", "a.png"), 400, "unknown form field `+2AA-`")


@pytest.mark.parametrize("name", ["images", "\\ud800", "+2AA-", "xn--é"])
def test_no_charset_makes_the_service_fail(client: httpx.Client, name: str) -> None:
    for charset in {*aliases.values(), "unicode_escape", "idna", "none", "é"}:
        expected = 200 if name == "images" else 400
        assert coded(client, charset, name, name).status_code == expected, charset


def test_a_form_that_breaks_off_is_malformed_though_its_first_image_is_whole(
    client: httpx.Client,
) -> None:
    request = client.build_request("POST", "/classify", files=form(("a", photo(RED)), ("b", b"x")))
    body = request.read()[:-8]
    headers = {"content-type": request.headers["content-type"]}
    refused(client.post("/classify", content=body, headers=headers), 400, "closing boundary")


def test_another_form_field_is_malformed(client: httpx.Client) -> None:
    files = [("image", ("a.png", photo(RED)))]
    refused(client.post("/classify", files=files), 400, "`image`", "`images`")


def test_text_instead_of_a_file_is_malformed(client: httpx.Client) -> None:
    response = client.post("/classify", files=[("images", (None, b"photo.jpg"))])
    refused(response, 400, "text, not a file")


def test_text_called_jpg_is_not_an_image(client: httpx.Client) -> None:
    response = client.post("/classify", files=form(("cat.jpg", b"this is a cat")))
    refused(response, 415, "not a JPEG, PNG or WebP")


def test_a_gif_is_not_accepted(client: httpx.Client) -> None:
    refused(client.post("/classify", content=photo(RED, "GIF")), 415, "not a JPEG, PNG or WebP")


def test_a_file_of_zero_bytes_is_not_an_image(client: httpx.Client) -> None:
    refused(client.post("/classify", files=form(("empty.jpg", b""))), 415, "0 bytes")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_truncated_jpeg_is_damaged(client: httpx.Client, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = file_of(Image.fromarray(noise), "JPEG")
    refused(client.post("/classify", content=data[: int(kept * len(data))]), 422)


def test_a_pixel_bomb_is_too_large(client: httpx.Client) -> None:
    bomb = png_bomb(20_000)
    assert len(bomb) < 100_000
    refused(client.post("/classify", content=bomb), 413, "20000 x 20000", "50,000,000")


def test_a_very_long_image_is_called_long_and_not_damaged(client: httpx.Client) -> None:
    response = client.post("/classify", content=photo(RED, size=(700, 20)))
    refused(response, 422, "700 x 20", "more than 32 times the other")
    assert response.json()["type"] == "urn:taillift:problem:too-long"


def test_a_body_over_the_limit_is_refused_before_it_is_read(bundle: Path) -> None:
    with running(bundle, max_body_bytes=1_000) as small:
        refused(small.post("/classify", content=bytes(2_000_000)), 413, "2,000,000", "1,000")
        assert top_labels(small.post("/classify", content=photo(RED))) == ["red"]


def test_a_body_of_unknown_length_is_counted_while_reading(bundle: Path) -> None:
    with running(bundle, max_body_bytes=1_000) as small:
        chunks = (bytes(600) for _ in range(4))
        refused(small.post("/classify", content=chunks), 413, "1,000")
        many = form(*[(f"{n}.png", photo(RED)) for n in range(8)])
        refused(small.post("/classify", files=many), 413, "1,000")


def test_too_many_images_are_refused(client: httpx.Client) -> None:
    files = form(*[(f"{n}.png", photo(RED)) for n in range(9)])
    refused(client.post("/classify", files=files), 400, "8")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"ensemble": "medium"}, ["`ensemble`", "medium", "full"]),
        ({"prior": "mine"}, ["`prior`", "mine", "train"]),
        ({"top_k": "0"}, ["`top_k`", "greater than or equal to 1"]),
        ({"top_k": "101"}, ["`top_k`", "less than or equal to 100"]),
        ({"top_k": "many"}, ["`top_k`", "integer"]),
        ({"top_k": "5.0"}, ["`top_k`", "integer"]),
        ({"top_k": "1_0"}, ["`top_k`", "integer"]),
        ({"top_k": "true"}, ["`top_k`", "integer"]),
        ({"top": "3"}, ["unknown query parameter `top`"]),
    ],
)
def test_an_unknown_query_is_malformed(
    client: httpx.Client, query: dict[str, str], words: list[str]
) -> None:
    refused(client.post("/classify", params=query, content=photo(RED)), 400, *words)


def test_an_unknown_class_is_malformed_and_the_nearest_is_named(client: httpx.Client) -> None:
    response = client.post("/confidence", params={"classes": "yelow"}, content=photo(RED))
    refused(response, 400, "`yelow`", "did you mean `yellow`?")
    response = client.post("/confidence", params={"classes": "1234"}, content=photo(RED))
    refused(response, 400, "`1234`", "GET /classes")


def test_one_bad_image_fails_in_its_position(client: httpx.Client) -> None:
    files = form(("a.png", photo(RED)), ("b.txt", b"text"), ("c.jpg", photo(BLUE, "JPEG")))
    response = client.post("/classify", files=files)
    assert response.status_code == 200
    first, second, third = response.json()["results"]
    assert (first["filename"], first["predictions"][0]["label"]) == ("a.png", "red")
    assert (second["filename"], second["error"]["status"]) == ("b.txt", 415)
    assert "predictions" not in second
    assert (third["filename"], third["predictions"][0]["label"]) == ("c.jpg", "blue")


def test_images_that_all_fail_alike_give_their_status(client: httpx.Client) -> None:
    response = client.post("/classify", files=form(("a", b"text"), ("b", photo(RED, "GIF"))))
    refused(response, 415, "none of the 2 images")
    assert [image["status"] for image in response.json()["images"]] == [415, 415]


def test_images_that_fail_differently_give_422(client: httpx.Client) -> None:
    files = form(("a", b"text"), ("b", photo(RED, "JPEG")[:-50]))
    response = client.post("/classify", files=files)
    refused(response, 422, "none of the 2 images")
    assert [image["status"] for image in response.json()["images"]] == [415, 422]


def test_one_pixel_is_enough(client: httpx.Client) -> None:
    assert top_labels(client.post("/classify", content=photo(BLUE, size=(1, 1)))) == ["blue"]


def test_cmyk_is_converted_to_its_colours(client: httpx.Client) -> None:
    data = file_of(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG")
    assert top_labels(client.post("/classify", content=data)) == ["red"]


@pytest.mark.parametrize(("level", "label"), [(65_535, "white"), (300, "black")])
def test_16_bit_grey_keeps_its_brightness(client: httpx.Client, level: int, label: str) -> None:
    data = file_of(Image.fromarray(np.full((20, 20), level, np.uint16)), "PNG")
    assert top_labels(client.post("/classify", content=data)) == [label]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_rotated_as_its_exif_says(client: httpx.Client, orientation: int) -> None:
    seen = Image.new("RGB", (32, 32), BLUE)
    seen.paste(RED, (0, 0, 32, 16))
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = seen if undo is None else seen.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(stored, "JPEG", quality=95, exif=exif)
    response = client.post("/classify", params={"ensemble": "off"}, content=data)
    assert top_labels(response) == ["red"]


def test_transparency_becomes_white(client: httpx.Client) -> None:
    data = file_of(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG")
    assert top_labels(client.post("/classify", content=data)) == ["white"]


@pytest.mark.parametrize("content_type", ["image/png", "application/x-www-form-urlencoded", ""])
def test_an_image_as_the_body_may_have_any_other_type(
    client: httpx.Client, content_type: str
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = client.post("/classify", content=photo(RED), headers=headers)
    assert top_labels(response) == ["red"]


def test_an_unknown_path_and_method_are_problem_documents(client: httpx.Client) -> None:
    refused(client.get("/nowhere"), 404)
    response = client.get("/classify")
    refused(response, 405)
    assert response.headers["allow"] == "POST"


def test_any_broken_form_gets_a_documented_answer(client: httpx.Client) -> None:
    files = form(("a.png", photo(RED)), ("b.jpg", photo(BLUE, "JPEG")))
    request = client.build_request("POST", "/classify", files=files)
    body, choose = request.read(), random.Random(0)
    statuses = set()
    for _ in range(200):
        broken = bytearray(body)
        for _ in range(choose.choice([1, 5, 25])):
            broken[choose.randrange(len(broken))] = choose.choice(b'\r\n-"; \x00\xffx')
        headers = {"content-type": request.headers["content-type"]}
        statuses.add(client.post("/classify", content=bytes(broken), headers=headers).status_code)
    assert statuses <= {200, 400, 415, 422}
    assert {200, 400} <= statuses
