"""The statistics of the served bundle's tail: fed, read, and kept over a restart."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.folder import CONFUSION, content_version, verify_file
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.review import Decision
from taillift.models.errors import UserError
from taillift.service.monitoring.counters import Metrics
from taillift.service.monitoring.store import Store
from taillift.service.settings import Settings
from taillift.service.tail.confusion import Pair, read_confusions
from taillift.service.tail.monitor import ModelProfile, Rules, TailMonitor
from taillift.service.tail.reference import Source
from taillift.service.tail.snapshot import Array, restore, to_arrays
from taillift.service.tail.state import ClassState, TailState, class_state, tail_state

logger = logging.getLogger(__name__)

# A process that is killed loses the statistics since its last save.
SAVE_SECONDS: Final = 5.0


class Monitoring:
    """The monitor of one service. For the event loop only; requests wait only for `observe`."""

    def __init__(
        self,
        manifest: Manifest,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = time,
    ) -> None:
        """Raises `UserError` if the reference or the tail file is unusable."""
        self.manifest = manifest
        rules = Rules(
            reference=parse_reference(settings.reference),
            level=settings.tail_level,
            window_seconds=settings.tail_window_seconds,
        )
        self.monitor = TailMonitor(model_profile(settings.bundle, manifest), rules, clock)
        self.counts = np.zeros(len(manifest.classes), np.int64)
        self._metrics = metrics
        self._ended = asyncio.Event()
        self._store = None if settings.tail_file is None else Store(settings.tail_file)
        if self._store is not None:
            try:
                restore(self.monitor, self._saved_arrays(self._store))
            except ValueError as error:
                self._store.close()
                raise UserError(
                    f"{settings.tail_file} is damaged ({error}): move it away, and monitoring "
                    "begins anew"
                ) from error
            except BaseException:
                self._store.close()
                raise
        self._saved_predictions = self.monitor.predictions
        self._save_fails = False

    def observe(
        self,
        probabilities: Doubles,
        decision: Decision | None = None,
        members: Sequence[int] | None = None,
        things: Sequence[int] = (),
    ) -> None:
        """Count one image by its probabilities [C] under the uniform prior.

        `decision` is the one on its answer and `members` the classes of its prediction set, if the
        image has them. `things` are the digests of what it shows: each counts once for the tail.
        """
        index = int(probabilities.argmax())
        confidence = float(probabilities[index])
        group = self.manifest.classes[index].group
        if not self.monitor.observe(index, confidence, things):
            self._metrics.count_omission("repeated")
        self.counts[index] += 1
        self._metrics.count_prediction(group, confidence)
        if decision is not None:
            self._metrics.count_decision(group, decision)
        if members is not None:
            self._metrics.count_set(group, len(members))

    def state(self) -> TailState:
        """Return the current state of every class and group."""
        return tail_state(self.monitor)

    def class_state(self, index: int) -> ClassState:
        """Return the current state of the class with this index."""
        return class_state(self.monitor, index)

    async def keep(self) -> None:
        """Save the statistics every few seconds until `end` is called, and then once more."""
        if self._store is None:
            return
        with self._store as store:
            while not self._ended.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), SAVE_SECONDS)
                await self._save(store)

    def end(self) -> None:
        """Let `keep` save once more and return."""
        self._ended.set()

    async def _save(self, store: Store) -> None:
        """Save if there are new predictions, or if the file is gone.

        After an error, the next save includes what this one lacks.
        """
        self.monitor.refresh()
        nothing_new = self.monitor.predictions == self._saved_predictions
        if nothing_new and await asyncio.to_thread(lambda: store.in_place):
            return
        predictions, arrays = self.monitor.predictions, to_arrays(self.monitor)
        try:
            await asyncio.to_thread(store.save, self.manifest.version, arrays)
        except UserError as error:
            self._metrics.tail_save_failures.inc()
            if not self._save_fails:
                logger.error("the tail's statistics are not saved: %s", error)
            self._save_fails = True
        else:
            if self._save_fails:
                logger.warning("the tail's statistics are saved again")
            self._save_fails = False
            self._saved_predictions = predictions

    def _saved_arrays(self, store: Store) -> Mapping[str, Array]:
        """Return what was saved for the bundle, or for the same files before their upgrade."""
        arrays, before = store.load(self.manifest.version), content_version(self.manifest.files)
        if not arrays and (arrays := store.load(before)):
            logger.warning(
                "the tail goes on from what was counted for the same files as version %s", before
            )
        return arrays


def model_profile(bundle: Path, manifest: Manifest) -> ModelProfile:
    """Return what the statistics need of a bundle.

    Raises `UserError` if the bundle's confusions are not those that the manifest lists, or do not
    fit its classes.
    """
    path, pairs = bundle / CONFUSION, list[Pair]()
    if CONFUSION in manifest.files:
        verify_file(bundle, manifest, CONFUSION)
        pairs = read_confusions(path, manifest.labels)
    elif path.exists():
        logger.warning("%s is not used, because the manifest does not list it", path)
    return ModelProfile(
        version=manifest.version,
        labels=tuple(manifest.labels),
        groups=tuple(info.group for info in manifest.classes),
        counts=tuple(manifest.counts),
        pairs=tuple(pairs),
    )


def parse_reference(setting: str) -> Source | Path:
    """Return the built-in source of that name, else the path of the operator's own file."""
    built_in = {str(source): source for source in Source if source is not Source.OWN}
    return built_in.get(setting, Path(setting))
