"""The statistics of a served bundle's tail: fed, read, and kept over swaps and restarts."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.folder import CONFUSION, content_version, verify_file
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.review import Decision
from taillift.models.bundle.schema import Group
from taillift.models.errors import UserError
from taillift.service.monitoring.counters import Metrics
from taillift.service.monitoring.store import Store
from taillift.service.settings import Settings
from taillift.service.tail.confusion import Pair, read_confusions
from taillift.service.tail.distributions import Indices
from taillift.service.tail.monitor import ModelProfile, Rules, TailMonitor
from taillift.service.tail.prevalence import LiveRules, LiveShares
from taillift.service.tail.reference import Source
from taillift.service.tail.snapshot import Array, restore, to_arrays
from taillift.service.tail.state import ClassState, TailState, class_state, tail_state

logger = logging.getLogger(__name__)

# A process that is killed loses the statistics since its last save.
SAVE_SECONDS: Final = 5.0
# In place of a number of predictions: what is in memory is to be saved in any case.
UNSAVED: Final = -1


class Monitoring:
    """The monitor of one bundle. For the event loop only; requests wait only for `observe`.

    The evidence is the bundle's own, and the counters are those of the service.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = time,
    ) -> None:
        """Raises `UserError` if the reference or the bundle's list of confusions is unusable.

        The same if there is to be a live prior and the bundle has too few held-out photos.
        """
        self.manifest = manifest
        rules = Rules(
            reference=parse_reference(settings.reference),
            level=settings.tail_level,
            window_seconds=settings.tail_window_seconds,
            live=LiveRules(settings.live_prior_images, settings.live_prior_half_life)
            if settings.live_prior
            else None,
        )
        self.monitor = TailMonitor(model_profile(folder, manifest), rules, clock)
        self.saved_predictions = 0
        self._metrics = metrics

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
        label, group = self.manifest.classes[index].label, self.manifest.classes[index].group
        if not self.monitor.observe(index, confidence, things):
            self._metrics.count_omission("repeated")
            self._metrics.class_repetitions[label, group] += 1
        self._metrics.class_predictions[label, group] += 1
        self._metrics.count_prediction(group, confidence)
        if decision is not None:
            self._metrics.count_decision(group, decision)
        if members is not None:
            self._metrics.count_set(group, len(members))

    @property
    def counts(self) -> Indices:
        """The predictions of each class since the process began, int64 [C]."""
        return self._totals(self._metrics.class_predictions)

    @property
    def repetitions(self) -> Indices:
        """Those of `counts` that the tail does not count, int64 [C]."""
        return self._totals(self._metrics.class_repetitions)

    def _totals(self, totals: Mapping[tuple[str, Group], int]) -> Indices:
        return np.array([totals[info.label, info.group] for info in self.manifest.classes])

    def state(self) -> TailState:
        """Return the current state of every class and group."""
        return tail_state(self.monitor)

    def class_state(self, index: int) -> ClassState:
        """Return the current state of the class with this index."""
        return class_state(self.monitor, index)

    def reset_live_prior(self) -> LiveShares | None:
        """Let the live prior begin anew, also after a restart; return it, None if there is none."""
        if (live := self.monitor.live) is None:
            return None
        self.monitor.refresh()  # What came before does not count for it.
        live.reset()
        self.saved_predictions = UNSAVED
        return live.current


class TailRecords:
    """The monitoring of every bundle that is served or may be again, kept in one file if there is.

    What a bundle's predictions have shown is still there when it is served again.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, clock: Callable[[], float] = time
    ) -> None:
        """Raises `UserError` if the tail file is unusable."""
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._ended = asyncio.Event()
        self._store = None if settings.tail_file is None else Store(settings.tail_file)
        self._kept: dict[str, Monitoring] = {}
        self._leaving: set[str] = set()
        self._save_fails = False

    def monitoring(self, folder: Path, manifest: Manifest) -> Monitoring:
        """Return the monitoring of a bundle as it was left, or a new one.

        Raises `UserError` if the reference or what was saved is unusable.
        """
        version = manifest.version
        self._leaving.discard(version)
        if version not in self._kept:
            monitoring = Monitoring(folder, manifest, self._settings, self._metrics, self._clock)
            if self._store is not None:
                try:
                    restore(monitoring.monitor, saved_arrays(self._store, manifest))
                except ValueError as error:
                    raise UserError(
                        f"{self._settings.tail_file} is damaged ({error}): move it away, and "
                        "monitoring begins anew"
                    ) from error
            monitoring.saved_predictions = monitoring.monitor.predictions
            self._kept[version] = monitoring
        return self._kept[version]

    def retain(self, versions: Collection[str]) -> None:
        """Forget the monitoring of all other bundles, once it is saved."""
        self._leaving = self._kept.keys() - set(versions)
        if self._store is None:
            for version in self._leaving:
                del self._kept[version]
            self._leaving = set()

    async def keep(self) -> None:
        """Save the statistics every few seconds until `end` is called, and then once more."""
        if self._store is None:
            return
        with self._store as store:
            while not self._ended.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), SAVE_SECONDS)
                gone = not await asyncio.to_thread(lambda: store.in_place)
                for version, monitoring in list(self._kept.items()):
                    saved = await self._save(store, monitoring, gone)
                    if saved and version in self._leaving:
                        self._leaving.discard(version)
                        del self._kept[version]

    def end(self) -> None:
        """Let `keep` save once more and return."""
        self._ended.set()

    def close(self) -> None:
        """Release the file without saving; for a service that does not start."""
        if self._store is not None:
            self._store.close()

    async def _save(self, store: Store, monitoring: Monitoring, gone: bool) -> bool:
        """Save if there are new predictions, or if the file is gone; return whether all is saved.

        After an error, the next save includes what this one lacks.
        """
        monitor = monitoring.monitor
        monitor.refresh()
        if monitor.predictions == monitoring.saved_predictions and not gone:
            return True
        # Before the thread saves: what changes meanwhile is for the next time.
        monitoring.saved_predictions, arrays = monitor.predictions, to_arrays(monitor)
        try:
            await asyncio.to_thread(store.save, monitoring.manifest.version, arrays)
        except UserError as error:
            monitoring.saved_predictions = UNSAVED
            self._metrics.tail_save_failures.inc()
            if not self._save_fails:
                logger.error("the tail's statistics are not saved: %s", error)
            self._save_fails = True
            return False
        if self._save_fails:
            logger.warning("the tail's statistics are saved again")
        self._save_fails = False
        return True


def saved_arrays(store: Store, manifest: Manifest) -> Mapping[str, Array]:
    """Return what was saved for the bundle, or for the same files before their upgrade."""
    arrays, before = store.load(manifest.version), content_version(manifest.files)
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
