"""Tests of how many pixels are decoded at once, in which order, and of decoding that hangs."""

import asyncio
import gc
from threading import Event
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.images import BrokenImageError
from taillift.models.bundle.schema import MAX_PIXELS
from taillift.service.inference.decoder import Decoder, FairQueue
from taillift.service.monitoring.counters import Metrics
from tests.support.palette import palette_manifest, photo
from tests.support.simulated_device import new_metrics, settle

PHOTO = photo((255, 0, 0))
AGES = 1e6


class Owner:
    """A request, as the decoder knows it."""


def decoder_of(threads: int, metrics: Metrics | None = None, room: int = MAX_PIXELS) -> Decoder:
    return Decoder(threads, room, metrics or new_metrics())


def sent(
    decoder: Decoder, data: bytes = PHOTO, since: float | None = None
) -> "asyncio.Task[Pixels]":
    preprocessing = palette_manifest("v", {}).preprocessing
    begin = perf_counter() if since is None else since
    return asyncio.create_task(
        decoder.views(data, 320, 1, MAX_PIXELS, preprocessing, Owner(), begin)
    )


def test_no_more_pixels_are_decoded_at_once_than_there_is_room_for(gate: Event) -> None:
    async def main() -> None:
        decoder = decoder_of(threads=2, metrics=metrics, room=500)
        first, second = sent(decoder), sent(decoder)  # 320 pixels each.
        await settle()
        assert begun() == 1
        gate.set()
        await asyncio.gather(first, second)
        assert begun() == 2
        await decoder.close()

    def begun() -> float:
        name = "taillift_stage_seconds_count"
        return metrics.registry.get_sample_value(name, {"stage": "decode_queue"}) or 0.0

    metrics = new_metrics()
    asyncio.run(main())


def test_an_image_with_more_pixels_than_there_is_room_for_is_decoded_alone() -> None:
    async def main() -> None:
        decoder = decoder_of(threads=2, room=10)
        assert len(await asyncio.gather(sent(decoder), sent(decoder))) == 2
        await decoder.close()

    asyncio.run(main())


def test_an_image_that_is_given_up_while_it_waits_leaves_nothing_behind(gate: Event) -> None:
    async def main() -> None:
        decoder = decoder_of(threads=1)
        begun, waiting = sent(decoder), sent(decoder)
        await settle()
        assert len(decoder._waiting) == 1
        waiting.cancel()
        await settle()
        assert len(decoder._waiting) == 0
        gate.set()
        await begun
        await decoder.close()

    asyncio.run(main())


def test_an_image_that_fails_after_it_was_given_up_is_not_reported(gate: Event) -> None:
    reports: list[dict[str, object]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
        decoder = decoder_of(threads=1)
        broken = sent(decoder, PHOTO[:-30])
        await settle()
        broken.cancel()
        await settle()
        assert not decoder.is_idle
        gate.set()
        await decoder.close()
        await settle()
        assert decoder.is_idle

    asyncio.run(main())
    gc.collect()
    assert reports == []


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


def test_an_image_that_is_given_up_is_let_go_while_all_threads_are_busy(gate: Event) -> None:
    held: set[int] = set()

    class Counted(bytes):
        def __del__(self) -> None:
            held.discard(id(self))

    async def main() -> None:
        decoder = decoder_of(threads=1)
        begun = sent(decoder)
        await settle()
        for number in range(5):
            image = Counted(PHOTO + bytes(number))
            held.add(id(image))
            waiting = sent(decoder, image)
            del image
            await settle()
            waiting.cancel()
            await settle()
        del waiting
        assert held == set()
        gate.set()
        await begun
        await decoder.close()

    asyncio.run(main())


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
        await sent(decoder, since=perf_counter() - AGES)
        with pytest.raises(BrokenImageError):
            await sent(decoder, PHOTO[:60])
        await decoder.close()

    asyncio.run(main())
    assert took(metrics, "decode_queue") >= AGES
    assert 0 < took(metrics, "decode") < AGES


def took(metrics: Metrics, stage: str) -> float:
    name = "taillift_stage_seconds_sum"
    return metrics.registry.get_sample_value(name, {"stage": stage}) or 0.0


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


def test_items_of_one_owner_keep_their_order() -> None:
    queue, owner = FairQueue[str](), Owner()
    for name, cost in (("a", 9), ("b", 1), ("c", 5)):
        queue.add(owner, cost, name)
    assert queue.first() == "a"
    assert drained(queue) == ["a", "b", "c"]


def test_a_small_item_goes_before_the_large_ones_that_came_first() -> None:
    queue, owners = FairQueue[str](), [Owner() for _ in range(9)]
    for owner in owners[:8]:
        for _ in range(4):
            queue.add(owner, 50e6, "bomb")
    assert queue.pop() == "bomb"
    queue.add(owners[8], 80e3, "photo")
    assert queue.pop() == "photo"


def test_a_large_item_is_not_overtaken_for_ever() -> None:
    queue, large, owners = FairQueue[str](), Owner(), [Owner() for _ in range(200)]
    queue.add(large, 50, "large")
    before = 0
    for owner in owners:
        queue.add(owner, 1, "small")
        if queue.pop() == "large":
            break
        before += 1
    assert before <= 101


def test_an_item_that_is_taken_out_does_not_come() -> None:
    queue, owner = FairQueue[str](), Owner()
    for name in ("a", "b", "c"):
        queue.add(owner, 1, name)
    queue.discard("b")
    queue.discard("unknown")
    assert drained(queue) == ["a", "c"]
    assert len(queue) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100)), max_size=40))
def test_nothing_is_lost_and_equal_owners_get_equal_shares(items: list[tuple[int, int]]) -> None:
    queue, owners = FairQueue[tuple[int, int]](), [Owner() for _ in range(4)]
    for owner, cost in items:
        queue.add(owners[owner], cost, (owner, cost))
    left = list(items)
    served = [0.0] * 4
    while queue:
        owner, cost = queue.pop()
        left.remove((owner, cost))
        waiting = {index for index, _ in left}
        for other in waiting - {owner}:
            # Until then the other has had as much, or its next item would have made it more.
            following = next(cost for index, cost in left if index == other)
            assert served[owner] + cost <= served[other] + following
        served[owner] += cost
    assert not left
