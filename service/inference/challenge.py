"""A challenger at work: copies of images in the shadow of the champion, or a share of the keys."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import log
from typing import Final, Literal, get_args

import numpy as np
from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily

from taillift.models.bundle.arrays import Pixels
from taillift.models.bundle.ensemble import Ensemble, ImageOutputs
from taillift.models.bundle.version_store import Challenger
from taillift.models.duel import Duel
from taillift.service.feedback.label_book import Pairing, ShadowDifference
from taillift.service.inference.admission import Admission
from taillift.service.inference.agreement import Agreement, Answer, Disagreement
from taillift.service.inference.deadline import Deadline
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

DifferenceListener = Callable[[ShadowDifference], None]
# Takes the id of the answer to an image that was copied.
IdTaker = Callable[[str], None]


@dataclass(eq=False)
class ShadowCopy:
    """An image's views uint8 [V, S, S, 3], the champion's answer, and how likely it was chosen.

    The answer's id and the challenger's answer, if it is another one, are known later.
    """

    views: Pixels
    ensemble: Ensemble
    answer: Answer
    probability: float
    request_id: str | None
    image: int
    id: str | None = None
    difference: Disagreement | None = None


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
        note: DifferenceListener = lambda _: None,
    ) -> None:
        """If the comparison `before` was between the same two, it goes on.

        `note` is told of each image on which the two differ, once its answer has an id.
        """
        self.champion = champion
        self.challenger = challenger
        self.plan = plan
        self.agreement = Agreement(
            champion.bundle.manifest.classes, challenger.bundle.manifest.classes
        )
        self.pairing = Pairing(champion.code, challenger.code)
        if before is not None and before.pairing == self.pairing:
            self.agreement = before.agreement
        self._salt = salt
        self._admission = admission
        self._counters = counters
        self._note = note
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

    def copies(self, version: ServedVersion) -> bool:
        """Return whether images of requests to `version` are copied."""
        return self._task is not None and version is self.champion

    def offer(
        self, image: int, views: Pixels, ensemble: Ensemble, outputs: ImageOutputs
    ) -> IdTaker | None:
        """Copy an image that the champion has answered, if chance chooses it and there is room.

        Returns what is to be told the id of the answer; None if there is no copy.
        """
        assert self.plan.shadow is not None
        manifest = self.champion.bundle.manifest
        prediction = self.champion.bundle.predictor.predict(outputs, ensemble)
        first, second = np.argsort(-prediction.uniform, kind="stable")[:2].tolist()
        rare = any(manifest.classes[index].group == "few" for index in (first, second))
        probability = self.plan.shadow.few if rare else self.plan.shadow.share
        if random.random() >= probability:
            return None
        if not self._same_pixels:
            self._counters.dropped.labels("other_pixels").inc()
            return None
        if sum(len(copy.views) for copy in self._waiting) + len(views) > SHADOW_VIEWS:
            self._counters.dropped.labels("full").inc()
            return None
        answer = Answer(first, float(prediction.uniform[first]), outputs.views)
        copy = ShadowCopy(views, ensemble, answer, probability, request_id.get(), image)
        self._waiting.append(copy)
        self._arrival.set()
        return partial(self._identify, copy)

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
        copy.difference = self.agreement.add(
            copy.answer, answer, copy.probability, copy.request_id, copy.image
        )
        same = copy.difference is None
        self._counters.answered.labels("same" if same else "different").inc()
        self._tell(copy)

    def _identify(self, copy: ShadowCopy, answer_id: str) -> None:
        copy.id = answer_id
        self._tell(copy)

    def _tell(self, copy: ShadowCopy) -> None:
        """Tell of a difference as soon as the id of the answer is known as well."""
        difference, shadow = copy.difference, self.plan.shadow
        if difference is None or copy.id is None or shadow is None:
            return
        difference.id = copy.id
        least = min(share for share in (shadow.share, shadow.few) if share)
        self._note(
            ShadowDifference(
                copy.id,
                self.pairing,
                difference.champion,
                difference.challenger,
                copy.probability,
                least,
            )
        )


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


def duel_series(duel: Duel) -> Iterator[GaugeMetricFamily]:
    """Yield what the labels say of a challenger as metrics."""
    labels = GaugeMetricFamily(
        "taillift_challenger_labels",
        "Labels of photos on which one of the two is right, by which, and by the label's group",
        labels=("group", "right"),
    )
    evidence = GaugeMetricFamily(
        "taillift_challenger_evidence",
        "Logarithm to base 10 of the e-value that one of the two is right more often; group all: "
        "over all groups",
        labels=("group", "right"),
    )
    for group, tally in (("all", duel.overall), *duel.groups.items()):
        labels.add_metric((group, "challenger"), tally.wins)
        labels.add_metric((group, "champion"), tally.losses)
        evidence.add_metric((group, "challenger"), tally.evidence / log(10))
        evidence.add_metric((group, "champion"), tally.evidence_against / log(10))
    yield from (labels, evidence)
