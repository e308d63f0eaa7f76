"""The model in a thread of its own, timed."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from traceback import clear_frames
from typing import TypeVar

import numpy as np

from taillift.models.bundle.arrays import Floats, Pixels
from taillift.service.inference.latency import LatencyModel

logger = logging.getLogger(__name__)

T = TypeVar("T")

Infer = Callable[[Pixels], Floats]


class Runner:
    """Runs batches of views through what `load` gives: views [N, S, S, 3] to logits [N, C].

    `warm` are batches to run before the first one counts, each `runs` times, of which the best
    tells the pace; the smallest tells later, when an image fails, whether the device does.
    """

    def __init__(self, load: Callable[[], Infer], warm: Sequence[Pixels], runs: int = 1) -> None:
        self._load = load
        # The largest first, which takes the memory for all.
        self._warm = sorted(warm, key=len, reverse=True)
        self._runs = runs
        self._thread = ThreadPoolExecutor(1, "device")
        self._infer: Infer | None = None
        self.pace = LatencyModel()

    async def open(self) -> None:
        """Load the model and warm it; what was loaded before is let go first.

        Raises whatever `load` and the model do.
        """
        self._infer = None
        self._infer = await self._in_thread(self._load)
        seconds = [await self._warm_seconds(views) for views in self._warm]
        if seconds:
            self.pace.fit([len(views) for views in self._warm], seconds)

    async def _warm_seconds(self, views: Pixels) -> float:
        return min([(await self._timed([views]))[1] for _ in range(self._runs)])

    async def run(self, parts: Sequence[Pixels]) -> tuple[Floats, float]:
        """float32 [N, C] of all parts, and the seconds that it took; raises what the model does."""
        logits, seconds = await self._timed(parts)
        self.pace.update(len(logits), seconds)
        return logits, seconds

    async def sound(self) -> bool:
        """Whether the model still runs what it was warmed with."""
        try:
            for views in self._warm[-1:]:
                await self._timed([views])
        except Exception:
            logger.exception("the device fails on a blank image, too")
            return False
        return True

    def close(self) -> None:
        """End the thread; waits for what it runs."""
        self._thread.shutdown()

    async def _timed(self, parts: Sequence[Pixels]) -> tuple[Floats, float]:
        try:
            return await self._inferred(parts)
        except Exception as error:
            # Its frames hold the model, which may have to be freed for another `load`.
            clear_frames(error.__traceback__)
            raise

    async def _inferred(self, parts: Sequence[Pixels]) -> tuple[Floats, float]:
        infer = self._infer
        if infer is None:
            raise RuntimeError("the model is not loaded")
        start = perf_counter()
        logits = await self._in_thread(lambda: infer(np.concatenate(parts)))
        if len(logits) != sum(map(len, parts)) or not np.isfinite(logits).all():
            raise ValueError("the model did not give one row of finite logits for each view")
        return logits, perf_counter() - start

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
