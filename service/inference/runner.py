"""The model in a thread of its own, timed, and turns on the device for several models."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from time import monotonic, perf_counter, sleep
from traceback import clear_frames
from typing import Final, Protocol, TypeVar

import numpy as np

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.session import Outputs
from taillift.service.inference.latency import LatencyModel

logger = logging.getLogger(__name__)

T = TypeVar("T")
# Opens a block within which the device may be used.
Turn = Callable[[], AbstractContextManager[None]]

# How long a pass of a version that is loading waits at most for a moment without requests, ...
PATIENCE: Final = 0.5
# ... and how often it looks.
PAUSE: Final = 0.002


class DeviceModel(Protocol):
    """A model on a device. One thread opens and runs it."""

    def open(self) -> None:
        """Load the model, or load it again after its device has failed."""

    def run(self, pixels: Pixels) -> Outputs:
        """Run views uint8 [N, S, S, 3]; the logits carry no prior."""


class DeviceTurns:
    """One pass at a time. `idle` tells, from any thread, whether no request waits for anything."""

    def __init__(self, idle: Callable[[], bool] = lambda: True) -> None:
        self._idle = idle
        self._lock = Lock()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Hold the device during the block, after at most the pass that is running."""
        with self._lock:
            yield

    @contextmanager
    def when_idle(self) -> Iterator[None]:
        """Hold the device during the block, from a moment without requests on.

        If none comes within `PATIENCE` seconds, requests wait for this one pass. Afterwards the
        device is left alone for as long.
        """
        end = monotonic() + PATIENCE
        while not self._idle() and monotonic() < end:
            sleep(PAUSE)
        with self._lock:
            start = monotonic()
            yield
        sleep(min(PATIENCE, monotonic() - start))


class Runner:
    """Runs batches of views through `model`.

    `warm` are batches to run before the first one counts, each `runs` times; the best time of each
    counts for the latency. The smallest of them tells later, when an image fails, whether the
    device itself has failed. Runners of several models take `turns` on one device.
    """

    def __init__(
        self,
        model: DeviceModel,
        warm: Sequence[Pixels],
        runs: int = 1,
        turns: DeviceTurns | None = None,
    ) -> None:
        self.latency = LatencyModel()
        self._turns = turns or DeviceTurns()
        self._model = model
        # The largest first, which takes the memory for all.
        self._warm = sorted(warm, key=len, reverse=True)
        self._runs = runs
        self._thread = ThreadPoolExecutor(1, "device")

    async def open(self, turn: Turn | None = None) -> None:
        """Load the model and warm it, each pass within `turn()`; raises whatever the model raises.

        Without a `turn` the device is used at once.
        """
        await self.in_thread(self._model.open)
        seconds = [
            min([(await self._timed([views], turn))[1] for _ in range(self._runs)])
            for views in self._warm
        ]
        if seconds:
            self.latency.fit([len(views) for views in self._warm], seconds)

    async def run(self, parts: Sequence[Pixels]) -> tuple[Outputs, float]:
        """Run all parts as one batch; return its outputs and the seconds it took.

        Raises whatever the model raises.
        """
        outputs, seconds = await self._timed(parts)
        self.latency.update(len(outputs.logits), seconds)
        return outputs, seconds

    async def sound(self) -> bool:
        """Return whether the model still runs the batch that it was warmed with."""
        try:
            for views in self._warm[-1:]:
                await self._timed([views])
        except Exception:
            logger.exception("the device fails on a blank image, too")
            return False
        return True

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, which the model's thread does."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self, wait: bool = True) -> None:
        """End the thread, after what it runs; the caller may `wait` for it."""
        self._thread.shutdown(wait)

    async def _timed(
        self, parts: Sequence[Pixels], turn: Turn | None = None
    ) -> tuple[Outputs, float]:
        def run() -> tuple[Outputs, float]:
            with (turn or self._turns.at_once)():
                start = perf_counter()
                return self._model.run(np.concatenate(parts)), perf_counter() - start

        count = sum(map(len, parts))
        try:
            outputs, seconds = await self.in_thread(run)
        except Exception as error:
            # Its frames hold the model, whose memory may be needed to load it again.
            clear_frames(error.__traceback__)
            raise
        if not (
            len(outputs.logits) == len(outputs.features) == count
            and np.isfinite(outputs.logits).all()
        ):
            raise ValueError("the model did not give one row of finite logits for each view")
        return outputs, seconds
