"""The scheduler with a plain function for a device, so that it can be watched and made to fail."""

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
from tests.support.palette import palette_manifest

T = TypeVar("T")

LONG = 20.0
LEAD = 5.0


def image(value: int, count: int = 5) -> Pixels:
    """Views that tell whose they are and which: [value, number] in each pixel."""
    views = np.zeros((count, 2, 2, 3), np.uint8)
    views[..., 0] = value
    views[..., 1] = np.arange(count)[:, None, None]
    return views


def logits_of(views: Pixels) -> Floats:
    """Three classes; an even image is sure at once, an odd one never; the last column is the view.

    Far below the others, so that it does not change how far the first class leads.
    """
    values, numbers = views[:, 0, 0, 0].astype(np.float32), views[:, 0, 0, 1].astype(np.float32)
    lead = np.where(values % 2 == 0, 2 * LEAD, 0)
    return np.stack([lead, np.zeros_like(lead), -1000 - 8 * values - numbers], 1).astype("f4")


def outputs_of(views: Pixels) -> Outputs:
    """Return the logits, and features that are the value and the number of each view."""
    return Outputs(logits_of(views), views[:, 0, 0, :2].astype(np.float32))


def mean_of(value: int, count: int) -> Floats:
    """What the first `count` views of an image must give."""
    return logits_of(image(value, count)).mean(0)


def rule(*stages: int) -> ExitRule:
    """By the lead alone; what it was measured to cost is nobody's concern here."""
    leads = (LEAD,) * (len(stages) - 1)
    return ExitRule.model_construct(stages=stages, leads=leads, mean_views=2.0)


class Device:
    """Keeps the batches it ran, fails on some images' values, and waits while `free` is not set.

    From the batch `break_at` on it fails on everything, until it is loaded again.
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
    """What `ask` gives of a scheduler that is started before and closed after it."""

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
    return Metrics(palette_manifest("v", {}), "cpu")


def sent(
    scheduler: Scheduler,
    views: Pixels,
    seconds: float = LONG,
    owner: object = None,
    exit_rule: ExitRule | None = None,
) -> "asyncio.Task[ImageOutputs]":
    """An image of a request of its own, unless it has an `owner`."""
    owner = object() if owner is None else owner
    return asyncio.create_task(scheduler.answer(views, Deadline.after(seconds), owner, exit_rule))


async def settle() -> None:
    """Let the loop hand what waits to the device."""
    await asyncio.sleep(0.05)


def values(answers: Sequence[ImageOutputs]) -> list[int]:
    """Whose answers they are."""
    return [int((-answer.logits[2] - 1000) // 8) for answer in answers]
