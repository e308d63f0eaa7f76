"""The thresholds of prediction sets, chosen and measured on held-out photos."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Doubles, Flags, Labels, group_indices
from taillift.models.bundle.calibration_error import class_weights
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.folder import HeldOutScores
from taillift.models.bundle.prediction_sets import (
    MOST,
    Coverage,
    CoverageScores,
    GroupCoverage,
    Interpolation,
    PredictionSets,
)
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.cross_fit import FOLDS, stratified_folds
from taillift.training.calibration.held_out import photo_weights

TARGETS: Final = (0.8, 0.9, 0.95)
CANDIDATES: Final = tuple(Interpolation(pull=pull) for pull in (10, 20, 50, 100, 1000))
# Points of coverage that are worth sets e times as large. All classes together pay about this much
# from 90 to 95 per cent, where sets grow by half to three quarters.
SIZE_COST: Final = 10.0
# Points that a group may fall short of the target before it counts.
TOLERANCE: Final = 2.0
CROSS_VALIDATED: Final = "the photos of the fit, by cross-validation"

Estimates = dict[Ensemble, tuple[CoverageScores, ...]]


def fit_coverage(
    ensembles: Mapping[Ensemble, Doubles], labels: Labels, groups: Sequence[Group]
) -> tuple[PredictionSets, HeldOutScores]:
    """Return the sets and the scores that a bundle stores, from probabilities of each ensemble.

    The probabilities [N, C] are the calibrated ones of held-out photos under the uniform prior,
    without duplicates. `labels` int64 [N] are their true classes and `groups` has one entry a
    class. If there are too few photos for something, that makes a note, never an exception.
    """
    scores = HeldOutScores(
        labels,
        {
            ensemble: _of_label(probabilities, labels).astype(np.float32)
            for ensemble, probabilities in ensembles.items()
        },
    )
    estimates: dict[Interpolation, Estimates] = {
        interpolation: {
            ensemble: cross_validate(probabilities, labels, groups, interpolation)
            for ensemble, probabilities in ensembles.items()
        }
        for interpolation in CANDIDATES
    }
    chosen = min(CANDIDATES, key=lambda interpolation: _cost(estimates[interpolation]))
    any_scores = next(iter(scores.ensembles.values()))
    reach = Coverage(any_scores, labels, groups, chosen).reach
    sets = PredictionSets(
        interpolation=chosen,
        photos=len(labels),
        reach={group: 100 * share for group, share in reach.items()},
        data=CROSS_VALIDATED,
        estimates=estimates[chosen],
        notes=tuple(coverage_notes(labels, groups, reach)),
    )
    return sets, scores


def cross_validate(
    probabilities: Doubles, labels: Labels, groups: Sequence[Group], interpolation: Interpolation
) -> tuple[CoverageScores, ...]:
    """Return the coverage at `TARGETS`, each photo's sets from thresholds fitted without it."""
    scores = _of_label(probabilities, labels).astype(np.float32)
    sets = np.zeros((len(TARGETS), *probabilities.shape), np.bool_)
    folds = stratified_folds(labels)
    for number in range(FOLDS):
        rest, own = folds != number, folds == number
        coverage = Coverage(scores[rest], labels[rest], groups, interpolation)
        for index, target in enumerate(TARGETS):
            sets[index, own] = coverage.sets(probabilities[own], target)
    return tuple(
        measure_coverage(sets_at, labels, groups, target)
        for sets_at, target in zip(sets, TARGETS, strict=True)
    )


def measure_coverage(
    sets: Flags, labels: Labels, groups: Sequence[Group], target: float
) -> CoverageScores:
    """Return how sets [N, C] for a coverage `target` (0 to 1) cover the true classes int64 [N]."""
    covered = 100 * _of_label(sets.astype(np.float64), labels)
    sizes = sets.sum(axis=1).astype(np.float64)
    weights = class_weights(labels)
    of_group = group_indices(groups)[labels]

    def mean(values: Doubles, weights: Doubles) -> float | None:
        return float(np.average(values, weights=weights)) if weights.sum() else None

    gap = None
    if len(labels):
        by_class = np.bincount(labels, covered)[np.unique(labels)] / np.unique_counts(labels).counts
        gap = float(np.maximum(100 * target - by_class, 0).mean())
    return CoverageScores(
        target=100 * target,
        marginal=mean(covered, photo_weights(len(labels))),
        macro=mean(covered, weights),
        gap=gap,
        size=mean(sizes, weights),
        groups={
            group: GroupCoverage(
                photos=int((of_group == index).sum()),
                coverage=mean(covered, weights * (of_group == index)),
                size=mean(sizes, weights * (of_group == index)),
            )
            for index, group in enumerate(GROUPS)
        },
    )


def _cost(estimates: Mapping[Ensemble, Sequence[CoverageScores]]) -> float:
    """Return a cost in points: what classes and groups miss of the target, and the size of sets."""
    total = 0.0
    for scores in (scores for of_targets in estimates.values() for scores in of_targets):
        if scores.gap is None or scores.size is None:
            continue
        coverages = [scores.macro, *(group.coverage for group in scores.groups.values())]
        shortfall = sum(
            max(scores.target - TOLERANCE - coverage, 0)
            for coverage in coverages
            if coverage is not None
        )
        total += scores.gap + shortfall + SIZE_COST * float(np.log(scores.size))
    return total


def _of_label(values: Doubles, labels: Labels) -> Doubles:
    """Return the value [N] of each row's true class, from values [N, C]."""
    chosen: Doubles = values[np.arange(len(labels)), labels]
    return chosen


def coverage_notes(
    labels: Labels, groups: Sequence[Group], reach: Mapping[Group, float]
) -> Iterator[str]:
    """Yield what photos are too few for; `reach` is the maximal coverage of each group, 0 to 1."""
    if not len(labels):
        yield "there is no held-out photo: a set is the answer alone at any requested coverage"
        return
    if missing := len(groups) - len(np.unique(labels)):
        yield (
            f"{missing} of {len(groups)} classes have no held-out photo: they use the thresholds "
            "of their group"
        )
    for group, maximal in reach.items():
        if group in groups and maximal < MOST:
            yield (
                f"{group}: held-out photos support a coverage of at most {100 * maximal:.0f} %: "
                "above it, the thresholds of all classes are used"
            )
