"""Tests that every image is answered once, with its own outputs or with a reason."""

import asyncio
import logging
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taillift.models.bundle.ensemble import ImageOutputs, all_views
from taillift.service.inference.deadline import Deadline
from taillift.service.inference.jobs import ImageJob, WaitingJobs
from taillift.service.inference.scheduler import Scheduler
from taillift.service.problems import DeadlineError, InferenceError
from tests.support.simulated_device import Device, image, mean_of, new_metrics, rule, run, sent

LOST = 200


@dataclass(frozen=True)
class Sent:
    """One image: its request, its stages, and what happens to it."""

    owner: int
    stages: tuple[int, ...]
    poison: bool
    fate: str
    pause: bool


IMAGES = st.lists(
    st.builds(
        Sent,
        owner=st.integers(0, 3),
        stages=st.sampled_from([(1,), (5,), (1, 5), (1, 3, 5)]),
        poison=st.sampled_from([False] * 9 + [True]),
        fate=st.sampled_from(["wait", "wait", "wait", "cancel", "expired", "hurry"]),
        pause=st.booleans(),
    ),
    max_size=24,
)


async def outcomes(scheduler: Scheduler, images: list[Sent]) -> list[ImageOutputs | BaseException]:
    tasks = []
    for value, case in enumerate(images):
        seconds = {"expired": 0.0, "hurry": 0.002}.get(case.fate, 20.0)
        exit_rule = rule(*case.stages) if len(case.stages) > 1 else None
        views = image(value, case.stages[-1])
        tasks.append(sent(scheduler, views, seconds, case.owner, exit_rule))
        if case.pause:
            await asyncio.sleep(0.0005)
        if case.fate == "cancel":
            tasks[value // 2].cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(images=IMAGES, batch_views=st.integers(1, 12), break_at=st.none() | st.integers(3, 9))
def test_every_image_is_answered_once_with_its_own_logits(
    images: list[Sent], batch_views: int, break_at: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(poison=[value for value, case in enumerate(images) if case.poison])
    device.break_at = break_at
    metrics = new_metrics()
    with caplog.at_level(logging.CRITICAL):
        answers = run(
            device,
            lambda scheduler: outcomes(scheduler, images),
            batch_views,
            warm=[image(LOST, 1)],
            metrics=metrics,
        )
    cancelled = {n // 2 for n, case in enumerate(images) if case.fate == "cancel"}
    for value, (case, outcome) in enumerate(zip(images, answers, strict=True)):
        if isinstance(outcome, ImageOutputs):
            sure = len(case.stages) > 1 and value % 2 == 0
            assert outcome.views == (case.stages[0] if sure else case.stages[-1])
            np.testing.assert_allclose(outcome.logits, mean_of(value, outcome.views), rtol=1e-6)
            np.testing.assert_allclose(
                outcome.features, [value, (outcome.views - 1) / 2], rtol=1e-6
            )
            assert not case.poison
            assert case.fate != "expired"
        elif isinstance(outcome, asyncio.CancelledError):
            assert value in cancelled
        elif isinstance(outcome, DeadlineError):
            assert case.fate in ("expired", "hurry")
        else:
            assert isinstance(outcome, InferenceError)
            assert case.poison
    assert metrics.registry.get_sample_value("taillift_queue_views") == 0
    ran = {value for batch in device.batches for value, _ in batch}
    assert not ran & {n for n, case in enumerate(images) if case.fate == "expired"}
    assert max(device.sizes, default=0) <= batch_views


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_requests_take_turns_and_keep_their_own_order(counts: list[int]) -> None:
    waiting = WaitingJobs()
    popped: dict[Hashable, int] = dict.fromkeys(range(len(counts)), 0)

    async def jobs() -> list[ImageJob]:
        loop, deadline = asyncio.get_running_loop(), Deadline.after(1)
        return [
            ImageJob(image(number, 1), loop.create_future(), deadline, owner, all_views(1))
            for owner, count in enumerate(counts)
            for number in range(count)
        ]

    for job in asyncio.run(jobs()):
        waiting.add(job)
    while waiting:
        job = waiting.pop()
        assert job.views[0, 0, 0, 0] == popped[job.owner]
        popped[job.owner] += 1
        behind = [popped[owner] for owner, count in enumerate(counts) if popped[owner] < count]
        assert not behind or popped[job.owner] <= min(behind) + 1
