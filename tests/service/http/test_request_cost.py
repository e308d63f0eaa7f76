"""Tests of what a request may cost: the pixels and bytes of its images, before they are decoded."""

import gc
import io
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import FrameType

import httpx
import pytest
from PIL import Image

from tests.support.palette import CLASSES, photo
from tests.support.serving import form, running, sample, top_labels, until

RED = CLASSES["red"][0]


def tiny_webp(width: int, height: int) -> bytes:
    """Return a lossless WebP of a few bytes that is one colour all over."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), RED).save(file, "WEBP", lossless=True)
    data = bytearray(file.getvalue())
    bits = struct.unpack_from("<I", data, 21)[0] >> 28 << 28
    struct.pack_into("<I", data, 21, bits | (height - 1) << 14 | (width - 1))
    return bytes(data)


def test_a_few_bytes_that_say_millions_of_pixels_are_not_decoded(bundle: Path) -> None:
    bomb = tiny_webp(16_383, 3_051)
    assert len(bomb) < 100
    with running(bundle) as client:
        answer = client.post("/classify", files=form(*[(str(n), bomb) for n in range(16)]))
        assert (answer.status_code, answer.json()["type"]) == (413, "urn:taillift:problem:no-image")
        assert "16383 x 3051 pixels in" in answer.json()["images"][0]["detail"]
        assert sample(client, "taillift_stage_seconds_count", stage="decode") == 0
        assert top_labels(client.post("/classify", content=photo(RED))) == ["red"]


def test_an_image_has_a_limit_of_bytes_of_its_own(bundle: Path) -> None:
    data = photo(RED)
    with running(bundle, max_image_bytes=len(data)) as client:
        assert top_labels(client.post("/classify", files=form(*[("a", data)] * 3))) == ["red"] * 3
        answer = client.post("/classify", files=form(("a", data), ("b", data + b"x"), ("c", data)))
        error = answer.json()["results"][1]["error"]
        assert (error["status"], error["type"]) == (413, "urn:taillift:problem:image-too-large")
        assert f"{len(data):,} allowed" in error["detail"]
        assert client.post("/classify", content=data + b"x").status_code == 413


def test_the_pixels_of_a_request_are_limited_together(bundle: Path) -> None:
    limits = {"max_pixels": 500, "max_request_pixels": 1_000}
    with running(bundle, **limits) as client:
        files = [(str(number), photo(RED)) for number in range(4)]  # 320 pixels each.
        assert client.post("/classify", files=form(*files[:3])).status_code == 200
        answer = client.post("/classify", files=form(*files))
        assert (answer.status_code, answer.json()["type"]) == (
            413,
            "urn:taillift:problem:request-pixels",
        )
        assert "1,280 pixels together" in answer.json()["detail"]


def test_pixels_that_wait_keep_others_out_until_they_are_decoded(bundle: Path, gate: Event) -> None:
    limits = {"max_pixels": 500, "max_request_pixels": 500, "queue_pixels": 500}
    with running(bundle, **limits) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/classify", content=photo(RED))
        until(lambda: sample(client, "taillift_stage_seconds_count", stage="decode_queue") == 1)
        answer = client.post("/classify", content=photo(RED))
        assert (answer.status_code, "retry-after" in answer.headers) == (429, True)
        assert "320 pixels are in work and 320 more" in answer.json()["detail"]
        gate.set()
        assert top_labels(first.result()) == ["red"]
        assert top_labels(client.post("/classify", content=photo(RED))) == ["red"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_of_one_colour_and_a_million_pixels_is_answered(bundle: Path, kind: str) -> None:
    with running(bundle) as client:
        data = photo(RED, kind, size=(1_000, 1_000))
        assert top_labels(client.post("/classify", content=data)) == ["red"]


def test_a_lack_of_memory_is_not_the_images_fault(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    with running(bundle) as client:
        with monkeypatch.context() as patch:
            patch.setattr("taillift.models.bundle.images.canvas", fails)
            patch.setattr("taillift.models.bundle.images._eight_bits", fails)
            answer = client.post("/classify", content=photo(RED))
        assert (answer.status_code, answer.json()["type"]) == (
            503,
            "urn:taillift:problem:out-of-memory",
        )
        assert top_labels(client.post("/classify", content=photo(RED))) == ["red"]


@pytest.mark.parametrize("end", ["refused", "late", "gone"])
def test_an_image_is_let_go_with_its_request_and_not_with_the_next_garbage(
    bundle: Path, gate: Event, end: str
) -> None:
    with running(bundle) as client:
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            match end:
                case "refused":
                    assert client.post("/classify", content=photo(RED)[:40]).status_code == 422
                case "late":
                    limit = {"X-Request-Timeout": "0.1"}
                    answer = client.post("/classify", content=photo(RED), headers=limit)
                    assert answer.status_code == 408
                case "gone":
                    with pytest.raises(httpx.ReadTimeout):
                        client.post("/classify", content=photo(RED), timeout=0.5)
                    reason = {"reason": "disconnected"}
                    until(lambda: sample(client, "taillift_rejections_total", **reason) == 1)
            gate.set()
            assert client.get("/healthz").status_code == 200
            gc.collect()
            names = [item.f_code.co_filename for item in gc.garbage if isinstance(item, FrameType)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert [name for name in names if "taillift" in name] == []
