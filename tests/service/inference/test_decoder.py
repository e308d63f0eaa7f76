"""Tests of how many pixels are decoded at once, in which order, and of decoding that hangs."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import perf_counter, sleep

import pytest

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.images import BrokenImageError
from taillift.models.bundle.schema import MAX_PIXELS
from taillift.service.inference.decoder import Decoder, PixelRoom
from taillift.service.monitoring.counters import Metrics
from tests.support.palette import palette_manifest, photo
from tests.support.serving import until
from tests.support.simulated_device import new_metrics, settle

PHOTO = photo((255, 0, 0))
AGES = 1e6


def decoder_of(threads: int, metrics: Metrics | None = None) -> Decoder:
    preprocessing = palette_manifest("v", {}).preprocessing
    return Decoder(threads, MAX_PIXELS, preprocessing, metrics or new_metrics())


def sent(decoder: Decoder, data: bytes = PHOTO) -> "asyncio.Task[Pixels]":
    return asyncio.create_task(decoder.views(data, 1, MAX_PIXELS, perf_counter()))


def test_no_more_pixels_are_let_in_than_there_is_room_for() -> None:
    room, inside = PixelRoom(10), Event()

    def enter() -> None:
        with room.take(6):
            inside.set()

    with ThreadPoolExecutor(1) as pool:
        with room.take(5):
            entered = pool.submit(enter)
            assert not inside.wait(0.05)
        entered.result(timeout=10)


def test_an_image_with_more_pixels_than_there_is_room_for_is_alone() -> None:
    room = PixelRoom(10)
    with room.take(1_000):
        pass
    with room.take(10):
        pass


def test_a_large_image_is_not_overtaken_by_small_ones() -> None:
    room, order = PixelRoom(10), list[str]()

    def enter(name: str, pixels: int) -> None:
        with room.take(pixels):
            order.append(name)

    with ThreadPoolExecutor(2) as pool:
        with room.take(5):
            large = pool.submit(enter, "large", 8)
            until(large.running)
            sleep(0.05)
            small = pool.submit(enter, "small", 1)
            until(small.running)
            sleep(0.05)
            assert not order
        for task in (large, small):
            task.result(timeout=10)
    assert order == ["large", "small"]


def test_it_stalls_if_no_thread_finishes_its_image(gate: Event) -> None:
    async def main() -> None:
        decoder = decoder_of(threads=2)
        works = [sent(decoder)]
        await settle()
        assert not decoder.stalled(0)  # A thread is free.
        await asyncio.sleep(0.5)
        full = perf_counter()
        works.append(sent(decoder))
        await settle()
        assert decoder.stalled(0)
        assert not decoder.stalled(perf_counter() - full + 0.4)  # One was free until then.
        gate.set()
        await asyncio.gather(*works)
        assert not decoder.stalled(0)
        await decoder.close()

    asyncio.run(main())


def test_giving_up_an_image_that_waits_is_not_progress(gate: Event) -> None:
    async def main() -> None:
        decoder = decoder_of(threads=1)
        sent(decoder)
        await settle()
        seconds = 0.1
        while not decoder.stalled(seconds):
            waiting = sent(decoder)
            await settle()
            waiting.cancel()
        gate.set()
        await decoder.close()

    asyncio.run(asyncio.wait_for(main(), timeout=20))


def test_its_end_waits_for_what_is_decoded_and_drops_what_waits(gate: Event) -> None:
    async def main() -> None:
        decoder = decoder_of(threads=1)
        begun, waiting = sent(decoder), sent(decoder)
        await settle()
        end = asyncio.create_task(decoder.close())
        await settle()
        assert waiting.cancelled()
        assert not end.done()
        gate.set()
        await end
        assert (await begun).shape[0] == 1

    asyncio.run(main())


def test_its_end_can_be_given_up(gate: Event) -> None:
    async def main() -> None:
        decoder = decoder_of(threads=1)
        begun = sent(decoder)
        await settle()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await decoder.close()
        gate.set()
        await begun

    asyncio.run(main())


def test_waiting_is_not_decoding() -> None:
    metrics = new_metrics()

    async def main() -> None:
        decoder = decoder_of(threads=1, metrics=metrics)
        await decoder.views(PHOTO, 1, MAX_PIXELS, since=perf_counter() - AGES)
        with pytest.raises(BrokenImageError):
            await decoder.views(PHOTO[:60], 1, MAX_PIXELS, since=perf_counter())
        await decoder.close()

    asyncio.run(main())
    assert took(metrics, "decode_queue") >= AGES
    assert 0 < took(metrics, "decode") < AGES


def took(metrics: Metrics, stage: str) -> float:
    name = "taillift_stage_seconds_sum"
    return metrics.registry.get_sample_value(name, {"stage": stage}) or 0.0
