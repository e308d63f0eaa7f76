"""The metrics as Prometheus scrapes them; the statistics of the tail are new at every scrape."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from math import isnan, log10
from time import monotonic, perf_counter
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from taillift.models.bundle.schema import GROUPS
from taillift.service.feedback.live_accuracy import LiveReport, LiveShare
from taillift.service.tail.distributions import Doubles, Flags, Indices
from taillift.service.tail.monitor import TailMonitor
from taillift.service.tail.prevalence import LiveShares
from taillift.service.tail.state import ClassArrays, GroupState, TailState

# With more classes, only few-shot classes that drift or are silent have series of their own, ...
MAX_CLASSES: Final = 2_000
# ... and at most this many of them.
MAX_MOVED: Final = 200
# Writing the metrics takes the event loop 24 ms with a thousand classes. Who asks sooner gets the
# same.
FRESH_SECONDS: Final = 1.0
BY_CLASS: Final = ("class", "group")
BY_GROUP: Final = ("group",)
DIRECTIONS: Final = {1: "more", -1: "fewer"}

SeriesRow = tuple[Sequence[str], float]


class ClassSeries(Enum):
    """The classes that have series of their own: all, few-shot ones that moved, or none."""

    ALL = "all"
    MOVED = "moved"
    NONE = "none"


def class_series(setting: Literal["auto", "on", "off"], classes: int) -> ClassSeries:
    """Return which classes have series, by the setting and the number of classes."""
    if setting == "off":
        return ClassSeries.NONE
    return ClassSeries.ALL if setting == "on" or classes <= MAX_CLASSES else ClassSeries.MOVED


class Watched(Protocol):
    """A monitor, and the images by top class [C]: all, and those that the tail does not count."""

    @property
    def monitor(self) -> TailMonitor: ...

    @property
    def counts(self) -> Indices: ...

    @property
    def repetitions(self) -> Indices: ...

    def state(self) -> TailState:
        """Return the current state of every class and group."""


class TailSeries(Collector):
    """A collector of the tail's statistics.

    A value that is NaN has no sample, such as a ratio before the first prediction.
    """

    def __init__(self, monitoring: Watched, which: ClassSeries) -> None:
        self.show(monitoring, which)

    def show(self, monitoring: Watched, which: ClassSeries) -> None:
        """Collect the statistics of `monitoring` from now on."""
        self._monitoring = monitoring
        self._which = which
        monitor = monitoring.monitor
        self._labels = list(zip(monitor.profile.labels, monitor.profile.groups, strict=True))
        self._few = monitor.group == GROUPS.index("few")
        self._rates = monitor.expected.classes.mean

    def collect(self) -> Iterator[Metric]:
        start = perf_counter()
        state = self._monitoring.state()
        yield from self._tail_metrics(state)
        yield from group_metrics(state.groups)
        if (live := self._monitoring.monitor.live) is not None:
            yield from live_prior_metrics(live.current)
        if self._which is not ClassSeries.NONE:
            yield from self._class_metrics(state.classes)
        yield _gauge(
            "monitor_seconds",
            "Seconds that refreshing the tail's statistics took at this scrape",
            (),
            [((), perf_counter() - start)],
        )

    def _tail_metrics(self, state: TailState) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "taillift_reference",
            "The source of the expected rates",
            value={"reference": str(state.reference)},
        )
        yield _gauge(
            "window_predictions",
            "Predictions within the window",
            (),
            [((), state.window_predictions)],
        )
        yield _gauge(
            "tail_design_effect",
            "Predictions that are worth one independent prediction; the evidence is divided by it",
            (),
            [((), state.design_effect)],
        )
        few = ("few",)
        yield _gauge(
            "silent_classes",
            "Few-shot classes whose own images seem to have stopped coming",
            BY_GROUP,
            [(few, state.silent)],
        )
        yield _gauge(
            "hidden_classes",
            "Few-shot classes whose loss would be hidden by the mistakes on other classes",
            BY_GROUP,
            [(few, int(state.classes.hidden.sum()))],
        )
        drifting = self._monitoring.monitor.group[state.classes.found]
        totals = np.bincount(drifting, minlength=len(GROUPS)).tolist()
        yield _gauge(
            "drifting_classes",
            "Classes that are predicted more or less often than expected",
            BY_GROUP,
            [((group,), total) for group, total in zip(GROUPS, totals, strict=True)],
        )

    def _class_metrics(self, classes: ClassArrays) -> Iterator[Metric]:
        moved = classes.found | classes.silent
        if self._which is ClassSeries.MOVED:
            candidates = np.flatnonzero(moved & self._few)
            strongest = np.argsort(-classes.e_value[candidates], kind="stable")[:MAX_MOVED]
            moved = np.zeros_like(moved)
            moved[candidates[strongest]] = True
            indices = np.flatnonzero(moved)
        else:
            indices = np.arange(len(moved))
        total = CounterMetricFamily(
            "taillift_class_predictions", "Images by top class", labels=BY_CLASS
        )
        for labels, value in self._rows(indices, self._monitoring.counts):
            total.add_metric(labels, value)
        yield total
        repeated = CounterMetricFamily(
            "taillift_class_repetitions",
            "Images by top class that the tail does not count: copies, or others of their group",
            labels=BY_CLASS,
        )
        repetitions = self._monitoring.repetitions
        for labels, value in self._rows(indices[repetitions[indices] > 0], repetitions):
            repeated.add_metric(labels, value)
        yield repeated
        yield _gauge(
            "class_expected_rate",
            "Share of predictions expected in the class",
            BY_CLASS,
            self._rows(indices, self._rates),
        )
        yield _gauge(
            "class_observed_ratio",
            "Predictions of the class divided by those expected, within the window",
            BY_CLASS,
            self._rows(indices, classes.ratio),
        )
        yield _gauge(
            "class_silent",
            "1 for a few-shot class whose own images seem to have stopped coming",
            BY_CLASS,
            self._rows(np.flatnonzero(classes.silent & moved), classes.silent),
        )
        yield _gauge(
            "class_drift",
            "Logarithm to base 10 of the e-value of a class that is found to drift",
            (*BY_CLASS, "direction"),
            [
                (
                    (*self._labels[index], DIRECTIONS[int(classes.direction[index])]),
                    log10(classes.e_value[index]),
                )
                for index in np.flatnonzero(classes.found & moved).tolist()
            ],
        )

    def _rows(self, indices: Indices, values: Indices | Doubles | Flags) -> Iterator[SeriesRow]:
        for index, value in zip(indices.tolist(), values[indices].tolist(), strict=True):
            yield self._labels[index], value


class LabelSeries(Collector):
    """A collector of what the labels say about the version that is served.

    A share has no sample as long as there are too few labels.
    """

    def __init__(self, latest: Callable[[], LiveReport | None]) -> None:
        self._latest = latest

    def collect(self) -> Iterator[Metric]:
        report = self._latest()
        recalls = [] if report is None else report.group_recalls
        yield _gauge(
            "live_recall",
            "Share of the group's images that were answered with their class; 95 % interval",
            (*BY_GROUP, "bound"),
            [
                ((group, *bound), value)
                for group, share in zip(GROUPS, recalls, strict=False)
                for bound, value in bounds(share)
            ],
        )
        yield _gauge(
            "live_accuracy",
            "Share of the images that were answered with their class; 95 % interval",
            ("bound",),
            [] if report is None else bounds(report.accuracy),
        )
        yield _gauge(
            "calibration_evidence",
            "Logarithm to base 10 of the e-value that the confidences of the group's answers are "
            "not right",
            BY_GROUP,
            []
            if report is None
            else [
                ((group,), value)
                for group, value in zip(GROUPS, report.evidence.tolist(), strict=True)
            ],
        )


def bounds(share: LiveShare) -> Sequence[SeriesRow]:
    """Return the samples of a share by their bounds; none if there are too few labels."""
    if share.too_few is not None:
        return []
    return [(("estimate",), share.estimate), (("low",), share.low), (("high",), share.high)]


def live_prior_metrics(live: LiveShares) -> Iterator[Metric]:
    """Yield the series of the live prior."""
    yield _gauge(
        "live_prior_share",
        "Share that prior=live gives to the group",
        BY_GROUP,
        [((group,), share) for group, share in live.shares.items()],
    )
    yield _gauge(
        "live_prior_frozen",
        "1 while the shares of prior=live stand still, because their predictions are in doubt",
        (),
        [((), float(bool(live.frozen)))],
    )


def group_metrics(groups: Sequence[GroupState]) -> Iterator[Metric]:
    """Yield the series that every group has."""
    yield _gauge(
        "expected_rate",
        "Share of predictions expected in the group",
        BY_GROUP,
        [((state.group,), state.expected_share) for state in groups],
    )
    yield _gauge(
        "observed_ratio",
        "Predictions of the group divided by those expected, within the window",
        BY_GROUP,
        [((state.group,), state.ratio) for state in groups],
    )
    yield _gauge(
        "prevalence",
        "Share of images in the group, corrected for the model's confusions; 95 % interval",
        (*BY_GROUP, "bound"),
        [
            ((state.group, bound), value)
            for state in groups
            for bound, value in (
                ("estimate", state.prevalence),
                ("low", state.prevalence_interval.low),
                ("high", state.prevalence_interval.high),
            )
        ],
    )
    yield _gauge(
        "confidence_quantile",
        "Confidence that this share of the window's images stays below",
        (*BY_GROUP, "quantile"),
        [
            ((state.group, quantile), value)
            for state in groups
            if state.confidence is not None
            for quantile, value in (
                ("0.1", state.confidence.low),
                ("0.5", state.confidence.median),
                ("0.9", state.confidence.high),
            )
        ],
    )
    yield _gauge(
        "group_drift",
        "Logarithm to base 10 of the e-value of a group that is found to drift",
        (*BY_GROUP, "direction"),
        [
            ((state.group, state.verdict), log10(state.e_value))
            for state in groups
            if state.verdict != "as expected"
        ],
    )


def _gauge(
    name: str, text: str, labels: Sequence[str], rows: Iterable[SeriesRow]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"taillift_{name}", text, labels=labels)
    for label_values, value in rows:
        if not isnan(value):
            family.add_metric(label_values, value)
    return family


class Page(NamedTuple):
    """One rendering of the metrics, and when it was made on the clock of `monotonic`."""

    content: bytes
    made: float


class Exposition:
    """The metrics of a registry in each format that somebody has asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._pages: dict[str, Page] = {}

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that `accept` prefers, and their Content-Type."""
        try:
            encoder, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # A version that is not a number.
            encoder, content_type = choose_encoder("")
        page = self._pages.get(content_type)
        if page is None or monotonic() - page.made >= FRESH_SECONDS:
            page = Page(encoder(self._registry), monotonic())
            self._pages[content_type] = page
        return page.content, content_type
