"""Which thresholds prediction sets use, chosen and measured on held-out photos."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Doubles, Flags, Labels
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
from taillift.training.calibration.betting import class_weights
from taillift.training.calibration.cross_fit import FOLDS, spread

TARGETS: Final = (0.8, 0.9, 0.95)
CANDIDATES: Final = tuple(Interpolation(pull=pull) for pull in (10, 20, 50, 100, 1000))
# Points of coverage that are worth e times as many labels: about what all classes together pay
# from 90 to 95 per cent, where sets grow by half to three quarters.
SIZE: Final = 10.0
# Points that a group may miss of the target before it counts.
TOLERANCE: Final = 2.0
CROSS_VALIDATED: Final = "the photos of the fit, by cross-validation"

Estimates = dict[Ensemble, tuple[CoverageScores, ...]]


def fit_coverage(
    ensembles: Mapping[Ensemble, Doubles], labels: Labels, groups: Sequence[Group]
) -> tuple[PredictionSets, HeldOutScores]:
    """What to write into a bundle, from the probabilities [N, C] of each ensemble.

    The probabilities are the calibrated ones of held-out photos under the uniform prior, no copies
    among them; `labels` int64 [N] are their true classes and `groups` has one entry a class. Data
    too few for something make a note, never an exception.
    """
    scores = HeldOutScores(
        labels,
        {
            ensemble: _of_label(values, labels).astype(np.float32)
            for ensemble, values in ensembles.items()
        },
    )
    tried = {one: _estimates(ensembles, labels, groups, one) for one in CANDIDATES}
    chosen = min(CANDIDATES, key=lambda one: _cost(tried[one]))
    some = next(iter(scores.ensembles.values()))
    reach = Coverage(some, labels, groups, chosen).reach
    record = PredictionSets(
        interpolation=chosen,
        photos=len(labels),
        reach={group: 100 * share for group, share in reach.items()},
        data=CROSS_VALIDATED,
        estimates=tried[chosen],
        notes=tuple(_notes(labels, groups, reach)),
    )
    return record, scores


def measure_coverage(
    sets: Flags, labels: Labels, groups: Sequence[Group], target: float
) -> CoverageScores:
    """How sets [N, C] asked for at `target` (0 to 1) cover the true classes int64 [N]."""
    held = 100 * _of_label(sets.astype(np.float64), labels)
    sizes = sets.sum(axis=1).astype(np.float64)
    weights = class_weights(labels)
    of_group = np.array([GROUPS.index(group) for group in groups])[labels]
    by_group = {
        group: GroupCoverage(
            photos=int((of_group == place).sum()),
            coverage=_mean(held, weights * (of_group == place)),
            size=_mean(sizes, weights * (of_group == place)),
        )
        for place, group in enumerate(GROUPS)
    }
    return CoverageScores(
        target=100 * target,
        marginal=_mean(held, np.ones(len(labels))),
        macro=_mean(held, weights),
        gap=_gap(held, labels, 100 * target),
        size=_mean(sizes, weights),
        groups=by_group,
    )


def _estimates(
    ensembles: Mapping[Ensemble, Doubles],
    labels: Labels,
    groups: Sequence[Group],
    interpolation: Interpolation,
) -> Estimates:
    """By cross-validation: sets of photos that had no part in their thresholds."""
    return {
        ensemble: _cross_validated(probabilities, labels, groups, interpolation)
        for ensemble, probabilities in ensembles.items()
    }


def _cross_validated(
    probabilities: Doubles, labels: Labels, groups: Sequence[Group], interpolation: Interpolation
) -> tuple[CoverageScores, ...]:
    scores = _of_label(probabilities, labels).astype(np.float32)
    sets = np.zeros((len(TARGETS), *probabilities.shape), np.bool_)
    fold = spread(labels)
    for number in range(FOLDS):
        rest, own = fold != number, fold == number
        coverage = Coverage(scores[rest], labels[rest], groups, interpolation)
        for place, target in enumerate(TARGETS):
            sets[place, own] = coverage.sets(probabilities[own], target)
    return tuple(
        measure_coverage(one, labels, groups, target)
        for one, target in zip(sets, TARGETS, strict=True)
    )


def _cost(estimates: Mapping[Ensemble, Sequence[CoverageScores]]) -> float:
    """In points: what classes miss of the target, what groups do, and the size of sets."""
    every = [one for scores in estimates.values() for one in scores]
    return sum(
        one.gap + _shortfall(one) + SIZE * float(np.log(one.size))
        for one in every
        if one.gap is not None and one.size is not None
    )


def _shortfall(scores: CoverageScores) -> float:
    covered = [scores.macro, *(group.coverage for group in scores.groups.values())]
    return sum(max(scores.target - TOLERANCE - one, 0) for one in covered if one is not None)


def _gap(held: Doubles, labels: Labels, target: float) -> float | None:
    covered = np.bincount(labels, held)[np.unique(labels)] / np.unique_counts(labels).counts
    return float(np.maximum(target - covered, 0).mean()) if len(labels) else None


def _of_label(values: Doubles, labels: Labels) -> Doubles:
    chosen: Doubles = values[np.arange(len(labels)), labels]
    return chosen


def _mean(values: Doubles, weights: Doubles) -> float | None:
    return float(np.average(values, weights=weights)) if weights.sum() else None


def _notes(labels: Labels, groups: Sequence[Group], reach: Mapping[Group, float]) -> Iterator[str]:
    if not len(labels):
        yield "no held-out photo: a set is the answer alone, whatever coverage is asked for"
        return
    if missing := len(groups) - len(np.unique(labels)):
        yield f"{missing} of {len(groups)} classes have no held-out photo: their group's thresholds"
    for group, most in reach.items():
        if group in groups and most < MOST:
            yield (
                f"{group}: held-out photos support a coverage of {100 * most:.0f} %: above it the "
                "thresholds of all classes"
            )
