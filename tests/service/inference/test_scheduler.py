"""Tests of the batches that the scheduler makes."""

import asyncio
import logging
from typing import Any

import numpy as np
import pytest

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.ensemble import ImageOutputs
from taillift.models.bundle.session import Outputs
from taillift.service.inference.scheduler import Scheduler
from taillift.service.problems import DeadlineError, InferenceError, NotReadyError
from tests.support.simulated_device import (
    Device,
    image,
    mean_of,
    new_metrics,
    outputs_of,
    rule,
    run,
    sent,
    settle,
    values,
)


def numbers(batch: list[tuple[int, int]]) -> list[int]:
    return [value for value, _ in batch]


async def while_busy(scheduler: Scheduler, device: Device) -> None:
    """Keep the device busy with an image, so that whatever comes next must wait."""
    device.free.clear()
    sent(scheduler, image(0, 1))
    await settle()


def test_a_lone_image_does_not_wait() -> None:
    device = Device()

    async def ask(scheduler: Scheduler) -> ImageOutputs:
        return await sent(scheduler, image(7))

    answer = run(device, ask)
    np.testing.assert_array_equal(answer.logits, mean_of(7, 5))
    assert answer.views == 5
    assert device.sizes == [5]


def test_what_gathered_goes_in_batches_counted_in_views_and_images_are_split() -> None:
    device = Device()

    async def ask(scheduler: Scheduler) -> list[ImageOutputs]:
        await while_busy(scheduler, device)
        tasks = [sent(scheduler, image(n, c)) for n, c in [(2, 5), (3, 3), (4, 5), (5, 1), (6, 1)]]
        await asyncio.sleep(0)
        device.free.set()
        return await asyncio.gather(*tasks)

    answers = run(device, ask)
    assert values(answers) == [2, 3, 4, 5, 6]
    np.testing.assert_array_equal(answers[2].logits, mean_of(4, 5))
    assert device.sizes == [1, 10, 5]
    assert device.batches[2][:3] == [(4, 2), (4, 3), (4, 4)]


def test_an_image_may_have_more_views_than_a_batch() -> None:
    device = Device()

    async def ask(scheduler: Scheduler) -> ImageOutputs:
        return await sent(scheduler, image(3))

    assert run(device, ask, batch_views=2).views == 5
    assert device.sizes == [2, 2, 1]


def test_images_of_a_small_request_wait_for_one_image_of_a_large_one() -> None:
    device = Device()

    async def ask(scheduler: Scheduler) -> None:
        await while_busy(scheduler, device)
        large = [sent(scheduler, image(n, 1), owner="large") for n in range(100, 120)]
        await asyncio.sleep(0)
        small = [sent(scheduler, image(n, 1), owner="small") for n in (1, 2)]
        await asyncio.sleep(0)
        device.free.set()
        await asyncio.gather(*large, *small)

    run(device, ask)
    assert numbers(device.batches[1]) == [100, 1, 101, 2, 102, 103, 104, 105, 106, 107]


def test_second_passes_go_ahead_of_new_arrivals_and_with_them() -> None:
    device = Device()

    async def ask(scheduler: Scheduler) -> list[ImageOutputs]:
        device.free.clear()
        first = [sent(scheduler, image(n), exit_rule=rule(1, 5)) for n in (0, 1, 2, 3)]
        await settle()
        later = [sent(scheduler, image(n, 1)) for n in (10, 11, 12)]
        await asyncio.sleep(0)
        device.free.set()
        return await asyncio.gather(*first, *later)

    answers = run(device, ask)
    assert [answer.views for answer in answers] == [1, 5, 1, 5, 1, 1, 1]
    for value, answer in enumerate(answers[:4]):
        np.testing.assert_array_equal(answer.logits, mean_of(value, answer.views))
    assert [numbers(batch) for batch in device.batches] == [
        [0, 1, 2, 3],
        [1, 1, 1, 1, 3, 3, 3, 3, 10, 11],
        [12],
    ]


def test_a_rule_of_three_stages_asks_stage_by_stage() -> None:
    device = Device()

    async def ask(scheduler: Scheduler) -> ImageOutputs:
        return await sent(scheduler, image(1), exit_rule=rule(1, 3, 5))

    assert run(device, ask).views == 5
    assert device.sizes == [1, 2, 2]


def test_passes_are_counted_in_views() -> None:
    metrics = new_metrics()

    async def ask(scheduler: Scheduler) -> None:
        await asyncio.gather(*(sent(scheduler, image(n), exit_rule=rule(1, 5)) for n in (0, 1)))
        await sent(scheduler, image(2), exit_rule=None)

    run(Device(), ask, batch_views=3, metrics=metrics)
    passes = [
        metrics.registry.get_sample_value("taillift_pass_views_total", {"pass": name})
        for name in ("first", "second")
    ]
    assert passes == [7, 4]


def test_cancelled_work_never_reaches_the_device() -> None:
    device, metrics = Device(), new_metrics()

    async def ask(scheduler: Scheduler) -> list[ImageOutputs]:
        await while_busy(scheduler, device)
        tasks = [sent(scheduler, image(n)) for n in (1, 2, 3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        assert metrics.registry.get_sample_value("taillift_queue_views") == 10
        device.free.set()
        return [await tasks[0], await tasks[2]]

    assert values(run(device, ask, metrics=metrics)) == [1, 3]
    assert sum(device.sizes) == 11


def test_expired_work_never_reaches_the_device() -> None:
    device = Device()

    async def ask(scheduler: Scheduler) -> ImageOutputs:
        await while_busy(scheduler, device)
        late, good = sent(scheduler, image(1), seconds=0.02), sent(scheduler, image(2))
        with pytest.raises(DeadlineError) as missed:
            await late
        assert missed.value.stage == "queue"
        device.free.set()
        return await good

    assert values([run(device, ask)]) == [2]
    assert 1 not in {value for batch in device.batches for value in numbers(batch)}


def test_what_is_on_the_device_at_its_deadline_is_given_up_there() -> None:
    device = Device()

    async def ask(scheduler: Scheduler) -> str:
        device.free.clear()
        with pytest.raises(DeadlineError) as missed:
            await sent(scheduler, image(1), seconds=0.05)
        device.free.set()
        return missed.value.stage

    assert run(device, ask) == "infer"


def test_a_batch_ends_where_one_more_image_would_make_it_late() -> None:
    device = Device()

    async def ask(scheduler: Scheduler) -> list[ImageOutputs]:
        await while_busy(scheduler, device)
        scheduler._runner.latency.fit([1, 10], [1, 10])
        urgent = sent(scheduler, image(1, 2), seconds=2)
        others = [sent(scheduler, image(n, 1)) for n in (2, 3, 4)]
        await asyncio.sleep(0)
        device.free.set()
        return await asyncio.gather(urgent, *others)

    assert values(run(device, ask)) == [1, 2, 3, 4]
    assert device.sizes[1] == 2


def test_what_cannot_be_in_time_behind_the_others_is_dropped_at_once() -> None:
    device = Device()

    async def ask(scheduler: Scheduler) -> list[ImageOutputs]:
        await while_busy(scheduler, device)
        scheduler._runner.latency.fit([1, 10], [1, 10])
        ahead = sent(scheduler, image(1), seconds=15)
        late = sent(scheduler, image(2, 1), seconds=4)
        await asyncio.sleep(0)
        device.free.set()
        with pytest.raises(DeadlineError):
            await late
        return [await ahead]

    assert values(run(device, ask)) == [1]
    assert 2 not in {value for batch in device.batches for value in numbers(batch)}


def test_a_wrong_prediction_stops_no_image() -> None:
    async def ask(scheduler: Scheduler) -> list[ImageOutputs]:
        scheduler._runner.latency.fit([1, 10], [1e6, 1e7])
        return [await sent(scheduler, image(n), seconds=5) for n in (1, 2)]

    assert values(run(Device(), ask)) == [1, 2]


def test_a_failed_batch_is_run_again_image_by_image(caplog: pytest.LogCaptureFixture) -> None:
    device = Device(poison=[13])

    async def ask(scheduler: Scheduler) -> list[ImageOutputs | BaseException]:
        tasks = [sent(scheduler, image(n, 2)) for n in (12, 13, 14)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    with caplog.at_level(logging.CRITICAL):
        before, culprit, after = run(device, ask)
    assert isinstance(before, ImageOutputs)
    assert isinstance(after, ImageOutputs)
    assert values([before, after]) == [12, 14]
    assert isinstance(culprit, InferenceError)
    assert device.sizes == [6, 2, 2, 2]


def test_an_image_that_fails_in_its_second_pass_fails_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unlucky(Device):
        def run(self, views: Pixels) -> Outputs:
            if ((views[:, 0, 0, 0] == 3) & (views[:, 0, 0, 1] == 2)).any():
                raise RuntimeError("unlucky")
            return super().run(views)

    async def ask(scheduler: Scheduler) -> list[ImageOutputs | BaseException]:
        tasks = [sent(scheduler, image(n), exit_rule=rule(1, 5)) for n in (1, 2, 3, 5)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    with caplog.at_level(logging.CRITICAL):
        outcomes = run(Unlucky(), ask)
    assert isinstance(outcomes.pop(2), InferenceError)
    answers = [answer for answer in outcomes if isinstance(answer, ImageOutputs)]
    assert [answer.views for answer in answers] == [5, 1, 5]
    assert values(answers) == [1, 2, 5]


def test_the_loop_survives_a_device_that_answers_nonsense(
    caplog: pytest.LogCaptureFixture,
) -> None:
    features = np.zeros((5, 2), np.float32)
    nonsense = [
        Outputs(np.zeros(0, np.float32), features),
        None,
        Outputs(np.full((5, 3), np.nan, np.float32), features),
        Outputs(np.zeros((5, 3), np.float32), features[:4]),
    ]
    answers = iter([*nonsense, Outputs(np.zeros((5, 3), np.float32), features)])

    class Nonsense(Device):
        def run(self, _: Pixels) -> Any:
            return next(answers)

    async def ask(scheduler: Scheduler) -> ImageOutputs:
        for _ in nonsense:
            with pytest.raises(InferenceError):
                await sent(scheduler, image(1))
        assert not scheduler.stalled(1)
        return await sent(scheduler, image(1))

    with caplog.at_level(logging.CRITICAL):
        assert run(Nonsense(), ask).views == 5


def test_the_loop_survives_a_rule_that_does_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    broken = rule(1, 5).model_copy(update={"leads": ("none",)})

    async def ask(scheduler: Scheduler) -> ImageOutputs:
        with pytest.raises(InferenceError):
            await sent(scheduler, image(1), exit_rule=broken)
        return await sent(scheduler, image(2))

    with caplog.at_level(logging.CRITICAL):
        assert values([run(Device(), ask)]) == [2]


class Machine:
    """A device that can be lost, and a model that can be missing; counts its loads."""

    def __init__(self) -> None:
        self.lost = False
        self.missing = False
        self.killer: int | None = None
        self.loads = 0

    def open(self) -> None:
        if self.missing:
            raise RuntimeError("no such model")
        self.loads += 1
        self.lost = False

    def run(self, views: Pixels) -> Outputs:
        self.lost |= self.killer in views[:, 0, 0, 0].tolist()
        if self.lost:
            raise RuntimeError("the device is lost")
        return outputs_of(views)


def test_a_lost_device_is_loaded_again_and_what_waits_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine, metrics = Machine(), new_metrics()

    async def ask(scheduler: Scheduler) -> list[ImageOutputs]:
        machine.lost = True
        tasks = [sent(scheduler, image(n), exit_rule=rule(1, 5)) for n in range(6)]
        answers = await asyncio.gather(*tasks)
        assert not scheduler.broken
        return answers

    with caplog.at_level(logging.CRITICAL):
        outcomes = run(machine, ask, warm=[image(0, 1)], metrics=metrics)
    assert values(outcomes) == list(range(6))
    assert machine.loads == 2
    rebuilt = metrics.registry.get_sample_value
    assert rebuilt("taillift_session_rebuilds_total", {"outcome": "ready"}) == 1


def test_an_image_that_kills_the_device_is_not_tried_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine = Machine()
    machine.killer = 13

    async def ask(scheduler: Scheduler) -> list[ImageOutputs | BaseException]:
        tasks = [sent(scheduler, image(n)) for n in (12, 13, 14)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    with caplog.at_level(logging.CRITICAL):
        before, killer, after = run(machine, ask, warm=[image(0, 1)])
    assert isinstance(killer, InferenceError)
    assert isinstance(before, ImageOutputs)
    assert isinstance(after, ImageOutputs)
    assert values([before, after]) == [12, 14]


def test_while_the_model_cannot_be_loaded_work_is_refused(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taillift.service.inference.scheduler.FIRST_PAUSE", 0.05)
    machine = Machine()

    async def ask(scheduler: Scheduler) -> ImageOutputs:
        machine.lost = machine.missing = True
        with pytest.raises(NotReadyError, match="loaded again"):
            await sent(scheduler, image(1))
        assert scheduler.broken
        with pytest.raises(NotReadyError, match="loaded again"):
            await sent(scheduler, image(2))
        machine.missing = False
        while scheduler.broken:
            await asyncio.sleep(0.01)
        return await sent(scheduler, image(3))

    with caplog.at_level(logging.CRITICAL):
        assert values([run(machine, ask, warm=[image(0, 1)])]) == [3]


def test_a_device_that_is_gone_does_not_keep_the_service_from_closing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine = Machine()

    async def ask(scheduler: Scheduler) -> None:
        machine.lost = machine.missing = True
        with pytest.raises(NotReadyError):
            await sent(scheduler, image(1))
        await scheduler.close()

    with caplog.at_level(logging.CRITICAL):
        run(machine, ask, warm=[image(0, 1)])


def test_nothing_is_taken_once_closing() -> None:
    async def ask(scheduler: Scheduler) -> None:
        await scheduler.close()
        with pytest.raises(NotReadyError, match="shutting down"):
            await sent(scheduler, image(1))

    run(Device(), ask)


def test_closing_finishes_what_is_queued() -> None:
    device = Device()

    async def ask(scheduler: Scheduler) -> list[ImageOutputs]:
        await while_busy(scheduler, device)
        tasks = [sent(scheduler, image(n), exit_rule=rule(1, 5)) for n in range(6)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(scheduler.close())
        await asyncio.sleep(0)
        device.free.set()
        await closing
        return await asyncio.gather(*tasks)

    answers = run(device, ask)
    assert values(answers) == list(range(6))
    assert [answer.views for answer in answers] == [1, 5, 1, 5, 1, 5]


def test_a_batch_that_does_not_end_is_a_stall_and_idleness_is_not() -> None:
    device = Device()

    async def ask(scheduler: Scheduler) -> None:
        await settle()
        assert not scheduler.stalled(0.01)
        device.free.clear()
        task = sent(scheduler, image(1))
        await settle()
        assert scheduler.stalled(0.01)
        assert not scheduler.stalled(10)
        device.free.set()
        await task
        await asyncio.sleep(0)
        assert not scheduler.stalled(0.01)

    run(device, ask)


def test_images_of_different_stages_are_decided_in_one_batch_each_by_its_own() -> None:
    """One image ends its second stage in the batch in which another ends its first."""
    device = Device()

    async def ask(scheduler: Scheduler) -> list[ImageOutputs]:
        exit_rule = rule(1, 5)
        device.free.clear()
        first = sent(scheduler, image(1), exit_rule=exit_rule)
        await settle()
        second = sent(scheduler, image(3), exit_rule=exit_rule)
        await asyncio.sleep(0)
        device.free.set()
        return list(await asyncio.gather(first, second))

    answers = run(device, ask)
    assert [answer.views for answer in answers] == [5, 5]
    assert values(answers) == [1, 3]
    assert device.batches == [
        [(1, 0)],
        [(1, 1), (1, 2), (1, 3), (1, 4), (3, 0)],
        [(3, 1), (3, 2), (3, 3), (3, 4)],
    ]
