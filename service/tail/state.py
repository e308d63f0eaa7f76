"""The state of the tail as the service shows it: all classes, the groups, and one class in detail.

Counts, shares and confidences are those of the window; e-values and findings are those since
monitoring began. States no longer change, so any thread may read them. Intervals of shares, which
take milliseconds, are computed when they are first asked for: the event loop does not wait for
them.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from taillift.models.bundle.schema import GROUPS, Group
from taillift.service.tail.distributions import Doubles, Flags, Indices, binomial_interval
from taillift.service.tail.drift import Drift
from taillift.service.tail.monitor import COVERAGE, TailMonitor
from taillift.service.tail.reference import Rates, Source
from taillift.service.tail.window import quantiles

ClassStatus = Literal["as expected", "fewer", "more", "silent"]


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Quantiles:
    """The confidence in the top class below which 10, 50 and 90 of 100 images are."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, histogram: Indices) -> "Quantiles | None":
        """Return the quantiles of one histogram [50], or None if it is empty."""
        return cls(*quantiles(histogram[None])[0].tolist()) if histogram.any() else None


@dataclass(frozen=True)
class ClassArrays:
    """All classes within the window, as arrays [C].

    `ratio` is NaN before the first prediction of any class, `last_seen` before that of the class.
    `found` marks the classes that drift; `direction` is 1 for more and -1 for fewer predictions.
    `missing` is how many more predictions (of any class) it takes until 95 of 100 classes that are
    predicted twice as often as expected would have been found: 0 if there are enough already, and
    infinite if the held-out photos leave so much open.
    `hidden` marks few-shot classes whose loss would be hidden by the mistakes on other classes.
    """

    predicted: Indices
    expected: Doubles
    ratio: Doubles
    e_value: Doubles
    found: Flags
    direction: Indices
    silent: Flags
    hidden: Flags
    last_seen: Doubles
    missing: Doubles


@dataclass(frozen=True)
class GroupState:
    """One group within the window; `prevalence` is corrected for the model's confusions.

    `total` are the predictions of all groups, whose measured design effect is `effect`.
    """

    group: Group
    classes: int
    predicted: int
    expected: float
    total: int
    effect: float
    expected_share: float
    expected_interval: Interval
    prevalence: float
    prevalence_interval: Interval
    e_value: float
    verdict: ClassStatus
    confidence: Quantiles | None
    missing: float

    @property
    def share(self) -> float:
        """Share of the window's predictions; NaN before the first one."""
        return self.predicted / self.total if self.total else math.nan

    @property
    def ratio(self) -> float:
        """Predictions over those expected; NaN before the first prediction."""
        return self.predicted / self.expected if self.total else math.nan

    @cached_property
    def interval(self) -> Interval:
        """The 95 % interval of the share."""
        return share_interval(self.predicted, self.total, self.effect)

    @property
    def words(self) -> str:
        """The verdict; without one, whether that is because there is too little evidence."""
        if self.verdict != "as expected" or not self.missing:
            return self.verdict
        if math.isinf(self.missing):
            return "not enough evidence yet"
        return f"not enough evidence yet: {self.missing:,.0f} more predictions"


@dataclass(frozen=True)
class TailState:
    """All classes and groups; `predictions` counts since the beginning, not only the window.

    Evidence is weakened by `design_effect`. Intervals are widened by `measured_effect`, which
    leaves out what is only feared at the beginning.
    """

    reference: Source
    predictions: int
    window_predictions: int
    design_effect: float
    measured_effect: float
    classes: ClassArrays
    groups: tuple[GroupState, ...]

    @property
    def drifting(self) -> int:
        """Number of classes that drift."""
        return int(self.classes.found.sum())

    @property
    def silent(self) -> int:
        """Number of classes that are silent."""
        return int(self.classes.silent.sum())

    def share_bounds(self, counts: Indices) -> tuple[Doubles, Doubles]:
        """Return 95 % bounds of the shares of which there are `counts` in the window."""
        return share_bounds(counts, self.window_predictions, self.measured_effect)


def share_bounds(counts: Indices, total: int, effect: float) -> tuple[Doubles, Doubles]:
    """Return 95 % bounds of shares, from `counts` of `total` with the design effect `effect`."""
    return binomial_interval(counts / effect, total / effect, COVERAGE)


def share_interval(count: int, total: int, effect: float) -> Interval:
    """Return the 95 % interval of one share, as `share_bounds` does for several."""
    return _intervals(*share_bounds(np.array([count]), total, effect))[0]


@dataclass(frozen=True)
class ClassState:
    """One class within the window, and the evidence since monitoring began.

    `total` are the predictions of all classes, whose measured design effect is `effect`, and `rate`
    is what is known of the class's expected share. `chance` is the
    probability of so few predictions, or fewer, under the reference; it holds for one look.
    `e_value` and `silence_e_value` hold for any number of looks. The delays are the predictions
    (of any class) within which 95 of 100 such changes from now on are found, infinite if they
    would not be. `silence_e_value` and `silence_delay` are None for a class that is not few-shot.
    """

    label: str
    group: Group
    predicted: int
    expected: float
    total: int
    effect: float
    rate: Rates
    ratio: float
    chance: float
    e_value: float
    verdict: ClassStatus
    silence_e_value: float | None
    silence_delay: float | None
    doubling_delay: float
    confidence: Quantiles | None
    last_seen: float | None

    @cached_property
    def interval(self) -> Interval:
        """The 95 % interval of the share of predictions."""
        return share_interval(self.predicted, self.total, self.effect)

    @cached_property
    def expected_interval(self) -> Interval:
        """The 95 % interval of the expected share."""
        return _intervals(*self.rate.interval(COVERAGE))[0]


def tail_state(monitor: TailMonitor) -> TailState:
    """Refresh the monitor and return the state of every class and group."""
    monitor.refresh()
    drift, silence = monitor.drift, monitor.silence
    predicted = monitor.window.counts
    total = int(predicted.sum())
    expected = total * monitor.expected.classes.mean
    hidden = np.zeros(len(predicted), np.bool_)
    hidden[silence.indices] = silence.hidden
    ratio = np.full(len(predicted), np.nan)
    np.divide(predicted, expected, out=ratio, where=expected > 0)
    classes = ClassArrays(
        predicted=predicted,
        expected=expected,
        ratio=ratio,
        e_value=drift.e_values,
        found=drift.found,
        direction=drift.direction,
        silent=silence.found,
        hidden=hidden,
        last_seen=monitor.last_seen.copy(),
        missing=missing_predictions(
            monitor, drift, monitor.expected.classes, monitor.dependence.class_effects
        ),
    )
    return TailState(
        reference=monitor.reference.source,
        predictions=monitor.predictions,
        window_predictions=total,
        design_effect=monitor.dependence.design_effect,
        measured_effect=monitor.dependence.measured,
        classes=classes,
        groups=_group_states(monitor),
    )


def missing_predictions(
    monitor: TailMonitor, drift: Drift, rates: Rates, effects: Doubles
) -> Doubles:
    """Return the predictions [K] until a doubling from the beginning on would have been found.

    `drift` tests the K `rates`, and `effects` [K] are the design effects by which its evidence is
    weakened.
    """
    needed = drift.delay(doubled(rates), after=0) - drift.evidence.predictions
    missing: Doubles = np.where(needed > 0, monitor.dependence.delay(needed, effects), 0.0)
    return np.ceil(missing)


def doubled(rates: Rates) -> Doubles:
    """Return the rates [K] whose odds are twice those of `rates`."""
    odds = 2 * rates.mean / (1 - rates.mean)
    twice: Doubles = odds / (1 + odds)
    return twice


def _group_states(monitor: TailMonitor) -> tuple[GroupState, ...]:
    """Return the state of every group that has classes."""
    size, drift, rates = len(GROUPS), monitor.group_drift, monitor.expected.groups
    classes = np.bincount(monitor.group, minlength=size)
    histogram = np.stack([monitor.window.histogram[monitor.group == g].sum(0) for g in range(size)])
    predicted = histogram.sum(1)
    total = int(predicted.sum())
    effect = monitor.dependence.measured
    shares = monitor.prevalence.estimate(predicted / effect)
    missing = missing_predictions(monitor, drift, rates, np.full(size, effect))
    found, direction, e_values = drift.found, drift.direction, drift.e_values
    expected_intervals = _intervals(*monitor.group_interval)
    return tuple(
        GroupState(
            group=group,
            classes=int(classes[g]),
            predicted=int(predicted[g]),
            expected=total * float(rates.mean[g]),
            total=total,
            effect=effect,
            expected_share=float(rates.mean[g]),
            expected_interval=expected_intervals[g],
            prevalence=float(shares.share[g]),
            prevalence_interval=Interval(float(shares.low[g]), float(shares.high[g])),
            e_value=float(e_values[g]),
            verdict=_status(bool(found[g]), int(direction[g]), silent=False),
            confidence=Quantiles.of(histogram[g]),
            missing=float(missing[g]),
        )
        for g, group in enumerate(GROUPS)
        if classes[g]
    )


def class_state(monitor: TailMonitor, index: int) -> ClassState:
    """Refresh the monitor and return the state of the class with this index."""
    monitor.refresh()
    drift, silence, rates = monitor.drift, monitor.silence, monitor.expected.classes
    counts = monitor.window.counts
    predicted, total = int(counts[index]), int(counts.sum())
    expected = total * float(rates.mean[index])
    watched = np.flatnonzero(silence.indices == index)
    last_seen = float(monitor.last_seen[index])
    dependence, effect = monitor.dependence, monitor.dependence.measured
    effects = dependence.class_effects
    silence_delays = dependence.delay(silence.delay(), effects[silence.indices])
    doubling_delays = dependence.delay(drift.delay(doubled(rates)), effects)
    return ClassState(
        label=monitor.profile.labels[index],
        group=monitor.profile.groups[index],
        predicted=predicted,
        expected=expected,
        total=total,
        effect=effect,
        rate=rates.at(index),
        ratio=predicted / expected if total else math.nan,
        chance=silence.chance(index, predicted / effect, total / effect),
        e_value=float(drift.e_values[index]),
        verdict=_status(
            bool(drift.found[index]), int(drift.direction[index]), bool(silence.found[index])
        ),
        silence_e_value=float(silence.evidence.e_values[watched[0]]) if watched.size else None,
        silence_delay=float(silence_delays[watched[0]]) if watched.size else None,
        doubling_delay=float(doubling_delays[index]),
        confidence=Quantiles.of(monitor.window.histogram[index]),
        last_seen=None if math.isnan(last_seen) else last_seen,
    )


def _status(found: bool, direction: int, silent: bool) -> ClassStatus:
    if silent:
        return "silent"
    if not found:
        return "as expected"
    return "more" if direction > 0 else "fewer"


def _intervals(low: Doubles, high: Doubles) -> list[Interval]:
    return [Interval(*bounds) for bounds in zip(low.tolist(), high.tolist(), strict=True)]
