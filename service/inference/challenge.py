"""A challenger at work: copies of images in the shadow of the champion, or a share of the keys."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal, get_args

import numpy as np
from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.ensemble import Ensemble, ImageOutputs
from taillift.models.bundle.version_store import Challenger
from taillift.service.inference.admission import Admission
from taillift.service.inference.agreement import Agreement, Answer
from taillift.service.inference.deadline import Deadline
from taillift.service.inference.pipeline import Copier
from taillift.service.inference.served_version import ServedVersion
from taillift.service.monitoring.counters import Metrics
from taillift.service.monitoring.logs import request_id
from taillift.service.problems import ServiceError

logger = logging.getLogger(__name__)

# Views of copies that wait, beyond which new copies are dropped.
SHADOW_VIEWS: Final = 50
# How often a copy looks whether requests wait, in seconds.
LOOK: Final = 0.005
SHADOW_SECONDS: Final = 30.0

Loss = Literal["full", "other_pixels", "failed"]
LOSSES: Final[tuple[Loss, ...]] = get_args(Loss)

# Takes a request's id, the number of the image in it, and the probability with which it was copied.
DifferenceListener = Callable[[str | None, int, float], None]


@dataclass(frozen=True, eq=False)
class ShadowCopy:
    """An image's views uint8 [V, S, S, 3], the champion's answer, and how likely it was chosen."""

    views: Pixels
    ensemble: Ensemble
    answer: Answer
    probability: float
    request_id: str | None
    image: int


class ShadowCounters:
    """The counters of copies, which belong to the process and not to a challenger."""

    def __init__(self, metrics: Metrics) -> None:
        self.answered = Counter(
            "taillift_shadow_images",
            "Copies of images that a challenger has answered, by whether it agreed",
            ["outcome"],
            registry=metrics.registry,
        )
        self.dropped = Counter(
            "taillift_shadow_dropped",
            "Copies of images that a challenger was not asked for",
            ["reason"],
            registry=metrics.registry,
        )
        for outcome in ("same", "different"):
            self.answered.labels(outcome)
        for loss in LOSSES:
            self.dropped.labels(loss)


class Challenge:
    """One challenger, compared with one champion."""

    def __init__(
        self,
        champion: ServedVersion,
        challenger: ServedVersion,
        plan: Challenger,
        salt: str,
        admission: Admission,
        counters: ShadowCounters,
        before: "Challenge | None" = None,
        listeners: Sequence[DifferenceListener] = (),
    ) -> None:
        """If the comparison `before` was between the same two, it goes on.

        `listeners` are told of each image on which the two differ.
        """
        self.champion = champion
        self.challenger = challenger
        self.plan = plan
        self.agreement = Agreement(
            champion.bundle.manifest.classes, challenger.bundle.manifest.classes
        )
        if before is not None and (before.champion, before.challenger) == (champion, challenger):
            self.agreement = before.agreement
        self._salt = salt
        self._admission = admission
        self._counters = counters
        self._listeners = listeners
        self._waiting: deque[ShadowCopy] = deque()
        self._arrival = asyncio.Event()
        self._task = asyncio.create_task(self._work()) if plan.shadow is not None else None
        same = champion.bundle.manifest.preprocessing == challenger.bundle.manifest.preprocessing
        self._same_pixels = same

    def chooses(self, key: str) -> bool:
        """Return whether the canary answers the requests with this key: always or never.

        With a larger share, the keys that it answers already stay.
        """
        canary = self.plan.canary
        return canary is not None and place_of(self._salt, key) < canary.share

    def copier(self, version: ServedVersion) -> Copier | None:
        """Return what copies the images of a request to `version`; None if they are not copied."""
        return self._offer if self._task is not None and version is self.champion else None

    def _offer(self, image: int, views: Pixels, ensemble: Ensemble, outputs: ImageOutputs) -> None:
        """Copy an image that the champion has answered, if chance chooses it and there is room."""
        assert self.plan.shadow is not None
        manifest = self.champion.bundle.manifest
        prediction = self.champion.bundle.predictor.predict(outputs, ensemble)
        first, second = np.argsort(-prediction.uniform, kind="stable")[:2].tolist()
        rare = any(manifest.classes[index].group == "few" for index in (first, second))
        probability = self.plan.shadow.few if rare else self.plan.shadow.share
        if random.random() >= probability:
            return
        if not self._same_pixels:
            self._counters.dropped.labels("other_pixels").inc()
            return
        if sum(len(copy.views) for copy in self._waiting) + len(views) > SHADOW_VIEWS:
            self._counters.dropped.labels("full").inc()
            return
        answer = Answer(first, float(prediction.uniform[first]), outputs.views)
        self._waiting.append(
            ShadowCopy(views, ensemble, answer, probability, request_id.get(), image)
        )
        self._arrival.set()

    async def end(self) -> None:
        """Drop the copies that wait."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        """Give copies to the challenger, one at a time, whenever no request waits for anything."""
        while True:
            while not self._waiting:
                self._arrival.clear()
                await self._arrival.wait()
            while self._admission.images:
                await asyncio.sleep(LOOK)
            try:
                await self._compare(self._waiting.popleft())
            except Exception as error:
                # A challenger may fail without any effect on the champion.
                if not isinstance(error, ServiceError):
                    logger.exception("the challenger failed on a copy")
                self._counters.dropped.labels("failed").inc()

    async def _compare(self, copy: ShadowCopy) -> None:
        bundle, scheduler = self.challenger.bundle, self.challenger.scheduler
        assert scheduler is not None
        ensemble = copy.ensemble
        if ensemble is Ensemble.ADAPTIVE and bundle.predictor.variant.exit is None:
            ensemble = Ensemble.FULL
        outputs = await scheduler.answer(
            copy.views, Deadline.after(SHADOW_SECONDS), copy, bundle.predictor.stages(ensemble)
        )
        uniform = bundle.predictor.predict(outputs, ensemble).uniform
        index = int(uniform.argmax())
        answer = Answer(index, float(uniform[index]), outputs.views)
        same = self.agreement.add(
            copy.answer, answer, copy.probability, copy.request_id, copy.image
        )
        self._counters.answered.labels("same" if same else "different").inc()
        if not same:
            for listener in self._listeners:
                listener(copy.request_id, copy.image, copy.probability)


def place_of(salt: str, key: str) -> float:
    """Return a key's place from 0 to 1, which looks random and is always the same."""
    digest = sha256(f"{salt}:{key}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def agreement_series(agreement: Agreement) -> GaugeMetricFamily:
    """Return the agreement by the champion's group as a metric; without images it has no sample."""
    family = GaugeMetricFamily(
        "taillift_agreement",
        "Share of images on which the challenger agrees, by the champion's group; 95 % interval",
        labels=("group", "bound"),
    )
    for group, share in agreement.by_champion.items():
        if share.estimate is not None:
            low, high = share.interval
            for bound, value in (("estimate", share.estimate), ("low", low), ("high", high)):
                family.add_metric((group, bound), value)
    return family
