"""The statistics of the tail, updated by one call per prediction."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.schema import GROUPS, Group
from taillift.service.tail.confusion import Pair, estimate_confusion, group_indices
from taillift.service.tail.dependence import LONGEST, Dependence, Sightings
from taillift.service.tail.distributions import Doubles, Indices
from taillift.service.tail.drift import LEVEL, TOLERANCE, Drift
from taillift.service.tail.prevalence import LivePrior, LiveRules, Prevalence
from taillift.service.tail.reference import (
    Expected,
    Source,
    expect,
    read_reference,
    reference_from,
)
from taillift.service.tail.silence import Silence
from taillift.service.tail.window import BUCKETS, Window

# Of every interval that is shown.
COVERAGE: Final = 0.95
WEEK: Final = 7 * 24 * 3600.0
# Predictions are counted so many at once: more would make the next look late.
MAX_PENDING: Final = 512
# So many of the last predictions are judged anew at every look, because it takes time to notice
# that they depend on each other.
HELD: Final = 2048
# The tests take predictions in batches of this size: a change is dated to the batch's beginning.
BATCH: Final = 128


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
    """The reference, the window, and the `level` and `tolerance` of `Drift`.

    With `live` there is a prior that follows the groups' shares.
    """

    reference: Source | Path = Source.TRAIN
    level: float = LEVEL
    tolerance: float = TOLERANCE
    window_seconds: float = WEEK
    live: LiveRules | None = None


@dataclass
class PendingPredictions:
    """Predictions of one bucket of the window that are not counted yet.

    `number` is that of the bucket, `last` the time of the last prediction.
    """

    labels: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    number: int = 0
    last: float = 0.0


class Findings:
    """The tests for drift, of classes and of groups, and for silence."""

    def __init__(self, expected: Expected, group: Indices, rules: Rules) -> None:
        """`group` [C] is the index of each class's group in `GROUPS`."""
        self._group = group
        few = group == GROUPS.index("few")
        self.drift = Drift(expected.classes, rules.level, rules.tolerance)
        self.group_drift = Drift(expected.groups, rules.level, rules.tolerance)
        self.silence = Silence(expected, few, self.drift, rules.level)

    def update(self, labels: Indices, effect: float, class_effects: Doubles) -> None:
        """Add predictions, with their evidence weakened by the design effects, also of each class.

        A thing that is predicted d times multiplies an e-value by the d-th power of the likelihood
        ratio that it has once. The power 1/d takes it back, and is at most 1 in the mean for any
        thing that is predicted less often (Jensen). It is the tempered likelihood of Grünwald
        (2012).
        """
        counts = np.bincount(labels, minlength=len(self._group))
        self.silence.update(counts / class_effects, len(labels) / class_effects)
        self.drift.update(counts / class_effects, len(labels) / class_effects)
        in_groups = np.bincount(self._group, counts, len(GROUPS))
        self.group_drift.update(in_groups / effect, len(labels) / effect)


class TailMonitor:
    """All statistics of one bundle. For a single thread.

    Call `observe` for every prediction, and `refresh` before reading any statistic. Predictions
    must be those under the uniform prior, whatever prior the request asked for, because the
    bundle's confusions were measured with it.
    """

    def __init__(self, profile: ModelProfile, rules: Rules, clock: Callable[[], float]) -> None:
        """`clock` returns seconds since 1970.

        Raises `UserError` if the reference is unusable, or if too few photos were held out for a
        live prior.
        """
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
        self.predictions = 0
        self.dependence = Dependence(self.expected.classes.mean)
        # The tests without the predictions that are held, with the first held ones, and with all.
        # The second go on from look to look as long as the design effects stay what they are.
        self.settled = Findings(self.expected, self.group, rules)
        self.held = np.zeros(0, np.int64)
        self._batch_effects: list[float] = []
        self._effects = (self.dependence.design_effect, self.dependence.class_effects)
        self._ahead: Findings | None = None
        self._judged = 0
        self._current: Findings | None = None
        self.group_interval = self.expected.groups.interval(COVERAGE)
        self.prevalence = Prevalence(confusion, self.reference)
        self.live = LivePrior(confusion, profile.labels, rules.live) if rules.live else None
        self.window = Window(len(profile.labels), rules.window_seconds)
        self.sightings = Sightings(rules.window_seconds)
        self.last_seen = np.full(len(profile.labels), np.nan)
        # The time of the first prediction; NaN before, or if it is from version 0.1.0.
        self.began = np.nan
        self._pending = PendingPredictions()

    @property
    def counted_since(self) -> float | None:
        """The time from which on the window counts: that of the first prediction, or its start.

        None without predictions in the window.
        """
        if not self.window.buckets:
            return None
        start = self.window.buckets[0].number * self.rules.window_seconds / BUCKETS
        return start if np.isnan(self.began) else max(start, self.began)

    @property
    def drift(self) -> Drift:
        return self._findings.drift

    @property
    def group_drift(self) -> Drift:
        return self._findings.group_drift

    @property
    def silence(self) -> Silence:
        return self._findings.silence

    def observe(self, label: int, confidence: float, things: Sequence[int] = ()) -> bool:
        """Add one image's top class, as an index into the labels, and the confidence in it.

        `things` are the digests of what the image shows (`Sightings`). If any of them was seen
        within the window, the image is not counted. Returns whether it is.
        """
        now = self._clock()
        if self.sightings.add(things, now):
            return False
        number = self.window.number(now)
        if number != self._pending.number or len(self._pending.labels) >= MAX_PENDING:
            self._count_pending()
        pending = self._pending
        pending.number, pending.last = number, now
        pending.labels.append(label)
        pending.confidences.append(confidence)
        self.last_seen[label] = now
        if np.isnan(self.began) and not self.window.buckets:
            self.began = now
        if self.live is not None and len(pending.labels) >= self.live.missing:
            self._count_pending()
        return True

    def refresh(self) -> None:
        """Count the pending predictions, and forget those that are older than the window.

        Times that are later than now, from a clock that was ahead, become now.
        """
        self._count_pending()
        now = self._clock()
        self.window.forget(now)
        self.last_seen = np.minimum(self.last_seen, now)
        self.began = min(self.began, now)

    def _count_pending(self) -> None:
        pending, self._pending = self._pending, PendingPredictions()
        if not pending.labels:
            return
        labels = np.array(pending.labels, np.int64)
        self.predictions += len(labels)
        self.window.add(labels, np.array(pending.confidences, np.float64), pending.last)
        for start in range(0, len(labels), LONGEST):
            self.dependence.learn(labels[start : start + LONGEST])
        self.held = np.concatenate([self.held, labels])
        self._current = None
        self.measure()
        if len(self.held) >= HELD + BATCH:
            settled = (len(self.held) - HELD) // BATCH * BATCH
            self._judge(self.settled, 0, settled)
            self.held = self.held[settled:]
            del self._batch_effects[: settled // BATCH]
            self._judged -= settled
            if self._judged < 0:
                self._ahead = None
        if self.live is not None:
            self.live.add(labels)
            if self.live.missing <= 0:
                found = self.drift.found | self.silence.found
                self.live.look(self._fading(), found, self.dependence.measured, pending.last)

    def _fading(self) -> str:
        """Return which few-shot classes are found to be predicted less than expected."""
        few = GROUPS.index("few")
        less = self.silence.found | (self.drift.found & (self.drift.direction < 0))
        if (classes := np.flatnonzero(less & (self.group == few))).size:
            label = self.profile.labels[classes[0]]
            return f"the few-shot class {label!r} is predicted less often than expected"
        if self.group_drift.found[few] and self.group_drift.direction[few] < 0:
            return "the few-shot classes together are predicted less often than expected"
        return ""

    def measure(self) -> None:
        """Take over the design effects after `dependence` has changed; `refresh` does it as well.

        If they differ from those before, what was judged is judged anew.
        """
        effects = (self.dependence.design_effect, self.dependence.class_effects)
        if effects[0] != self._effects[0] or not np.array_equal(effects[1], self._effects[1]):
            self._ahead = None
        self._effects = effects

    def _judge(self, findings: Findings, begin: int, end: int) -> None:
        """Add the held predictions from `begin` to `end`, weakened by how dependent they are."""
        effect, classes = self._effects
        for start in range(begin, end, BATCH):
            own = self._batch_effect(start)
            labels = self.held[start : min(start + BATCH, end)]
            findings.update(labels, max(effect, own), np.maximum(classes, max(effect, own)))

    def _batch_effect(self, start: int) -> float:
        """Return the design effect of the held batch from `start` on; an incomplete one is joined
        with what came before.
        """
        until = self.held[: start + BATCH]
        if len(until) < start + BATCH:
            return self.dependence.of_batch(until[-BATCH:])
        while len(self._batch_effects) <= start // BATCH:
            first = len(self._batch_effects) * BATCH
            self._batch_effects.append(self.dependence.of_batch(self.held[first : first + BATCH]))
        return self._batch_effects[start // BATCH]

    @property
    def _findings(self) -> Findings:
        """The tests with all predictions, the held ones judged by what is known now."""
        if self._current is None:
            if self._ahead is None:
                self._ahead, self._judged = deepcopy(self.settled), 0
            whole = len(self.held) // BATCH * BATCH
            self._judge(self._ahead, self._judged, whole)
            self._judged = whole
            self._current = deepcopy(self._ahead)
            self._judge(self._current, whole, len(self.held))
        return self._current
