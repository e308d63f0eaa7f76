"""Batches, seen from inside: the device is a plain function here, so that it can be watched."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

import numpy as np
import pytest
from palette import palette_manifest

from models.bundle.ensemble import Floats
from models.bundle.images import Pixels
from service.errors import InferenceError, NotReadyError
from service.metrics import Metrics
from service.scheduler import Scheduler

T = TypeVar("T")


def image(value: int, count: int = 5) -> Pixels:
    return np.full((count, 2, 2, 3), value, np.uint8)


class Device:
    """Answers each view with its own value, keeps the batch sizes, and waits while `held`."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, views: Pixels) -> Floats:
        self.batches.append(len(views))
        self.free.wait()
        return views[:, 0, 0, :1].astype(np.float32)


def run(
    infer: Callable[[Pixels], Floats],
    ask: Callable[[Scheduler], Coroutine[None, None, T]],
    batch_views: int = 10,
    warm: Sequence[Pixels] = (),
) -> T:
    async def main() -> T:
        metrics = Metrics(palette_manifest("v", {}), "cpu", by_class=True)
        scheduler = Scheduler(infer, batch_views, metrics)
        await scheduler.start(warm)
        try:
            return await asyncio.wait_for(ask(scheduler), timeout=20)
        finally:
            await scheduler.close()

    return asyncio.run(main())


def values(rows: list[Floats]) -> list[int]:
    return [int(row[0, 0]) for row in rows]


def test_a_lone_image_waits_for_nobody() -> None:
    device = Device()
    rows = run(device, lambda scheduler: scheduler.logits(image(7)))
    np.testing.assert_array_equal(rows, np.full((5, 1), 7))
    assert device.batches == [5]


def test_what_gathered_goes_in_batches_counted_in_views() -> None:
    device = Device()
    device.free.clear()

    async def ask(scheduler: Scheduler) -> list[Floats]:
        first = asyncio.create_task(scheduler.logits(image(1, 1)))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(scheduler.logits(image(n, c))) for n, c in rest]
        await asyncio.sleep(0)
        device.free.set()
        return await asyncio.gather(first, *others)

    rest = [(2, 5), (3, 5), (4, 1), (5, 5), (6, 1)]
    assert values(run(device, ask)) == [1, 2, 3, 4, 5, 6]
    assert device.batches == [1, 10, 7]


def test_cancelled_work_never_reaches_the_device() -> None:
    device = Device()
    device.free.clear()

    async def ask(scheduler: Scheduler) -> list[Floats]:
        tasks = [asyncio.create_task(scheduler.logits(image(n))) for n in range(4)]
        await asyncio.sleep(0.05)
        tasks[2].cancel()
        await asyncio.sleep(0)
        device.free.set()
        return await asyncio.gather(tasks[0], tasks[1], tasks[3])

    assert values(run(device, ask)) == [0, 1, 3]
    assert sum(device.batches) == 15


def test_a_failed_batch_is_run_again_image_by_image(caplog: pytest.LogCaptureFixture) -> None:
    batches = []

    def infer(views: Pixels) -> Floats:
        batches.append(len(views))
        if (views == 13).any():
            raise RuntimeError("unlucky")
        return views[:, 0, 0, :1].astype(np.float32)

    async def ask(scheduler: Scheduler) -> list[Floats | BaseException]:
        work = (scheduler.logits(image(n, 2)) for n in (12, 13, 14))
        return await asyncio.gather(*work, return_exceptions=True)

    with caplog.at_level(logging.CRITICAL):
        before, culprit, after = run(infer, ask)
    assert isinstance(culprit, InferenceError)
    assert (values([before]), values([after])) == ([12], [14])
    assert batches == [6, 2, 2, 2]


def test_the_loop_survives_a_device_that_answers_nonsense() -> None:
    nonsense = [np.zeros(0), None, np.full((5, 1), np.nan, np.float32)]
    answers = iter([*nonsense, np.zeros((5, 1), np.float32)])

    async def ask(scheduler: Scheduler) -> Floats:
        for _ in nonsense:
            with pytest.raises(InferenceError):
                await scheduler.logits(image(1))
        assert not scheduler.stalled(1)
        return await scheduler.logits(image(1))

    assert run(lambda _: next(answers), ask).shape == (5, 1)


def test_a_device_that_fails_on_what_it_was_warmed_with_is_broken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trouble: set[int] = set()

    def infer(views: Pixels) -> Floats:
        if trouble & set(views.flat):
            raise RuntimeError("unlucky")
        return views[:, 0, 0, :1].astype(np.float32)

    async def broken_after(scheduler: Scheduler, *values: int) -> bool:
        trouble.update(values)
        with pytest.raises(InferenceError):
            await scheduler.logits(image(13))
        await asyncio.sleep(0.05)
        return scheduler.broken

    async def ask(scheduler: Scheduler) -> None:
        assert not await broken_after(scheduler, 13)
        assert await broken_after(scheduler, 0)
        trouble.clear()
        await scheduler.logits(image(13))
        assert not scheduler.broken

    with caplog.at_level(logging.CRITICAL):
        run(infer, ask, warm=[image(0, 1)])


def test_more_views_than_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="11 views are more than a batch of 10"):
        run(Device(), lambda scheduler: scheduler.logits(image(1, 11)))


def test_nothing_is_taken_once_closing() -> None:
    async def ask(scheduler: Scheduler) -> None:
        await scheduler.close()
        with pytest.raises(NotReadyError, match="shutting down"):
            await scheduler.logits(image(1))

    run(Device(), ask)


def test_closing_finishes_what_is_queued() -> None:
    device = Device()
    device.free.clear()

    async def ask(scheduler: Scheduler) -> list[Floats]:
        tasks = [asyncio.create_task(scheduler.logits(image(n))) for n in range(6)]
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(scheduler.close())
        await asyncio.sleep(0)
        device.free.set()
        await closing
        assert all(task.done() for task in tasks)
        return [task.result() for task in tasks]

    assert values(run(device, ask)) == list(range(6))


def test_a_batch_that_does_not_end_is_a_stall_and_idleness_is_not() -> None:
    device = Device()
    device.free.clear()

    async def ask(scheduler: Scheduler) -> None:
        await asyncio.sleep(0.05)
        assert not scheduler.stalled(0.01)
        task = asyncio.create_task(scheduler.logits(image(1)))
        await asyncio.sleep(0.05)
        assert scheduler.stalled(0.01)
        assert not scheduler.stalled(10)
        device.free.set()
        await task
        assert not scheduler.stalled(0.01)

    run(device, ask)


def test_the_pace_is_measured_when_warm_and_follows_later_batches() -> None:
    async def main() -> tuple[float, float]:
        metrics = Metrics(palette_manifest("v", {}), "cpu", by_class=True)
        scheduler = Scheduler(Device(), 10, metrics)
        await scheduler.start([image(0, 1), image(0, 10)])
        warm = scheduler.seconds_per_view
        scheduler.seconds_per_view = 100
        await scheduler.logits(image(1))
        await scheduler.close()
        return warm, scheduler.seconds_per_view

    warm, later = asyncio.run(main())
    assert 0 < warm < 1
    assert 79 < later < 81
