"""The statistics of the tail, updated by one call per prediction."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.schema import GROUPS, Group
from taillift.service.tail.confusion import Pair, estimate_confusion, group_indices
from taillift.service.tail.drift import LEVEL, TOLERANCE, Drift
from taillift.service.tail.prevalence import Prevalence
from taillift.service.tail.reference import Source, expect, read_reference, reference_from
from taillift.service.tail.silence import Silence
from taillift.service.tail.window import Window

# Of every interval that is shown.
COVERAGE: Final = 0.95
WEEK: Final = 7 * 24 * 3600.0
# Predictions are counted in batches of this size at most: a batch costs the same as a single one.
MAX_PENDING: Final = 4096


@dataclass(frozen=True)
class ModelProfile:
    """Labels, groups and training images of a bundle's classes, and its held-out confusions.

    `labels`, `groups` and `counts` (training images) have one entry per class. `pairs` are (true
    class, predicted class, photos) as in the bundle's report/confusion.csv.
    """

    version: str
    labels: tuple[str, ...]
    groups: tuple[Group, ...]
    counts: tuple[int, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Rules:
    """The reference, the window, and the `level` and `tolerance` of `Drift`."""

    reference: Source | Path = Source.TRAIN
    level: float = LEVEL
    tolerance: float = TOLERANCE
    window_seconds: float = WEEK


@dataclass
class PendingPredictions:
    """Predictions of one bucket of the window that are not counted yet.

    `number` is that of the bucket, `last` the time of the last prediction.
    """

    labels: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    number: int = 0
    last: float = 0.0


class TailMonitor:
    """All statistics of one bundle. For a single thread.

    Call `observe` for every prediction, and `refresh` before reading any statistic. Predictions
    must be those under the uniform prior, whatever prior the request asked for, because the
    bundle's confusions were measured with it.
    """

    def __init__(self, profile: ModelProfile, rules: Rules, clock: Callable[[], float]) -> None:
        """`clock` returns seconds since 1970. Raises `UserError` if the reference is unusable."""
        self.profile = profile
        self.rules = rules
        self._clock = clock
        confusion = estimate_confusion(profile.groups, profile.pairs)
        if isinstance(rules.reference, Source):
            self.reference = reference_from(rules.reference, profile.counts, confusion)
        else:
            self.reference = read_reference(rules.reference, profile.labels)
        self.expected = expect(self.reference, confusion)
        self.group = group_indices(profile.groups)
        few = self.group == GROUPS.index("few")
        self.drift = Drift(self.expected.classes, rules.level, rules.tolerance)
        self.group_drift = Drift(self.expected.groups, rules.level, rules.tolerance)
        self.silence = Silence(self.expected, few, self.drift, rules.level)
        self.group_interval = self.expected.groups.interval(COVERAGE)
        self.prevalence = Prevalence(confusion, self.reference)
        self.window = Window(len(profile.labels), rules.window_seconds)
        self.last_seen = np.full(len(profile.labels), np.nan)
        self._pending = PendingPredictions()

    @property
    def predictions(self) -> int:
        """Predictions since monitoring of the bundle began, as of the last `refresh`."""
        return self.drift.evidence.predictions

    def observe(self, label: int, confidence: float) -> None:
        """Add one image's top class, as an index into the labels, and the confidence in it."""
        now = self._clock()
        number = self.window.number(now)
        if number != self._pending.number or len(self._pending.labels) >= MAX_PENDING:
            self._count_pending()
        pending = self._pending
        pending.number, pending.last = number, now
        pending.labels.append(label)
        pending.confidences.append(confidence)
        self.last_seen[label] = now

    def refresh(self) -> None:
        """Count the pending predictions, and forget those that are older than the window."""
        self._count_pending()
        self.window.forget(self._clock())

    def _count_pending(self) -> None:
        pending, self._pending = self._pending, PendingPredictions()
        if not pending.labels:
            return
        labels = np.array(pending.labels, np.int64)
        total = len(labels)
        self.window.add(labels, np.array(pending.confidences, np.float64), pending.last)
        counts = np.bincount(labels, minlength=len(self.profile.labels))
        self.silence.update(counts, total)
        self.drift.update(counts, total)
        self.group_drift.update(np.bincount(self.group, counts, len(GROUPS)), total)
