"""The tail's statistics of the bundle in service: fed, read, and kept over a restart."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.review import Decision
from taillift.models.errors import UserError
from taillift.service.monitoring.counters import Metrics
from taillift.service.monitoring.store import Store
from taillift.service.settings import Settings
from taillift.service.tail.confusion import read_confusions
from taillift.service.tail.monitor import ModelProfile, Rules, TailMonitor
from taillift.service.tail.reference import Source
from taillift.service.tail.snapshot import recall, remember
from taillift.service.tail.state import ClassState, TailState, class_state, tail_state

logger = logging.getLogger(__name__)

# A process that is killed loses what it saw since it last kept its statistics.
SAVE_SECONDS: Final = 5.0
CONFUSION: Final = Path("report") / "confusion.csv"


class Monitoring:
    """For the event loop alone: `observe` is the only part on the way of a request."""

    def __init__(
        self,
        manifest: Manifest,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = time,
    ) -> None:
        """Raises `UserError` where the reference or the file is of no use."""
        self.manifest = manifest
        self.clock = clock
        self.monitor = TailMonitor(facts(settings.bundle, manifest), rules(settings), clock)
        self.counts = np.zeros(len(manifest.classes), np.int64)
        self._metrics = metrics
        self._saved = 0
        self._ended = asyncio.Event()
        self._store = None if settings.tail_file is None else Store(settings.tail_file)
        if self._store is not None:
            self._recall(self._store)

    def observe(
        self,
        probabilities: Doubles,
        decision: Decision | None = None,
        members: Sequence[int] | None = None,
    ) -> None:
        """Count one image by its probabilities [C] under the uniform prior.

        With what was decided on its answer and the classes of its prediction set, where there are.
        """
        place = int(probabilities.argmax())
        confidence = float(probabilities[place])
        group = self.manifest.classes[place].group
        self.monitor.observe(place, confidence)
        self.counts[place] += 1
        self._metrics.predicted(group, confidence)
        if decision is not None:
            self._metrics.reviewed(group, decision)
        if members is not None:
            self._metrics.held(group, len(members))

    def state(self) -> TailState:
        """Of every class and group, now."""
        return tail_state(self.monitor)

    def class_state(self, place: int) -> ClassState:
        """Of the class with the index `place`, now."""
        return class_state(self.monitor, place)

    async def keep(self) -> None:
        """Write to the file every few seconds until `end`, and once more then."""
        if self._store is None:
            return
        with self._store as store:
            while not self._ended.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), SAVE_SECONDS)
                await self._save(store)

    def end(self) -> None:
        """Let `keep` come to its end."""
        self._ended.set()

    async def _save(self, store: Store) -> None:
        """What cannot be written now is written with the next."""
        self.monitor.look()
        if self.monitor.predictions == self._saved:
            return
        predictions, arrays = self.monitor.predictions, remember(self.monitor)
        try:
            await asyncio.to_thread(store.save, self.manifest.version, arrays)
        except UserError as error:
            logger.error("the tail's statistics are not kept: %s", error)
        else:
            self._saved = predictions

    def _recall(self, store: Store) -> None:
        try:
            recall(self.monitor, store.load(self.manifest.version))
        except BaseException:
            store.close()
            raise
        self._saved = self.monitor.predictions


def facts(bundle: Path, manifest: Manifest) -> ModelProfile:
    """Raises `UserError` where the bundle's confusions do not fit its classes."""
    return ModelProfile(
        version=manifest.version,
        labels=tuple(manifest.labels),
        groups=tuple(info.group for info in manifest.classes),
        counts=tuple(manifest.counts),
        pairs=tuple(read_confusions(bundle / CONFUSION, manifest.labels)),
    )


def rules(settings: Settings) -> Rules:
    return Rules(
        reference=source(settings.reference),
        level=settings.tail_level,
        window_seconds=settings.tail_window_seconds,
    )


def source(reference: str) -> Source | Path:
    """By its name, or the operator's own file."""
    named = {str(one): one for one in Source if one is not Source.OWN}
    return named.get(reference, Path(reference))
