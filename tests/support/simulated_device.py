"""Runs the scheduler on a plain function in place of a device, which tests can watch and break."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

import numpy as np

from taillift.models.bundle.arrays import Floats, Pixels
from taillift.models.bundle.ensemble import ExitRule, ImageOutputs
from taillift.models.bundle.session import Outputs
from taillift.service.inference.deadline import Deadline
from taillift.service.inference.runner import DeviceModel, Runner
from taillift.service.inference.scheduler import Scheduler
from taillift.service.monitoring.counters import Metrics
from tests.support.palette import RULE, palette_manifest

T = TypeVar("T")

LONG = 20.0
MARGIN = 5.0


def image(value: int, count: int = 5) -> Pixels:
    """Return views whose pixels say which image they are of and which view: [value, number]."""
    views = np.zeros((count, 2, 2, 3), np.uint8)
    views[..., 0] = value
    views[..., 1] = np.arange(count)[:, None, None]
    return views


def logits_of(views: Pixels) -> Floats:
    """Return logits of three classes: an even image has a large margin, an odd one none.

    The last class tells image and view. Its logits are so small that they do not change the margin.
    """
    values, numbers = views[:, 0, 0, 0].astype(np.float32), views[:, 0, 0, 1].astype(np.float32)
    margin = np.where(values % 2 == 0, 2 * MARGIN, 0)
    rows = np.stack([margin, np.zeros_like(margin), -1000 - 8 * values - numbers], 1)
    return rows.astype(np.float32)


def outputs_of(views: Pixels) -> Outputs:
    """Return the logits, and features that are the value and the number of each view."""
    return Outputs(logits_of(views), views[:, 0, 0, :2].astype(np.float32))


def mean_of(value: int, count: int) -> Floats:
    """Return the mean logits of the first `count` views of an image."""
    return np.asarray(logits_of(image(value, count)).mean(0), np.float32)


def rule(*stages: int) -> ExitRule:
    """Return an exit rule with these stages and the same margin after each."""
    return RULE.model_copy(update={"stages": stages, "leads": (MARGIN,) * (len(stages) - 1)})


class Device:
    """A device that records its batches, fails on the images `poison`, and waits for `free`.

    From the batch `break_at` on it fails on every image, until it is loaded again.
    """

    def __init__(self, poison: Sequence[int] = ()) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        self.poison = set(poison)
        self.free = threading.Event()
        self.free.set()
        self.break_at: int | None = None
        self._broken = False

    def open(self) -> None:
        self._broken = False

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]

    def run(self, views: Pixels) -> Outputs:
        self.batches.append([(int(view[0, 0, 0]), int(view[0, 0, 1])) for view in views])
        self.free.wait()
        if len(self.batches) == self.break_at:
            self._broken, self.break_at = True, None
        if self._broken or self.poison & {value for value, _ in self.batches[-1]}:
            raise RuntimeError("unlucky")
        return outputs_of(views)


def run(
    model: DeviceModel,
    ask: Callable[[Scheduler], Coroutine[None, None, T]],
    batch_views: int = 10,
    warm: Sequence[Pixels] = (),
    metrics: Metrics | None = None,
) -> T:
    """Start a scheduler, return what `ask` gives with it, and close it."""

    async def main() -> T:
        runner = Runner(model, warm)
        await runner.open()
        scheduler = Scheduler(runner, batch_views, metrics or new_metrics())
        scheduler.start()
        try:
            return await asyncio.wait_for(ask(scheduler), timeout=LONG)
        finally:
            await scheduler.close()

    return asyncio.run(main())


def new_metrics() -> Metrics:
    """Return the metrics of a service that has just started."""
    return Metrics(palette_manifest("v", {}), "cpu")


def sent(
    scheduler: Scheduler,
    views: Pixels,
    seconds: float = LONG,
    owner: object = None,
    exit_rule: ExitRule | None = None,
) -> "asyncio.Task[ImageOutputs]":
    """Send an image to the scheduler, as a request of its own unless it has an `owner`."""
    owner = object() if owner is None else owner
    return asyncio.create_task(scheduler.answer(views, Deadline.after(seconds), owner, exit_rule))


async def settle() -> None:
    """Give the event loop time to hand waiting images to the device."""
    await asyncio.sleep(0.05)


def values(answers: Sequence[ImageOutputs]) -> list[int]:
    """Return which images the answers are of."""
    return [int((-answer.logits[2] - 1000) // 8) for answer in answers]
