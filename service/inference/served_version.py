"""A version in memory: its model on the device, and the requests that hold it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import numpy as np

from taillift.models.bundle.images import VIEWS
from taillift.service.feedback.prediction_id import version_code
from taillift.service.inference.admission import Admission
from taillift.service.inference.decoder import Decoder
from taillift.service.inference.memory import give_back, status_bytes
from taillift.service.inference.pipeline import Pipeline
from taillift.service.inference.resident_bundle import CHANNELS, STARTING, ResidentBundle
from taillift.service.inference.runner import DeviceTurns, Runner
from taillift.service.inference.scheduler import Scheduler
from taillift.service.monitoring.counters import Metrics
from taillift.service.problems import NotReadyError
from taillift.service.settings import Settings

# Runs of a batch size before it is warm: the first one chooses kernels and takes memory.
GPU_RUNS: Final = 2


@dataclass(frozen=True)
class Workshop:
    """The parts of the service that all versions share."""

    settings: Settings
    metrics: Metrics
    decoder: Decoder
    admission: Admission
    turns: DeviceTurns


class ServedVersion:
    """A bundle that is served or about to be, and how many requests hold it.

    `number` is its number in the store; None if a bundle is served without one.
    """

    def __init__(self, number: int | None, bundle: ResidentBundle, workshop: Workshop) -> None:
        self.number = number
        self.code = version_code(number, bundle.manifest.version)
        self.bundle = bundle
        self.leases = 0
        self.load_seconds: float | None = None
        self.resident_bytes: int | None = None
        self.known_image = b""
        self._workshop = workshop
        self._free = asyncio.Event()
        self._free.set()
        batches, largest = workshop.settings.device.batches, workshop.settings.batch_views
        # A GPU runs few sizes, which are all warmed. A CPU runs any: a few give the latency, small
        # ones next to another version, whose requests wait meanwhile.
        sizes = {1, min(2, largest)} if bundle.alongside else {1, min(VIEWS, largest), largest}
        side = bundle.manifest.preprocessing.size
        blank = [
            np.zeros((size, side, side, CHANNELS), np.uint8)
            for size in (sizes if batches is None else batches.sizes)
        ]
        runs = 1 if batches is None else GPU_RUNS
        self._turn = workshop.turns.when_idle if bundle.alongside else None
        self.runner = Runner(bundle, blank, runs, workshop.turns)
        self.scheduler: Scheduler | None = None
        self._pipeline: Pipeline | None = None

    async def check_files(self) -> None:
        """Check the files while another version answers; raises `UserError`."""
        try:
            await self.runner.in_thread(self.bundle.check_files)
        except BaseException:
            self.runner.close(wait=False)
            raise

    async def open(self) -> None:
        """Check the bundle, load it and warm it; raises what its parts raise."""
        workshop, start, before = self._workshop, perf_counter(), status_bytes("VmRSS")
        try:
            # The runner's thread also checks the files. A thread of the event loop would not do:
            # at its end the loop waits for its threads without a limit.
            await self.runner.open(self._turn)
            self.known_image = await asyncio.to_thread(self.bundle.known_image)
        except BaseException:
            self.bundle.close()
            self.runner.close(wait=False)
            raise
        scheduler = Scheduler(self.runner, workshop.settings.batch_views, workshop.metrics)
        scheduler.start()
        self._pipeline = Pipeline(
            workshop.settings,
            self.bundle,
            workshop.decoder,
            scheduler,
            workshop.admission,
            workshop.metrics,
        )
        self.scheduler = scheduler
        self.load_seconds = perf_counter() - start
        self.resident_bytes = max(0, status_bytes("VmRSS") - before)

    @property
    def is_open(self) -> bool:
        """Whether it is loaded, and can answer."""
        return self.scheduler is not None

    @property
    def shown_number(self) -> str:
        """The number as requests name it; a bundle that is served without a store is version 1."""
        return "1" if self.number is None else str(self.number)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep the version in memory until the block ends."""
        self.leases += 1
        self._free.clear()
        try:
            yield
        finally:
            self.leases -= 1
            if not self.leases:
                self._free.set()

    async def retire(self) -> None:
        """Wait until no request holds the version, and give its memory back."""
        await self._free.wait()
        await self.close()
        self.bundle.close()
        self._pipeline = self.scheduler = None
        await asyncio.to_thread(give_back)

    async def close(self) -> None:
        """Answer what is queued and end the thread."""
        if self.scheduler is not None:
            await self.scheduler.close()

    @property
    def pipeline(self) -> Pipeline:
        """The way of an image; raises `NotReadyError` while starting."""
        if self._pipeline is None:
            raise NotReadyError(STARTING)
        return self._pipeline
