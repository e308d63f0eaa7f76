"""The queue at work: draws photos as they are answered, and writes them in a thread of its own."""

import asyncio
import logging
from collections import Counter as Counts
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from time import time
from typing import Final, Literal, TypeVar, get_args

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge

from taillift.models.bundle.arrays import Doubles, Flags, Floats
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.schema import GROUPS
from taillift.models.errors import UserError
from taillift.service.feedback.label_book import LabelRequest, TakenLabel
from taillift.service.review.photo_metadata import photo_kind, without_place
from taillift.service.review.review_folder import (
    LikelyClass,
    QueuedPhoto,
    Reason,
    ReviewEntry,
    ReviewFolder,
    encode_features,
)
from taillift.service.review.review_sampler import BASE, COMPARED, DAY, ReviewSampler
from taillift.service.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Classes that are kept with a photo.
TOP: Final = 5
# Bytes of photos that may wait to be written; what comes meanwhile is not drawn.
WAITING_BYTES: Final = 64 * 2**20
# Time between two looks for photos that are too old, in seconds.
TRIM_SECONDS: Final = 600.0
# Time that the photos that wait have to be written at the end, in seconds.
CLOSE_SECONDS: Final = 5.0

Loss = Literal["alike", "busy", "disk"]
# Photos of which a challenger may say that it differs, in bytes.
RECENT_BYTES: Final = 32 * 2**20
# Of the budget, at most so much is for photos on which a challenger differs.
DIFFERENCES: Final = 0.5
# What became of a label that stands now.
KEPT: Final = frozenset({"accepted", "replaced", "same"})


@dataclass(frozen=True)
class AnsweredPhoto:
    """A photo that was answered: its file, and what the model says.

    `requested` and `uniform` [C] are its probabilities under the prior of the answer and under the
    uniform one, `features` [D] those of the graph.
    """

    data: bytes
    digest: int
    manifest: Manifest
    number: int | None
    requested: Doubles
    uniform: Doubles
    features: Floats
    # Whether a challenger sees a copy.
    is_copied: bool = False


class ReviewCounters:
    """The metrics of the queue."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.kept = Counter(
            "taillift_review_kept",
            "Photos that were drawn and kept for labelling, by group of the predicted class",
            ["group"],
            registry=registry,
        )
        self.dropped = Counter(
            "taillift_review_dropped",
            "Photos that were not kept although chance had it: they look like one that is kept, "
            "too many waited to be written, or they could not be written",
            ["reason"],
            registry=registry,
        )
        self.photos = Gauge(
            "taillift_review_photos",
            "Photos in the folder, by group of the predicted class and whether they are labelled",
            ["group", "state"],
            registry=registry,
        )
        self.size = Gauge(
            "taillift_review_bytes", "Bytes of the photos in the folder", registry=registry
        )
        for group in GROUPS:
            self.kept.labels(group)
        for loss in get_args(Loss):
            self.dropped.labels(loss)


class Reviewer:
    """The queue of one service. For the event loop, except that a thread writes and reads."""

    def __init__(
        self,
        settings: Settings,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time,
        random: Random | None = None,
    ) -> None:
        """Raises `UserError` if the folder cannot be used."""
        assert settings.review_dir is not None
        self.folder = ReviewFolder(
            settings.review_dir, settings.review_days, settings.review_bytes, clock
        )
        self.sampler = ReviewSampler(settings.review_per_day, clock, random)
        self._clock = clock
        self._counters = ReviewCounters(registry)
        self._thread = ThreadPoolExecutor(1, "review")
        self._waiting_bytes = 0
        self._write_fails = False
        self._per_day = settings.review_per_day
        self._allowed, self._allowed_at = DIFFERENCES * self._per_day, clock()
        # Photos that a challenger sees, drawn or not, by the ids of their answers.
        self._recent: dict[str, AnsweredPhoto] = {}
        self._recent_bytes = 0
        # Labels that are not given yet, and the task that gives them.
        self._labels: dict[str, str | None] = {}
        self._labelling: asyncio.Task[None] | None = None
        # Of each version of a bundle: which classes are few-shot, [C].
        self._few: dict[str, Flags] = {}
        self._follow(self.folder.trimmed())

    def offer(self, photo: AnsweredPhoto, identify: Callable[[float], str | None]) -> str | None:
        """Draw a photo, keep it if it was drawn, and return the id of its prediction.

        `identify` makes it of the probability with which the photo was drawn, 0 if it was not.
        Without an id the photo is not kept. Returns at once: a thread writes.
        """
        probability = self.draw(photo)
        key = identify(probability)
        if key is None:
            return None
        if probability:
            self.keep(key, probability, photo, "tail" if self._mass(photo) > BASE else "random")
        if photo.is_copied:
            self._recent[key] = photo
            self._recent_bytes += len(photo.data)
            while self._recent_bytes > RECENT_BYTES:
                self._forget_recent(next(iter(self._recent)))
        return key

    def _forget_recent(self, key: str) -> AnsweredPhoto | None:
        photo = self._recent.pop(key, None)
        if photo is not None:
            self._recent_bytes -= len(photo.data)
        return photo

    def choose_difference(self, key: str, probability: float) -> bool:
        """Return whether the label of a photo on which a challenger differs counts for the verdict.

        `probability` is that with which the challenger was given a copy. As long as there is room
        for such photos, each of them is chosen: one that was not drawn is kept now. Its id says
        that it was not drawn, since it was sent before, so its label counts for no estimate.
        Without room, or if the challenger answers too late, one that was drawn does not count for
        the verdict either: whether a photo does would depend on the chance of the draw.
        """
        photo, now = self._forget_recent(key), self._clock()
        share = DIFFERENCES * self._per_day
        allowed = self._allowed + share * max(0.0, now - self._allowed_at) / DAY
        self._allowed, self._allowed_at = min(max(1.0, share), allowed), now
        if photo is None or self._allowed < 1:
            return False
        if key in self.sampler.kept:
            return True
        if not self._is_eligible(photo):
            return False
        self._allowed -= 1
        self.sampler.note_kept()
        self.keep(key, probability, photo, "differs")
        return True

    def draw(self, photo: AnsweredPhoto) -> float:
        """Return the probability with which the photo was drawn for labelling, 0 if it was not."""
        return self.sampler.draw(self._mass(photo), lambda: self._is_eligible(photo))

    def _is_eligible(self, photo: AnsweredPhoto) -> bool:
        """Return whether the photo is new and can be written soon; count it if it is not."""
        loss: Loss
        if self._waiting_bytes + len(photo.data) > WAITING_BYTES:
            loss = "busy"
        elif not self.sampler.is_new(photo.manifest.version, photo.digest, photo.features):
            loss = "alike"
        else:
            return True
        self._counters.dropped.labels(loss).inc()
        return False

    def keep(self, key: str, probability: float, photo: AnsweredPhoto, why: Reason) -> None:
        """Write a photo that was chosen with this probability, under the id of its prediction."""
        classes = photo.manifest.classes
        entry = ReviewEntry(
            id=key,
            time=self._clock(),
            kind=photo_kind(photo.data),
            predictions=[
                LikelyClass(
                    label=classes[index].label,
                    group=classes[index].group,
                    confidence=float(photo.requested[index]),
                )
                for index in np.argsort(-photo.requested, kind="stable")[:TOP]
            ],
            why=why,
            p=probability,
            version=photo.manifest.version,
            number=photo.number,
            digest=photo.digest,
            features=encode_features(photo.features),
        )
        self.sampler.remember(key, entry.version, entry.digest, photo.features)
        self._waiting_bytes += len(photo.data)
        task = self._thread.submit(self._write, entry, photo)
        asyncio.wrap_future(task).add_done_callback(
            lambda done: self._note_written(entry, len(photo.data), done)
        )

    async def run(self, work: Callable[[ReviewFolder], T]) -> T:
        """Return what `work` makes of the folder, in the thread, after what waits to be written."""
        return await asyncio.wrap_future(self._thread.submit(work, self.folder))

    def follow_labels(self, sent: Sequence[LabelRequest], taken: Sequence[TakenLabel]) -> None:
        """Let `label` be done soon with those labels that the feedback has kept.

        Those that come while it is at work are done together.
        """
        self._labels |= {
            label.id: one.label
            for label, one in zip(sent, taken, strict=True)
            if one.status in KEPT
        }
        if self._labels and (self._labelling is None or self._labelling.done()):
            self._labelling = asyncio.create_task(self._label_all())

    async def _label_all(self) -> None:
        while self._labels:
            labels, self._labels = self._labels, {}
            await self.label(labels)

    async def label(self, labels: Mapping[str, str | None]) -> None:
        """Keep the labels of those of these photos that are in the queue, and take them off it.

        A label that cannot be written here is logged: the photo stays in the queue.
        """

        def give(folder: ReviewFolder) -> bool:
            return sum(folder.give_label(key, label) for key, label in labels.items()) > 0

        try:
            found = await self.run(give)
        except UserError as error:
            logger.error("photos that were labelled stay in the queue: %s", error)
            found = True
        if found:
            await self.look()

    async def look(self) -> None:
        """Follow what others have changed in the folder, and remove what is too old.

        A folder that cannot be read is logged.
        """
        before = set(self.sampler.kept)
        try:
            photos = await self.run(ReviewFolder.trimmed)
        except UserError as error:
            logger.error("%s", error)
            return
        # What came meanwhile is perhaps not written yet.
        for key in before - {photo.entry.id for photo in photos}:
            self.sampler.forget(key)
        self._follow(photos)

    async def keep_trimmed(self) -> None:
        """Look every few minutes, until it is cancelled."""
        while True:
            await asyncio.sleep(TRIM_SECONDS)
            await self.look()

    async def close(self) -> None:
        """Wait a little for the photos that wait to be written, and end the thread."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.run(lambda _: None)
        except TimeoutError:
            logger.error("photos for review are not written: the disk is too slow")
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _mass(self, photo: AnsweredPhoto) -> float:
        """Return the probability that the photo shows a few-shot class."""
        version = photo.manifest.version
        if version not in self._few:
            groups = [info.group for info in photo.manifest.classes]
            self._few[version] = np.array([group == "few" for group in groups])
        return float(photo.uniform[self._few[version]].sum())

    def _write(self, entry: ReviewEntry, photo: AnsweredPhoto) -> None:
        self.folder.add(entry, without_place(photo.data), photo.manifest.labels)

    def _note_written(self, entry: ReviewEntry, size: int, done: asyncio.Future[None]) -> None:
        self._waiting_bytes -= size
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is None:
            self._counters.kept.labels(entry.group).inc()
            self._counters.photos.labels(entry.group, "waiting").inc()
            self._counters.size.inc(size)
        else:
            self.sampler.forget(entry.id)
            self._counters.dropped.labels("disk").inc()
            if not self._write_fails:
                logger.error("photos are not kept for review: %s", error)
        self._write_fails = error is not None

    def _follow(self, photos: Sequence[QueuedPhoto]) -> None:
        """Show these photos in the metrics, and leave out from now on what looks like them."""
        states = Counts(
            (photo.entry.group, "waiting" if photo.given is None else "labelled")
            for photo in photos
        )
        for group in GROUPS:
            for state in ("waiting", "labelled"):
                self._counters.photos.labels(group, state).set(states[group, state])
        self._counters.size.set(sum(photo.size for photo in photos))
        for photo in photos[-COMPARED:]:
            if photo.entry.id not in self.sampler.kept:
                entry = photo.entry
                self.sampler.remember(entry.id, entry.version, entry.digest, entry.feature_row)
