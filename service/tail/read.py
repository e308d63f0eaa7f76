"""From a monitor's statistics to what is shown of them."""

import math

import numpy as np

from models.bundle.record import GROUPS
from service.tail.exact import Doubles, Indices, binomial_interval
from service.tail.monitor import COVERAGE, TailMonitor
from service.tail.state import (
    ClassArrays,
    ClassState,
    GroupState,
    Interval,
    Quantiles,
    TailState,
    Verdict,
)
from service.tail.window import quantiles


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


def _verdict(found: bool, direction: int, silent: bool) -> Verdict:
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
