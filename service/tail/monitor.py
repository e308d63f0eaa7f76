"""The tail's statistics, kept up to date by one call a prediction."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.schema import GROUPS, Group
from taillift.service.tail.confusion import Confusion, Pair, estimate_confusion, group_indices
from taillift.service.tail.drift import LEVEL, TOLERANCE, Drift
from taillift.service.tail.prevalence import Prevalence
from taillift.service.tail.reference import (
    Reference,
    Source,
    expect,
    read_reference,
    reference_from,
)
from taillift.service.tail.silence import Silence
from taillift.service.tail.window import Window

# Of every interval that is shown.
COVERAGE: Final = 0.95
WEEK: Final = 7 * 24 * 3600.0
# Predictions that may wait to be counted: so many are looked at together.
WAITING: Final = 4096


@dataclass(frozen=True)
class ModelProfile:
    """Of a bundle: one label, group and number of training images a class, and held-out photos.

    `pairs` are (true class, predicted class, photos) as in the bundle's report/confusion.csv.
    """

    version: str
    labels: tuple[str, ...]
    groups: tuple[Group, ...]
    counts: tuple[int, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Rules:
    """How the stream is judged: `level` and `tolerance` as `Drift` has them."""

    reference: Source | Path = Source.TRAIN
    level: float = LEVEL
    tolerance: float = TOLERANCE
    window_seconds: float = WEEK


@dataclass
class Waiting:
    """Predictions of one part of the window that are not counted yet, and when the last came."""

    labels: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    number: int = 0
    last: float = 0.0


class TailMonitor:
    """For one thread, the event loop's: `observe` every prediction, `look` before reading.

    Predictions are to be those under the uniform prior, with which the bundle's confusions were
    measured, whatever prior an answer was asked for with.
    """

    def __init__(self, facts: ModelProfile, rules: Rules, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970. Raises `UserError` where the reference is of no use."""
        self.facts = facts
        self.rules = rules
        self._clock = clock
        confusion = estimate_confusion(facts.groups, facts.pairs)
        self.reference = _reference(rules.reference, facts, confusion)
        self.expected = expect(self.reference, confusion)
        self.group = group_indices(facts.groups)
        few = self.group == GROUPS.index("few")
        self.drift = Drift(self.expected.classes, rules.level, rules.tolerance)
        self.group_drift = Drift(self.expected.groups, rules.level, rules.tolerance)
        self.silence = Silence(self.expected, few, self.drift, rules.level)
        self.group_band = self.expected.groups.band(COVERAGE)
        self.prevalence = Prevalence(confusion, self.reference)
        self.window = Window(len(facts.labels), rules.window_seconds)
        self.last_seen = np.full(len(facts.labels), np.nan)
        self._waiting = Waiting()

    @property
    def predictions(self) -> int:
        """Since monitoring of the bundle began, as of the last look."""
        return self.drift.evidence.predictions

    def observe(self, label: int, confidence: float) -> None:
        """One image's top class, as an index into the labels, and the confidence in it."""
        now = self._clock()
        number = self.window.number(now)
        if number != self._waiting.number or len(self._waiting.labels) >= WAITING:
            self._count()
        waiting = self._waiting
        waiting.number, waiting.last = number, now
        waiting.labels.append(label)
        waiting.confidences.append(confidence)
        self.last_seen[label] = now

    def look(self) -> None:
        """Count what waits, and forget what the window no longer reaches."""
        self._count()
        self.window.forget(self._clock())

    def _count(self) -> None:
        waiting, self._waiting = self._waiting, Waiting()
        if not waiting.labels:
            return
        labels = np.array(waiting.labels, np.int64)
        total = len(labels)
        self.window.add(labels, np.array(waiting.confidences, np.float64), waiting.last)
        counts = np.bincount(labels, minlength=len(self.facts.labels))
        self.silence.look(counts, total)
        self.drift.look(counts, total)
        self.group_drift.look(np.bincount(self.group, counts, len(GROUPS)), total)


def _reference(wanted: Source | Path, facts: ModelProfile, confusion: Confusion) -> Reference:
    if isinstance(wanted, Source):
        return reference_from(wanted, facts.counts, confusion)
    return read_reference(wanted, facts.labels)
