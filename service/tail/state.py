"""What the monitor shows: of every class at once, of one class, and of the groups."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from taillift.models.bundle.schema import GROUPS, Group
from taillift.service.tail.distributions import Doubles, Flags, Indices, binomial_interval
from taillift.service.tail.monitor import COVERAGE, TailMonitor
from taillift.service.tail.reference import Source
from taillift.service.tail.window import quantiles

ClassStatus = Literal["as expected", "fewer", "more", "silent"]


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Quantiles:
    """Confidence in the top class below which 10, 50 and 90 of 100 images lie."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class ClassState:
    """One class within the window, and the evidence since monitoring began.

    `interval` and `expected_interval` (95 %) are of the share of predictions; `chance` is that of
    so few predictions or fewer under the reference, for one look; `e_value` and `silence_e_value`
    may be looked at always. The delays are predictions (of any class) within which 95 of 100 such
    changes from now on are found; infinite where they cannot be. `silence_e_value` and
    `silence_delay` are None for a class that is not few-shot.
    """

    label: str
    group: Group
    predicted: int
    expected: float
    interval: Interval
    expected_interval: Interval
    ratio: float
    chance: float
    e_value: float
    verdict: ClassStatus
    silence_e_value: float | None
    silence_delay: float | None
    doubling_delay: float
    confidence: Quantiles | None
    last_seen: float | None


@dataclass(frozen=True)
class GroupState:
    """One group within the window; `prevalence` is corrected for the model's confusions."""

    group: Group
    classes: int
    predicted: int
    expected: float
    share: float
    interval: Interval
    expected_share: float
    expected_interval: Interval
    ratio: float
    prevalence: float
    prevalence_interval: Interval
    e_value: float
    verdict: ClassStatus
    confidence: Quantiles | None


@dataclass(frozen=True)
class ClassArrays:
    """[C] each, within the window: `ratio` is NaN before any prediction, `last_seen` never seen.

    `found` are the discoveries of drift, `direction` is 1 for more and -1 for fewer; `hidden` are
    few-shot classes whose loss other classes' mistakes would hide.
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


@dataclass(frozen=True)
class TailState:
    """At one look. `window_predictions` are in the window, `predictions` since the beginning."""

    reference: Source
    predictions: int
    window_predictions: int
    classes: ClassArrays
    groups: tuple[GroupState, ...]

    @property
    def drifting(self) -> int:
        return int(self.classes.found.sum())

    @property
    def silent(self) -> int:
        return int(self.classes.silent.sum())


def tail_state(monitor: TailMonitor) -> TailState:
    """Look, and tell of every class and group."""
    monitor.look()
    return TailState(
        reference=monitor.reference.source,
        predictions=monitor.predictions,
        window_predictions=int(monitor.window.counts.sum()),
        classes=_classes(monitor),
        groups=_groups(monitor),
    )


def class_state(monitor: TailMonitor, place: int) -> ClassState:
    """Look, and tell all of the class with the index `place`."""
    monitor.look()
    drift, silence, rates = monitor.drift, monitor.silence, monitor.expected.classes
    counts = monitor.window.counts
    predicted, total = int(counts[place]), int(counts.sum())
    expected = total * float(rates.mean[place])
    watched = np.flatnonzero(silence.places == place)
    return ClassState(
        label=monitor.facts.labels[place],
        group=monitor.facts.groups[place],
        predicted=predicted,
        expected=expected,
        interval=_intervals(counts[[place]], total)[0],
        expected_interval=_pairs(*rates.of(place).band(COVERAGE))[0],
        ratio=predicted / expected if total else math.nan,
        chance=silence.chance(place, predicted, total),
        e_value=float(drift.values[place]),
        verdict=_verdict(
            bool(drift.found[place]), int(drift.direction[place]), bool(silence.found[place])
        ),
        silence_e_value=float(silence.evidence.values[watched[0]]) if watched.size else None,
        silence_delay=float(silence.delay()[watched[0]]) if watched.size else None,
        doubling_delay=float(drift.delay(twice(rates.mean))[place]),
        confidence=_quantiles(monitor.window.histogram[place]),
        last_seen=_time(monitor.last_seen[place]),
    )


def twice(rates: Doubles) -> Doubles:
    """Rates of twice the odds: about twice as many predictions of a rare class."""
    odds = 2 * rates / (1 - rates)
    doubled: Doubles = odds / (1 + odds)
    return doubled


def _classes(monitor: TailMonitor) -> ClassArrays:
    drift, silence = monitor.drift, monitor.silence
    predicted = monitor.window.counts
    expected = predicted.sum() * monitor.expected.classes.mean
    hidden = np.zeros(len(predicted), np.bool_)
    hidden[silence.places] = silence.blind
    ratio = np.full(len(predicted), np.nan)
    np.divide(predicted, expected, out=ratio, where=expected > 0)
    return ClassArrays(
        predicted=predicted,
        expected=expected,
        ratio=ratio,
        e_value=drift.values,
        found=drift.found,
        direction=drift.direction,
        silent=silence.found,
        hidden=hidden,
        last_seen=monitor.last_seen.copy(),
    )


def _groups(monitor: TailMonitor) -> tuple[GroupState, ...]:
    size, drift, rates = len(GROUPS), monitor.group_drift, monitor.expected.groups
    classes = np.bincount(monitor.group, minlength=size)
    histogram = np.stack([monitor.window.histogram[monitor.group == g].sum(0) for g in range(size)])
    predicted = histogram.sum(1)
    total = int(predicted.sum())
    shares = monitor.prevalence.estimate(predicted)
    found, direction, values = drift.found, drift.direction, drift.values
    intervals = _intervals(predicted, total)
    expected_intervals = _pairs(*monitor.group_band)
    return tuple(
        GroupState(
            group=group,
            classes=int(classes[g]),
            predicted=int(predicted[g]),
            expected=total * float(rates.mean[g]),
            share=int(predicted[g]) / total if total else math.nan,
            interval=intervals[g],
            expected_share=float(rates.mean[g]),
            expected_interval=expected_intervals[g],
            ratio=int(predicted[g]) / (total * float(rates.mean[g])) if total else math.nan,
            prevalence=float(shares.share[g]),
            prevalence_interval=Interval(float(shares.low[g]), float(shares.high[g])),
            e_value=float(values[g]),
            verdict=_verdict(bool(found[g]), int(direction[g]), silent=False),
            confidence=_quantiles(histogram[g]),
        )
        for g, group in enumerate(GROUPS)
        if classes[g]
    )


def _verdict(found: bool, direction: int, silent: bool) -> ClassStatus:
    if silent:
        return "silent"
    if not found:
        return "as expected"
    return "more" if direction > 0 else "fewer"


def _intervals(counts: Indices, total: int) -> list[Interval]:
    return _pairs(*binomial_interval(counts, total, COVERAGE))


def _pairs(low: Doubles, high: Doubles) -> list[Interval]:
    return [Interval(*one) for one in zip(low.tolist(), high.tolist(), strict=True)]


def _quantiles(histogram: Indices) -> Quantiles | None:
    if not histogram.any():
        return None
    low, median, high = quantiles(histogram[None])[0].tolist()
    return Quantiles(low, median, high)


def _time(seconds: float) -> float | None:
    return None if math.isnan(seconds) else float(seconds)
