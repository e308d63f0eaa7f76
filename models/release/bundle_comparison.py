"""Comparing two bundles, or two graphs of one, on the same labelled photos, group by group."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Final, Literal, get_args

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.progress import track

from taillift.models.bundle import conveyor
from taillift.models.bundle.arrays import (
    Counts,
    Doubles,
    Flags,
    Floats,
    Indices,
    Labels,
    Pixels,
    group_indices,
)
from taillift.models.bundle.calibration_error import (
    MIN_PHOTOS,
    ScoredPredictions,
    bins,
    calibration_error,
    class_weights,
    effective_count,
)
from taillift.models.bundle.classifier import Classifier
from taillift.models.bundle.device import Device
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import read_manifest
from taillift.models.bundle.images import ImageError, views
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.predictor import Predictor
from taillift.models.bundle.schema import (
    FILES,
    GROUPS,
    MAX_PIXELS,
    Amount,
    Count,
    Group,
    Percent,
    PercentChange,
    Precision,
    SchemaModel,
    Share,
)
from taillift.models.bundle.session import Session
from taillift.models.errors import UserError
from taillift.models.names import canonical
from taillift.models.release.labelled_photos import LabelledPhotos, find_labelled
from taillift.models.release.paired import PairedCounts, PairedInterval, holm, mcnemar

ONE_THREAD: Final = Device(threads=1)
DECODE_THREADS: Final = os.cpu_count() or 1
TIMED_VIEWS: Final = 8
ROUNDS: Final = 5
# The coverage whose prediction sets are compared.
COVERAGE: Final = 0.9
NAMED_LOSSES: Final = 3

GroupName = Literal["all", "many", "medium", "few"]
Verdict = Literal["identical", "harm", "no sign of harm", "cannot say"]


class ComparedModel(SchemaModel):
    """One of the two: which graph of which bundle, and what it costs."""

    name: str
    version: str = Field(description="empty while the bundle is being made")
    precision: Precision
    ensemble: Ensemble = Field(description="which views count")
    megabytes: Amount
    milliseconds: Amount = Field(description="processor time of a view, on one thread")

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, self.version, self.precision)))


class SetScores(SchemaModel):
    """Prediction sets that shall hold the right label in 90 % of photos; means over classes."""

    coverage: Percent
    size: Amount = Field(description="labels in a set")


class SideScores(SchemaModel):
    """One model's figures for a group; means over its classes unless said otherwise.

    The confidence is that of the answers with a class of this group. Its error is the debiased
    calibration error in points, absent if there are too few photos.
    """

    accuracy: Percent
    confidence_error: Amount | None
    sets: SetScores | None
    review: Percent | None = Field(description="per cent of answers that go to a person")
    views: Amount


class ComparedGroup(SchemaModel):
    """The figures of both models on the photos of one group's classes, or of all.

    The difference is in points of mean accuracy over classes, new less old. Its ends `low` and
    `high` are absent if the photos are too few.
    """

    photos: Count
    classes: Count = Field(description="classes of the group that have photos")
    of_classes: Count = Field(description="classes of the group")
    old: SideScores
    new: SideScores
    difference: PercentChange
    low: PercentChange | None
    high: PercentChange | None
    gained: Count = Field(description="photos that only the new model gets right")
    lost: Count = Field(description="photos that only the old model gets right")
    p_value: Share = Field(description="McNemar's exact test of gained against lost")
    kept: Percent = Field(description="per cent of photos with the same answer")
    new_error_at_old_temperatures: Amount | None
    new_sets_at_old_thresholds: SetScores | None

    @property
    def is_harmed(self) -> bool:
        """Whether the new model is worse here beyond noise."""
        return self.high is not None and self.high < 0


class ChangedClass(SchemaModel):
    label: str
    group: Group
    photos: Count
    gained: Count
    lost: Count
    p_value: Share
    significant: bool = Field(description="at 5 % after Holm's correction for all classes")


class BundleComparison(SchemaModel):
    """Everything known of a new model against an old one on the same photos."""

    old: ComparedModel
    new: ComparedModel
    data: str
    copies: Count = Field(description="photos left out because they are the same as others")
    unusable: Count = Field(description="photos left out because a model could not use them")
    groups: dict[GroupName, ComparedGroup] = Field(description="groups without photos are absent")
    changed_classes: Count = Field(description="classes whose change is significant")
    losses: tuple[ChangedClass, ...] = Field(description="the largest net losses")
    verdict: Verdict = Field(description="on the few-shot classes; on all if there are none")
    sentence: str


@dataclass(frozen=True)
class MeasuredModel:
    """One graph of a bundle and what it gives: mean logits [N, C] over `views` [N] of photos."""

    predictor: Predictor
    ensemble: Ensemble
    logits: Floats
    views: Counts
    megabytes: float
    milliseconds: float = 0.0

    @property
    def manifest(self) -> Manifest:
        return self.predictor.manifest

    @cached_property
    def probabilities(self) -> Doubles:
        """The calibrated probabilities [N, C] under the uniform prior."""
        return self.predictor.probabilities(self.logits, self.views, self.ensemble)

    @cached_property
    def sets(self) -> Flags | None:
        """Which labels each photo's prediction set has, [N, C]."""
        return self.predictor.sets(self.probabilities, self.ensemble, COVERAGE)

    @cached_property
    def reviewed(self) -> Flags | None:
        """Which answers go to a person, [N]; None if the bundle cannot say."""
        if (review := self.predictor.variant.review) is None:
            return None
        classes = self.manifest.classes
        answers = zip(self.probabilities.max(1), self.probabilities.argmax(1), strict=True)
        return np.array(
            [
                review.decide(float(best), classes[index].group) == "review"
                for best, index in answers
            ]
        )

    @property
    def summary(self) -> ComparedModel:
        return ComparedModel(
            name=self.manifest.name,
            version=self.manifest.version,
            precision=self.predictor.precision,
            ensemble=self.ensemble,
            megabytes=self.megabytes,
            milliseconds=self.milliseconds,
        )


def compare_bundles(
    old: Path,
    new: Path,
    source: Path,
    precision: Precision = Precision.FP32,
    ensemble: Ensemble | None = None,
    max_pixels: int = MAX_PIXELS,
) -> BundleComparison:
    """Compare the graphs of two bundles on labelled photos.

    Without an `ensemble` each has the one of a request that names none. Raises `UserError` if the
    bundles are damaged or have different classes, and for the reasons of `find_labelled`.
    """
    manifest = read_manifest(old)
    # Before anything is computed.
    class_order(manifest, read_manifest(new))
    photos = find_labelled(source, manifest.labels)
    graphs = [(old, precision), (new, precision)]
    return compare_graphs(graphs, photos, ensemble, max_pixels)[0]


def compare_variants(
    bundle: Path, source: Path, ensemble: Ensemble | None = None, max_pixels: int = MAX_PIXELS
) -> dict[Precision, BundleComparison]:
    """Compare each variant of a bundle with its fp32 graph; raises as `compare_bundles` does."""
    manifest = read_manifest(bundle)
    precisions = [precision for precision in manifest.variants if precision is not Precision.FP32]
    if not precisions:
        raise UserError(
            f"{bundle} has only the fp32 graph: export it with --variant int8 or --variant fp16"
        )
    photos = find_labelled(source, manifest.labels)
    graphs = [(bundle, precision) for precision in (Precision.FP32, *precisions)]
    comparisons = compare_graphs(graphs, photos, ensemble, max_pixels)
    return dict(zip(precisions, comparisons, strict=True))


def compare_graphs(
    graphs: Sequence[tuple[Path, Precision]],
    photos: LabelledPhotos,
    ensemble: Ensemble | None,
    max_pixels: int,
) -> list[BundleComparison]:
    """Compare the first graph with each of the others.

    Raises `UserError` if no photo can be used by all of them.
    """
    measured: list[MeasuredModel] = []
    usable = np.ones(len(photos.paths), np.bool_)
    timed: list[tuple[Path, Pixels]] = []
    for bundle, precision in graphs:
        classifier = Classifier.open(bundle, precision=precision, max_pixels=max_pixels)
        chosen = ensemble or classifier.predictor.usual_ensemble
        model, good = measure(classifier, chosen, bundle / FILES[precision], photos.paths)
        measured.append(model)
        usable &= good
        if not usable.any():
            raise UserError(f"{photos.name}: none of the {len(usable)} photos can be used")
        first = [photos.paths[row] for row in np.flatnonzero(usable)[:TIMED_VIEWS]]
        size = classifier.manifest.preprocessing.size
        cut = [views(classifier.canvas(path), size, 1)[0] for path in first]
        timed.append((bundle / FILES[precision], np.stack(cut)))
    ready = [
        replace(
            model,
            logits=model.logits[usable],
            views=model.views[usable],
            milliseconds=milliseconds,
        )
        for model, milliseconds in zip(measured, view_milliseconds(timed), strict=True)
    ]
    old, *others = ready
    kept = replace(photos, labels=photos.labels[usable])
    return [compare(old, other, kept, int((~usable).sum())) for other in others]


def measure(
    classifier: Classifier, ensemble: Ensemble, graph: Path, paths: Sequence[Path]
) -> tuple[MeasuredModel, Flags]:
    """Run a classifier on photos; also return which of them it could use, [N]."""
    predictor = classifier.predictor
    logits = np.zeros((len(paths), len(classifier.manifest.classes)), np.float32)
    taken, usable = np.ones(len(paths), np.int64), np.ones(len(paths), np.bool_)
    console = Console(stderr=True)
    outputs = conveyor.outputs(classifier, paths, ensemble, DECODE_THREADS)
    shown = track(
        outputs,
        f"{classifier.manifest.name} {predictor.precision}",
        len(paths),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    for row, output in enumerate(shown):
        if isinstance(output, ImageError):
            usable[row] = False
        else:
            logits[row], taken[row] = output.logits, output.views
    megabytes = graph.stat().st_size / 1e6
    return MeasuredModel(predictor, ensemble, logits, taken, megabytes), usable


def view_milliseconds(graphs: Sequence[tuple[Path, Pixels]]) -> list[float]:
    """Return the processor time of a view for each graph, on views uint8 [N, S, S, 3].

    Each runs on one thread, whose time is counted, so that other load hardly matters. They take
    turns, a batch each, and the median of `ROUNDS` rounds counts.
    """
    sessions = [(Session(path, ONE_THREAD), pixels) for path, pixels in graphs]
    seconds: list[list[float]] = [[] for _ in sessions]
    for turn in range(ROUNDS + 1):
        for own, (session, pixels) in zip(seconds, sessions, strict=True):
            start = time.thread_time()
            session.run(pixels)
            # The first round warms up.
            if turn:
                own.append((time.thread_time() - start) / len(pixels))
    return [1000 * median(own) for own in seconds]


def compare(
    old: MeasuredModel, new: MeasuredModel, photos: LabelledPhotos, unusable: int = 0
) -> BundleComparison:
    """Compare two models by what they gave for the same photos.

    The labels of `photos` are classes of the old model; so are the groups. Raises `UserError` if
    the models have different classes.
    """
    pair = ComparedPair(old, new, photos.labels, class_order(old.manifest, new.manifest))
    groups: dict[GroupName, ComparedGroup] = {}
    for name in get_args(GroupName):
        if (group := pair.group(name)) is not None:
            groups[name] = group
    changes = pair.class_changes()
    losing = sorted(changes, key=lambda change: (change.gained - change.lost, change.p_value))
    verdict, sentence = conclude(groups, pair, old.manifest)
    return BundleComparison(
        old=old.summary,
        new=new.summary,
        data=photos.name,
        copies=photos.copies,
        unusable=unusable,
        groups=groups,
        changed_classes=sum(change.significant for change in changes),
        losses=tuple(change for change in losing[:NAMED_LOSSES] if change.lost > change.gained),
        verdict=verdict,
        sentence=sentence,
    )


def class_order(old: Manifest, new: Manifest) -> Indices:
    """Return the index in `new` of each class of `old`, [C]; raises `UserError` if they differ."""
    indices = {canonical(label): index for index, label in enumerate(new.labels)}
    lacking = [label for label in old.labels if canonical(label) not in indices]
    known = {canonical(label) for label in old.labels}
    more = [label for label in new.labels if canonical(label) not in known]
    if lacking or more:
        which, names = ("new one lacks", lacking) if lacking else ("old one lacks", more)
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(
            f"the bundles have different classes (the {which} {names[0]!r}{others}): only bundles "
            "of the same classes can be compared"
        )
    return np.array([indices[canonical(label)] for label in old.labels], np.int64)


class ComparedPair:
    """Two models' answers to the same photos, all in the old model's order of classes.

    `labels` [N] are in that order; `order` [C] is that of `class_order`.
    """

    def __init__(
        self, old: MeasuredModel, new: MeasuredModel, labels: Labels, order: Indices
    ) -> None:
        self.old, self.new, self.labels, self.order = old, new, labels, order
        self.groups = group_indices([info.group for info in old.manifest.classes])
        new_logits = new.logits[:, order]
        new_probabilities = new.probabilities[:, order]
        # Then they are one model as far as answers go, whatever the photos.
        self.is_identical = np.array_equal(old.logits, new_logits) and np.array_equal(
            old.views, new.views
        )
        self.is_as_confident = np.array_equal(old.probabilities, new_probabilities)
        self.old_answers = old.probabilities.argmax(1)
        self.new_answers = new_probabilities.argmax(1)
        self.old_right = self.old_answers == labels
        self.new_right = self.new_answers == labels
        self.old_scored = self.scored(old.probabilities)
        self.new_scored = self.scored(new_probabilities)
        self.new_scored_as_old = self.scored(
            old.predictor.probabilities(new_logits, new.views, new.ensemble)
        )
        self.new_sets = None if new.sets is None else new.sets[:, order]
        self.new_sets_as_old = old.predictor.sets(new_probabilities, new.ensemble, COVERAGE)

    def scored(self, probabilities: Doubles) -> ScoredPredictions:
        """Return the answers of probabilities [N, C] with their confidence."""
        answers = probabilities.argmax(1)
        return ScoredPredictions(
            probabilities.max(1),
            answers == self.labels,
            self.groups[answers],
            class_weights(self.labels) / len(self.labels),
        )

    def group(self, name: GroupName) -> ComparedGroup | None:
        """Return the figures of a group, by the true class; None if it has no photos."""
        index = None if name == "all" else GROUPS.index(name)
        of_classes = self.groups if index is None else self.groups[self.groups == index]
        rows = np.flatnonzero(
            np.ones(len(self.labels), np.bool_)
            if index is None
            else self.groups[self.labels] == index
        )
        if not len(rows):
            return None
        labels = self.labels[rows]
        counts = PairedCounts.of(labels, self.old_right[rows], self.new_right[rows])
        interval: PairedInterval | None = counts.interval
        if self.is_identical:
            interval = PairedInterval(0.0, 0.0)
        elif 2 * (counts.photos >= 2).sum() < len(of_classes):
            interval = None
        return ComparedGroup(
            photos=len(rows),
            classes=len(counts.photos),
            of_classes=len(of_classes),
            old=self.side(self.old, self.old_right, self.old_scored, self.old.sets, rows, index),
            new=self.side(self.new, self.new_right, self.new_scored, self.new_sets, rows, index),
            difference=100 * counts.difference,
            low=None if interval is None else 100 * interval.low,
            high=None if interval is None else 100 * interval.high,
            gained=int(counts.gained.sum()),
            lost=int(counts.lost.sum()),
            p_value=counts.p_value,
            kept=100 * float((self.old_answers == self.new_answers)[rows].mean()),
            new_error_at_old_temperatures=confidence_error(self.new_scored_as_old, index),
            new_sets_at_old_thresholds=set_scores(self.new_sets_as_old, self.labels, rows),
        )

    def side(
        self,
        model: MeasuredModel,
        right: Flags,
        scored: ScoredPredictions,
        sets: Flags | None,
        rows: Indices,
        group: int | None,
    ) -> SideScores:
        """Return one model's figures on the photos at `rows`, and for answers of `group`."""
        weights = class_weights(self.labels[rows])
        reviewed = model.reviewed
        return SideScores(
            accuracy=100 * float(np.average(right[rows], weights=weights)),
            confidence_error=confidence_error(scored, group),
            sets=set_scores(sets, self.labels, rows),
            review=None
            if reviewed is None
            else 100 * float(np.average(reviewed[rows], weights=weights)),
            views=float(np.average(model.views[rows], weights=weights)),
        )

    def class_changes(self) -> list[ChangedClass]:
        """Return the change of every class that has photos."""
        classes = np.unique(self.labels)
        counts = PairedCounts.of(self.labels, self.old_right, self.new_right)
        pairs = list(zip(counts.gained.tolist(), counts.lost.tolist(), strict=True))
        p_values = [mcnemar(gained, lost) for gained, lost in pairs]
        infos = [self.old.manifest.classes[index] for index in classes]
        return [
            ChangedClass(
                label=info.label,
                group=info.group,
                photos=photos,
                gained=gained,
                lost=lost,
                p_value=p_value,
                significant=significant,
            )
            for info, photos, (gained, lost), p_value, significant in zip(
                infos, counts.photos.tolist(), pairs, p_values, holm(p_values), strict=True
            )
        ]


def confidence_error(scored: ScoredPredictions, group: int | None) -> float | None:
    """Return the debiased calibration error of the answers with a class of a group, in points.

    None if they are worth fewer than `MIN_PHOTOS` photos.
    """
    part = scored if group is None else scored.of_group(group)
    if effective_count(part.weights) < MIN_PHOTOS:
        return None
    return calibration_error(bins(part))


def set_scores(sets: Flags | None, labels: Labels, rows: Indices) -> SetScores | None:
    """Return how often sets [N, C] hold the right label, and their size, on the photos at rows."""
    if sets is None:
        return None
    weights = class_weights(labels[rows])
    return SetScores(
        coverage=100 * float(np.average(sets[rows, labels[rows]], weights=weights)),
        size=float(np.average(sets[rows].sum(1), weights=weights)),
    )


def conclude(
    groups: dict[GroupName, ComparedGroup], pair: ComparedPair, manifest: Manifest
) -> tuple[Verdict, str]:
    """Return the verdict, and one sentence on it that claims no more than the photos show."""
    if pair.is_identical:
        photos = groups["all"].photos
        more = "" if pair.is_as_confident else ", and only their confidence differs"
        return "identical", f"no difference: the same logits for all {photos:,} photos{more}"
    has_few = any(info.group == "few" for info in manifest.classes)
    judged: GroupName = "few" if has_few else "all"
    words = "few-shot classes" if has_few else "its classes, of which none is few-shot,"
    group = groups.get(judged)
    if group is None:
        return "cannot say", f"cannot say: the photos have none of the {words}"
    if group.low is None or group.high is None:
        return "cannot say", (
            f"cannot say: more than half of the {words} have fewer than two photos; add photos of "
            "them"
        )
    if group.is_harmed:
        verdict: Verdict = "harm"
        sentence = f"hurts: {words} lose {-group.high:.1f} to {-group.low:.1f} points"
    else:
        verdict = "no sign of harm"
        sentence = f"no sign of harm to {words} larger than {max(0.0, -group.low):.1f} points"
        if group.low > 0:
            sentence = f"helps: {words} gain {group.low:.1f} to {group.high:.1f} points"
    for name in GROUPS:
        other = groups.get(name)
        if other is not None and name != judged and other.is_harmed:
            assert other.low is not None
            assert other.high is not None
            sentence += f"; {name} loses {-other.high:.1f} to {-other.low:.1f} points"
    return verdict, f"{sentence} (95 %, {group.photos:,} photos)"
