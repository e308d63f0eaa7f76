"""The tail's statistics as Prometheus scrapes them, brought up to date at every scrape."""

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from math import isnan, log10
from time import perf_counter
from typing import Final, Literal

import numpy as np
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from taillift.models.bundle.schema import GROUPS
from taillift.service.monitoring.recorder import Monitoring
from taillift.service.tail.distributions import Doubles, Flags, Indices
from taillift.service.tail.state import ClassArrays, GroupState, TailState

MAX_CLASSES: Final = 2_000
# Few-shot classes with series where not every class has them.
MAX_MOVED: Final = 200
BY_CLASS: Final = ("class", "group")
DIRECTIONS: Final = {1: "more", -1: "fewer"}

Row = tuple[Sequence[str], float]


class ClassSeries(Enum):
    """Which classes have series of their own: every one, few-shot ones that moved, or none."""

    ALL = "all"
    MOVED = "moved"
    NONE = "none"


def class_series(setting: Literal["auto", "on", "off"], classes: int) -> ClassSeries:
    if setting == "off":
        return ClassSeries.NONE
    return ClassSeries.ALL if setting == "on" or classes <= MAX_CLASSES else ClassSeries.MOVED


class TailSeries(Collector):
    """What can be NaN has no sample: a ratio or a quantile before the first prediction."""

    def __init__(self, monitoring: Monitoring, which: ClassSeries) -> None:
        self._monitoring = monitoring
        self._which = which
        monitor = monitoring.monitor
        self._labels = list(zip(monitor.facts.labels, monitor.facts.groups, strict=True))
        self._few = monitor.group == GROUPS.index("few")
        self._rates = monitor.expected.classes.mean

    def collect(self) -> Iterator[Metric]:
        start = perf_counter()
        state = self._monitoring.state()
        yield from self._whole(state)
        yield from _of_groups(state.groups)
        yield from self._of_classes(state.classes)
        yield _gauge(
            "monitor_seconds",
            "Seconds that bringing the tail's statistics up to date took at this scrape",
            (),
            [((), perf_counter() - start)],
        )

    def _whole(self, state: TailState) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "taillift_reference",
            "What the expected rates are of",
            value={"reference": str(state.reference)},
        )
        yield _gauge(
            "window_predictions",
            "Predictions within the window",
            (),
            [((), state.window_predictions)],
        )
        few = ("few",)
        yield _gauge(
            "silent_classes",
            "Few-shot classes whose own images seem to have stopped coming",
            ("group",),
            [(few, state.silent)],
        )
        yield _gauge(
            "hidden_classes",
            "Few-shot classes whose loss the mistakes of others would hide",
            ("group",),
            [(few, int(state.classes.hidden.sum()))],
        )
        sums = np.bincount(
            self._monitoring.monitor.group[state.classes.found], minlength=len(GROUPS)
        )
        yield _gauge(
            "drifting_classes",
            "Classes that are predicted more or less often than expected",
            ("group",),
            [((group,), int(total)) for group, total in zip(GROUPS, sums, strict=True)],
        )

    def _of_classes(self, classes: ClassArrays) -> Iterator[Metric]:
        if self._which is ClassSeries.NONE:
            return
        moved = classes.found | classes.silent
        if self._which is ClassSeries.MOVED:
            moved = _surest(moved & self._few, classes.e_value, MAX_MOVED)
        shown = moved if self._which is ClassSeries.MOVED else np.ones_like(moved)
        places = np.flatnonzero(shown)
        counts = self._monitoring.counts
        total = CounterMetricFamily(
            "taillift_class_predictions", "Images by top class", labels=BY_CLASS
        )
        for labels, value in self._rows(places, counts):
            total.add_metric(labels, value)
        yield total
        yield _gauge(
            "class_expected_rate",
            "Share of predictions expected in the class",
            BY_CLASS,
            self._rows(places, self._rates),
        )
        yield _gauge(
            "class_observed_ratio",
            "Predictions of the class over those expected, within the window",
            BY_CLASS,
            self._rows(places, classes.ratio),
        )
        yield _gauge(
            "class_silent",
            "1 for a few-shot class whose own images seem to have stopped coming",
            BY_CLASS,
            self._rows(np.flatnonzero(classes.silent & moved), classes.silent),
        )
        yield _gauge(
            "class_drift",
            "Logarithm to base 10 of the e-value of a class found to drift",
            (*BY_CLASS, "direction"),
            self._drifts(np.flatnonzero(classes.found & moved), classes),
        )

    def _rows(self, places: Indices, values: Indices | Doubles | Flags) -> Iterator[Row]:
        for place, value in zip(places.tolist(), values[places].tolist(), strict=True):
            yield self._labels[place], value

    def _drifts(self, places: Indices, classes: ClassArrays) -> Iterator[Row]:
        for place in places.tolist():
            direction = DIRECTIONS[int(classes.direction[place])]
            yield (*self._labels[place], direction), log10(classes.e_value[place])


def _of_groups(groups: Sequence[GroupState]) -> Iterator[Metric]:
    one = ("group",)
    yield _gauge(
        "expected_rate",
        "Share of predictions expected in the group",
        one,
        [((state.group,), state.expected_share) for state in groups],
    )
    yield _gauge(
        "observed_ratio",
        "Predictions of the group over those expected, within the window",
        one,
        [((state.group,), state.ratio) for state in groups],
    )
    yield _gauge(
        "prevalence",
        "Share of images in the group, corrected for the model's confusions; 95 % interval",
        (*one, "bound"),
        [row for state in groups for row in _bounds(state)],
    )
    yield _gauge(
        "confidence_quantile",
        "Confidence below which this share of the window's images is",
        (*one, "quantile"),
        [row for state in groups for row in _quantiles(state)],
    )
    yield _gauge(
        "group_drift",
        "Logarithm to base 10 of the e-value of a group found to drift",
        (*one, "direction"),
        [
            ((state.group, state.verdict), log10(state.e_value))
            for state in groups
            if state.verdict != "as expected"
        ],
    )


def _bounds(state: GroupState) -> Iterator[Row]:
    yield (state.group, "estimate"), state.prevalence
    yield (state.group, "low"), state.prevalence_interval.low
    yield (state.group, "high"), state.prevalence_interval.high


def _quantiles(state: GroupState) -> Iterator[Row]:
    if state.confidence is not None:
        yield (state.group, "0.1"), state.confidence.low
        yield (state.group, "0.5"), state.confidence.median
        yield (state.group, "0.9"), state.confidence.high


def _surest(flags: Flags, values: Doubles, most: int) -> Flags:
    """Of those flagged, the `most` with the greatest values."""
    places = np.flatnonzero(flags)
    kept = np.zeros_like(flags)
    kept[places[np.argsort(-values[places], kind="stable")[:most]]] = True
    return kept


def _gauge(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"taillift_{name}", text, labels=labels)
    for values, value in rows:
        if not isnan(value):
            family.add_metric(values, value)
    return family
