"""The report of GET /classes: what is known about each class, and its recent predictions."""

from collections.abc import Sequence
from datetime import UTC, datetime
from math import isfinite, log10
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from taillift.models.bundle.manifest import Accuracy, Manifest
from taillift.models.bundle.schema import GROUPS, Group, SixDigits
from taillift.models.names import index_of_name, indices_by_name
from taillift.service.feedback.live_accuracy import LiveReport, LiveShare, WeightedSums
from taillift.service.http.schemas import ModelId, model_id, unknown_class
from taillift.service.problems import UnknownClassError
from taillift.service.tail.distributions import Doubles
from taillift.service.tail.monitor import TailMonitor
from taillift.service.tail.reference import Source
from taillift.service.tail.state import ClassState, ClassStatus, TailState, tail_state
from taillift.service.tail.window import quantiles

Direction = Literal["more", "fewer"]


class Confidences(BaseModel):
    """Confidences that 10, 50 and 90 per cent of the window's images are below."""

    low: SixDigits
    median: SixDigits
    high: SixDigits


class WindowSummary(BaseModel):
    seconds: float
    predictions: int
    since: datetime | None = Field(description="when the counting of these predictions began")
    reference: Source
    design_effect: SixDigits = Field(
        description="predictions that are worth one independent prediction; at first 64"
    )


class ShareEstimate(BaseModel):
    """Share of the images, corrected for the model's confusions, with its 95 % interval."""

    share: SixDigits
    low: SixDigits
    high: SixDigits


class Traffic(BaseModel):
    """Predictions within the window; `silent` and `drifting` are since monitoring began."""

    predicted: int
    expected: SixDigits = Field(description="predictions expected under the reference")
    low: SixDigits = Field(description="lower end of the 95 % interval of `predicted`")
    high: SixDigits = Field(description="upper end of the 95 % interval of `predicted`")
    ratio: SixDigits | None = Field(description="predicted / expected")
    share: SixDigits | None = Field(description="share of the window's predictions")
    confidence: Confidences | None
    evidence: SixDigits = Field(description="logarithm to base 10 of the drift test's e-value")
    direction: Direction | None = Field(description="direction of the drift, if there is one")
    missing: SixDigits | None = Field(
        description="predictions of any class until a doubling since the beginning would have been "
        "found, 95 times of 100; 0: enough; null: the held-out photos leave too much open to say"
    )


class ClassTraffic(Traffic):
    last_seen: datetime | None
    silent: bool
    hidden: bool = Field(
        description="its loss could not be detected, because other classes are taken for it"
    )
    drifting: bool


class LabelEstimate(BaseModel):
    """Share of all such images, from the labels of those that were chosen for labelling."""

    share: SixDigits
    low: SixDigits = Field(description="lower end of the 95 % interval")
    high: SixDigits
    labels: SixDigits = Field(
        description="labels of images chosen at random that would say as much"
    )

    @classmethod
    def of(cls, share: LiveShare) -> "LabelEstimate | str":
        """Return the estimate, or instead of numbers that it is based on too few labels."""
        if share.too_few is not None:
            return share.too_few
        return cls(share=share.estimate, low=share.low, high=share.high, labels=share.effective)


class Labelled(BaseModel):
    """Labels that came back, of predictions of the last `feedback_days`; null: none is counted.

    Only `sampled` ones, of images that were chosen for labelling, are in the estimates.
    """

    labels: int = Field(description="labels that name the class, or a class of the group")
    sampled: int = Field(description="those of images that were chosen for labelling")
    recall: LabelEstimate | str = Field(
        description="share of the images with this label that were answered with it; `too few (7)` "
        "if the labels say no more than 7 of images chosen at random would"
    )
    precision: LabelEstimate | str = Field(
        description="share of such answers that were right, or `too few (7)`"
    )
    corrected: SixDigits | None = Field(
        description="share of the labels on such answers that name another class; it says nothing "
        "about the answers without a label"
    )


class LabelledGroup(Labelled):
    evidence: SixDigits = Field(
        description="logarithm to base 10 of the e-value that the confidences of such answers are "
        "not right; above 1.8 they are not"
    )


class LabelledImages(BaseModel):
    labels: int
    sampled: int
    none_of_the_classes: int
    accuracy: LabelEstimate | str = Field(
        description="share of the images that were answered with their class, or `too few (7)`"
    )


class ClassSummary(BaseModel):
    label: str
    group: Group
    count: int = Field(description="number of training images")
    accuracy: Accuracy | None = Field(description="accuracy on held-out images, in per cent")
    live: ClassTraffic
    labelled: Labelled | None


class GroupSummary(Traffic):
    classes: int
    expected_share: SixDigits
    prevalence: ShareEstimate
    silent: int = Field(description="number of silent classes")
    drifting: int = Field(description="number of drifting classes")
    labelled: LabelledGroup | None


class Classes(BaseModel):
    model: ModelId
    window: WindowSummary
    labelled: LabelledImages | None
    groups: dict[Group, GroupSummary]
    classes: list[ClassSummary]


class Details(BaseModel):
    """More about one class. A delay counts predictions of any class; null: never detected."""

    verdict: ClassStatus
    expected_share: ShareEstimate = Field(
        description="expected share of the predictions; the interval is the uncertainty that the "
        "held-out images leave"
    )
    chance: SixDigits = Field(
        description="probability of so few predictions, or fewer, under the reference, for a "
        "single look"
    )
    doubling_delay: SixDigits | None = Field(
        description="predictions within which 95 per cent of doublings from now on are detected"
    )
    silence_evidence: SixDigits | None = Field(
        description="logarithm to base 10 of the e-value that the class is lost; null: not few-shot"
    )
    silence_delay: SixDigits | None = Field(
        description="predictions within which 95 per cent of losses from now on are detected"
    )


class ClassDetails(ClassSummary):
    window: WindowSummary
    details: Details


class Snapshot(NamedTuple):
    """Statistics of one moment. They no longer change, so any thread may read them.

    `histogram` int64 [C, bins] counts the window's predictions by class and confidence. `live` is
    what the labels say, if any are counted.
    """

    manifest: Manifest
    window: WindowSummary
    state: TailState
    histogram: npt.NDArray[np.int64]
    live: LiveReport | None


def take_snapshot(
    manifest: Manifest, monitor: TailMonitor, live: LiveReport | None = None
) -> Snapshot:
    """Copy the statistics of the bundle with this manifest.

    The service calls it from the event loop only, which it blocks for a short time.
    """
    state = tail_state(monitor)
    summary = WindowSummary(
        seconds=monitor.rules.window_seconds,
        predictions=state.window_predictions,
        since=_time(monitor.counted_since),
        reference=state.reference,
        design_effect=state.design_effect,
    )
    return Snapshot(manifest, summary, state, monitor.window.histogram.copy(), live)


def classes(snapshot: Snapshot) -> Classes:
    """Return the report on every class and group; thousands of classes take a part of a second."""
    state, arrays = snapshot.state, snapshot.state.classes
    group_index = np.array([GROUPS.index(info.group) for info in snapshot.manifest.classes])
    groups = {}
    live = snapshot.live
    by_group = dict(zip(GROUPS, [] if live is None else labelled_groups(live), strict=False))
    # The bounds of groups and classes are computed together: one takes nearly as long as all.
    predicted = np.array([group.predicted for group in state.groups], np.int64)
    low, high = state.share_bounds(np.concatenate([predicted, arrays.predicted]))
    group_bounds, class_bounds = np.split(np.stack([low, high], 1), [len(predicted)])
    for group, (lower, upper) in zip(state.groups, group_bounds.tolist(), strict=True):
        members = group_index == GROUPS.index(group.group)
        interval = group.prevalence_interval
        groups[group.group] = GroupSummary(
            predicted=group.predicted,
            expected=group.expected,
            low=lower * state.window_predictions,
            high=upper * state.window_predictions,
            ratio=_finite(group.ratio),
            share=_finite(group.share),
            confidence=None
            if group.confidence is None
            else Confidences.model_validate(group.confidence, from_attributes=True),
            evidence=log10(group.e_value),
            direction=group.verdict if group.verdict in {"more", "fewer"} else None,
            missing=_finite(group.missing),
            classes=group.classes,
            expected_share=group.expected_share,
            prevalence=ShareEstimate(share=group.prevalence, low=interval.low, high=interval.high),
            silent=int(arrays.silent[members].sum()),
            drifting=int(arrays.found[members].sum()),
            labelled=by_group.get(group.group),
        )
    return Classes(
        model=model_id(snapshot.manifest),
        window=snapshot.window,
        labelled=None if live is None else labelled_images(live),
        groups=groups,
        classes=class_summaries(snapshot, range(len(snapshot.manifest.classes)), class_bounds),
    )


def labelled_images(live: LiveReport) -> LabelledImages:
    """Return what the labels say about all images."""
    truths = live.by_truth
    return LabelledImages(
        labels=int(truths.labels.sum()),
        sampled=int(truths.sampled.sum()),
        none_of_the_classes=int(truths.labels[-1]),
        accuracy=LabelEstimate.of(live.accuracy),
    )


def labelled_groups(live: LiveReport) -> list[LabelledGroup]:
    """Return what the labels say about each group."""
    truths, answers = live.group_truths, live.group_answers
    kinds = labelled(truths, live.group_recalls, answers, live.group_precisions, range(len(GROUPS)))
    return [
        LabelledGroup(**dict(one), evidence=evidence)
        for one, evidence in zip(kinds, live.evidence.tolist(), strict=True)
    ]


def labelled(
    truths: WeightedSums,
    recalls: Sequence[LiveShare],
    answers: WeightedSums,
    precisions: Sequence[LiveShare],
    kinds: Sequence[int],
) -> list[Labelled]:
    """Return what the labels say about the kinds with these indices, in the same order."""
    labels, sampled = (sums.astype(int).tolist() for sums in (truths.labels, truths.sampled))
    answered, corrected = answers.labels.tolist(), answers.corrected.tolist()
    return [
        Labelled(
            labels=labels[kind],
            sampled=sampled[kind],
            recall=LabelEstimate.of(recalls[kind]),
            precision=LabelEstimate.of(precisions[kind]),
            corrected=corrected[kind] / answered[kind] if answered[kind] else None,
        )
        for kind in kinds
    ]


def class_index(label: str, labels: Sequence[str]) -> int:
    """Return the index of the class of a label in any Unicode form.

    Raises `UnknownClassError` if there is no such class.
    """
    index = index_of_name(label, indices_by_name(labels))
    if index is None:
        raise UnknownClassError(unknown_class(label, labels))
    return index


def class_details(snapshot: Snapshot, state: ClassState, index: int) -> ClassDetails:
    """Return the report on the class with this index, from states of the same moment."""
    bounds = np.stack(snapshot.state.share_bounds(snapshot.state.classes.predicted[[index]]), 1)
    (summary,) = class_summaries(snapshot, [index], bounds)
    return ClassDetails(
        **dict(summary),
        window=snapshot.window,
        details=Details(
            verdict=state.verdict,
            expected_share=ShareEstimate(
                share=float(state.rate.mean[0]),
                low=state.expected_interval.low,
                high=state.expected_interval.high,
            ),
            chance=state.chance,
            doubling_delay=_finite(state.doubling_delay),
            silence_evidence=None
            if state.silence_e_value is None
            else log10(state.silence_e_value),
            silence_delay=_finite(state.silence_delay),
        ),
    )


def class_summaries(
    snapshot: Snapshot, indices: Sequence[int], bounds: Doubles
) -> list[ClassSummary]:
    """Return the summaries of the classes with these K indices, in the same order.

    `bounds` [K, 2] are those of their shares of the window's predictions.
    """
    state, chosen = snapshot.state, np.asarray(indices)
    arrays, total = state.classes, state.window_predictions
    live = snapshot.live
    by_labels: Sequence[Labelled | None] = (
        [None] * len(indices)
        if live is None
        else labelled(live.by_truth, live.recalls, live.by_answer, live.precisions, indices)
    )
    columns = zip(
        indices,
        arrays.predicted[chosen].tolist(),
        arrays.expected[chosen].tolist(),
        (bounds * total).tolist(),
        arrays.ratio[chosen].tolist(),
        np.log10(arrays.e_value[chosen]).tolist(),
        arrays.direction[chosen].tolist(),
        arrays.found[chosen].tolist(),
        arrays.silent[chosen].tolist(),
        arrays.hidden[chosen].tolist(),
        arrays.last_seen[chosen].tolist(),
        arrays.missing[chosen].tolist(),
        quantiles(snapshot.histogram[chosen]).tolist(),
        by_labels,
        strict=True,
    )
    summaries = []
    for (
        index,
        predicted,
        expected,
        (lower, upper),
        ratio,
        evidence,
        direction,
        drifting,
        silent,
        hidden,
        last_seen,
        missing,
        (tenth, median, ninetieth),
        by_label,
    ) in columns:
        traffic = ClassTraffic(
            predicted=predicted,
            expected=expected,
            low=lower,
            high=upper,
            ratio=_finite(ratio),
            share=predicted / total if total else None,
            confidence=Confidences(low=tenth, median=median, high=ninetieth) if predicted else None,
            evidence=evidence,
            direction=("more" if direction > 0 else "fewer") if drifting else None,
            last_seen=_time(last_seen),
            missing=_finite(missing),
            silent=silent,
            hidden=hidden,
            drifting=drifting,
        )
        info = snapshot.manifest.classes[index]
        summaries.append(
            ClassSummary(
                label=info.label,
                group=info.group,
                count=info.count,
                accuracy=info.accuracy,
                live=traffic,
                labelled=by_label,
            )
        )
    return summaries


def _finite(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else value


def _time(seconds: float | None) -> datetime | None:
    finite = _finite(seconds)
    return None if finite is None else datetime.fromtimestamp(finite, UTC)
