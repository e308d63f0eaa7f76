"""What GET /classes tells: what is known of each class, and what becomes of it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from math import isfinite, log10
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from taillift.models.bundle.manifest import Accuracy, ClassInfo, Manifest
from taillift.models.bundle.schema import GROUPS, Group
from taillift.service.http.schemas import ModelId, model_id, unknown_class
from taillift.service.monitoring.recorder import Monitoring
from taillift.service.problems import UnknownClassError
from taillift.service.tail.distributions import binomial_interval
from taillift.service.tail.monitor import COVERAGE
from taillift.service.tail.reference import Source
from taillift.service.tail.state import ClassStatus, Interval, TailState
from taillift.service.tail.window import BUCKETS, quantiles

Direction = Literal["more", "fewer"]


class Confidences(BaseModel):
    """Confidence below which 10, 50 and 90 of 100 images of the window are."""

    low: float
    median: float
    high: float


class WindowSummary(BaseModel):
    seconds: float
    predictions: int
    since: datetime | None = Field(description="when the oldest part that is counted began")
    reference: Source


class ShareEstimate(BaseModel):
    """Of the images, corrected for the model's confusions; `low` to `high`: 95 % interval."""

    share: float
    low: float
    high: float


class Traffic(BaseModel):
    """Within the window; `silent` and `drifting` are what was found since monitoring began."""

    predicted: int
    expected: float = Field(description="predictions expected under the reference")
    low: float = Field(description="`predicted` and its 95 % interval")
    high: float
    ratio: float | None = Field(description="predicted / expected")
    share: float | None = Field(description="of the window's predictions")
    confidence: Confidences | None
    evidence: float = Field(description="logarithm to base 10 of the drift test's e-value")
    direction: Direction | None = Field(description="where it drifts")


class ClassTraffic(Traffic):
    last_seen: datetime | None
    silent: bool
    hidden: bool = Field(description="its loss could not be seen: others are taken for it")
    drifting: bool


class ClassSummary(BaseModel):
    label: str
    group: Group
    count: int = Field(description="training images")
    accuracy: Accuracy | None = Field(description="on held-out images, in per cent")
    live: ClassTraffic


class GroupSummary(Traffic):
    classes: int
    expected_share: float
    prevalence: ShareEstimate
    silent: int = Field(description="classes that are")
    drifting: int = Field(description="classes that are")


class Classes(BaseModel):
    model: ModelId
    window: WindowSummary
    groups: dict[Group, GroupSummary]
    classes: list[ClassSummary]


class Details(BaseModel):
    """Of one class. Delays are in predictions of any class; null: it would not be found."""

    verdict: ClassStatus
    expected_share: ShareEstimate = Field(
        description="of predictions; what the held-out photos leave open"
    )
    chance: float = Field(
        description="of so few predictions, or fewer, under the reference; for one look"
    )
    doubling_delay: float | None = Field(
        description="predictions within which 95 of 100 doublings from now on are found"
    )
    silence_evidence: float | None = Field(
        description="logarithm to base 10 of the e-value that it is lost; null: not few-shot"
    )
    silence_delay: float | None = Field(
        description="predictions within which 95 of 100 losses from now on are found"
    )


class ClassDetails(ClassSummary):
    window: WindowSummary
    details: Details


class Snapshot(NamedTuple):
    """The statistics as they were at one moment: they change no more, so any thread may read them.

    `histogram` int64 [C, bins] counts the window's predictions by class and confidence.
    """

    manifest: Manifest
    window: WindowSummary
    state: TailState
    histogram: npt.NDArray[np.int64]


def take_snapshot(monitoring: Monitoring) -> Snapshot:
    """For the event loop alone, and short."""
    state = monitoring.state()
    histogram = monitoring.monitor.window.histogram.copy()
    return Snapshot(monitoring.manifest, _window(monitoring, state), state, histogram)


def classes(seen: Snapshot) -> Classes:
    """Of every class and group; with thousands of classes it takes a part of a second."""
    return Classes(
        model=model_id(seen.manifest),
        window=seen.window,
        groups=_groups(seen),
        classes=_summaries(seen, range(len(seen.manifest.classes))),
    )


def class_details(monitoring: Monitoring, label: str) -> ClassDetails:
    """Raises `UnknownClassError`."""
    labels = monitoring.manifest.labels
    if label not in labels:
        raise UnknownClassError(unknown_class(label, labels))
    place = labels.index(label)
    seen = take_snapshot(monitoring)
    (summary,) = _summaries(seen, [place])
    one = monitoring.class_state(place)
    return ClassDetails(
        **dict(summary),
        window=seen.window,
        details=Details(
            verdict=one.verdict,
            expected_share=_share(
                float(monitoring.monitor.expected.classes.mean[place]), one.expected_interval
            ),
            chance=one.chance,
            doubling_delay=_finite(one.doubling_delay),
            silence_evidence=None if one.silence_e_value is None else log10(one.silence_e_value),
            silence_delay=_finite(one.silence_delay),
        ),
    )


def _window(monitoring: Monitoring, state: TailState) -> WindowSummary:
    window, seconds = monitoring.monitor.window, monitoring.monitor.rules.window_seconds
    began = window.buckets[0].number * seconds / BUCKETS if window.buckets else None
    return WindowSummary(
        seconds=seconds,
        predictions=state.window_predictions,
        since=_time(began),
        reference=state.reference,
    )


def _groups(seen: Snapshot) -> dict[Group, GroupSummary]:
    state, found = seen.state, seen.state.classes
    group = np.array([GROUPS.index(info.group) for info in seen.manifest.classes])
    return {
        one.group: GroupSummary(
            predicted=one.predicted,
            expected=one.expected,
            low=one.interval.low * state.window_predictions,
            high=one.interval.high * state.window_predictions,
            ratio=_finite(one.ratio),
            share=_finite(one.share),
            confidence=None
            if one.confidence is None
            else Confidences.model_validate(one.confidence, from_attributes=True),
            evidence=log10(one.e_value),
            direction=one.verdict if one.verdict in {"more", "fewer"} else None,
            classes=one.classes,
            expected_share=one.expected_share,
            prevalence=_share(one.prevalence, one.prevalence_interval),
            silent=int(found.silent[group == GROUPS.index(one.group)].sum()),
            drifting=int(found.found[group == GROUPS.index(one.group)].sum()),
        )
        for one in state.groups
    }


def _summaries(seen: Snapshot, places: Sequence[int]) -> list[ClassSummary]:
    """Of the classes with the indices `places`, in that order."""
    chosen, total, arrays = np.asarray(places), seen.state.window_predictions, seen.state.classes
    low, high = binomial_interval(arrays.predicted[chosen], total, COVERAGE)
    columns = zip(
        places,
        arrays.predicted[chosen].tolist(),
        arrays.expected[chosen].tolist(),
        (low * total).tolist(),
        (high * total).tolist(),
        arrays.ratio[chosen].tolist(),
        np.log10(arrays.e_value[chosen]).tolist(),
        arrays.direction[chosen].tolist(),
        arrays.found[chosen].tolist(),
        arrays.silent[chosen].tolist(),
        arrays.hidden[chosen].tolist(),
        arrays.last_seen[chosen].tolist(),
        quantiles(seen.histogram[chosen]).tolist(),
        strict=True,
    )
    return [
        _summary(
            seen.manifest.classes[place],
            ClassTraffic(
                predicted=predicted,
                expected=expected,
                low=lower,
                high=upper,
                ratio=_finite(ratio),
                share=predicted / total if total else None,
                confidence=_confidences(confidence) if predicted else None,
                evidence=evidence,
                direction=("more" if direction > 0 else "fewer") if drifts else None,
                last_seen=_time(last_seen),
                silent=silent,
                hidden=hidden,
                drifting=drifts,
            ),
        )
        for (
            place,
            predicted,
            expected,
            lower,
            upper,
            ratio,
            evidence,
            direction,
            drifts,
            silent,
            hidden,
            last_seen,
            confidence,
        ) in columns
    ]


def _summary(info: ClassInfo, live: ClassTraffic) -> ClassSummary:
    return ClassSummary(
        label=info.label, group=info.group, count=info.count, accuracy=info.accuracy, live=live
    )


def _confidences(values: Sequence[float]) -> Confidences:
    low, median, high = values
    return Confidences(low=low, median=median, high=high)


def _share(share: float, interval: Interval) -> ShareEstimate:
    return ShareEstimate(share=share, low=interval.low, high=interval.high)


def _finite(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else value


def _time(seconds: float | None) -> datetime | None:
    known = _finite(seconds)
    return None if known is None else datetime.fromtimestamp(known, UTC)
