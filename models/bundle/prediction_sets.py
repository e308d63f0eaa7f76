"""Sets of labels that hold the right one as often as is asked for, in rare classes too.

A photo's score is the calibrated probability of its true class under the uniform prior: the
prevalence-adjusted softmax of Ding, Fermanian & Salmon (arXiv 2507.06867, section 3), for logits
that carry no training prior. A class is in the set if its probability is at least its threshold.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import Field

from taillift.models.bundle.arrays import Doubles, Flags, Floats, Labels, group_indices
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.schema import (
    GROUPS,
    Amount,
    Count,
    Group,
    Percent,
    SchemaModel,
)

LEAST: Final = 0.5
MOST: Final = 0.99
# A coverage is rounded up to a multiple of this, so that only so many thresholds are ever kept.
STEP: Final = 0.001
# More than the rounding error of a sum of shares.
SLACK: Final = 1e-9


class Interpolation(SchemaModel):
    """How far a class's threshold is shrunk toward that of its group.

    With n photos the weight of the class's own threshold is n / (n + pull): the tau of Interp-Q
    (arXiv 2507.06867, section 3), one for each class.
    """

    pull: Amount = Field(description="what the group counts as, in photos")


class GroupCoverage(SchemaModel):
    photos: Count
    coverage: Percent | None = Field(description="absent without photos")
    size: Amount | None = Field(description="labels in a set")


class CoverageScores(SchemaModel):
    """How often sets hold the right label, in per cent, and how many labels they have."""

    target: Percent = Field(description="per cent")
    marginal: Percent | None = Field(description="over photos; absent without any")
    macro: Percent | None = Field(description="mean over classes")
    gap: Percent | None = Field(
        description="points by which classes miss the target, mean over classes"
    )
    size: Amount | None = Field(description="labels in a set, mean over classes")
    groups: dict[Group, GroupCoverage] = Field(
        description="by the group of the true class, mean over its classes"
    )


class PredictionSets(SchemaModel):
    """The basis of `coverage=`, and what held-out photos say about it."""

    interpolation: Interpolation
    photos: Count = Field(description="photos that the thresholds were fitted on")
    reach: dict[Group, Percent] = Field(
        description="per cent: the maximal coverage that a group's own photos can support"
    )
    data: str = Field(description="what the estimates were measured on")
    estimates: dict[Ensemble, tuple[CoverageScores, ...]] = Field(
        {}, description="for each ensemble"
    )
    notes: tuple[str, ...] = Field((), description="what there were too few photos for")


class ScorePool:
    """Photos that share a threshold, by their scores [N] and weights [N]."""

    def __init__(self, scores: Floats, weights: Doubles) -> None:
        order = np.argsort(-scores, kind="stable")
        self._scores = scores[order]
        self._shares = np.cumsum(weights[order]) / max(weights.sum(), SLACK)
        # Kish's effective number: that of equal weights with this variance of the mean.
        self.photos = float(weights.sum() ** 2 / (weights**2).sum()) if len(weights) else 0.0

    @property
    def max_coverage(self) -> float:
        """The maximal coverage that so many photos can support."""
        return self.photos / (self.photos + 1)

    def quantile(self, coverage: float) -> float:
        """Return the score that the share `coverage` reaches, with the finite-sample correction.

        Beyond the maximal coverage it is the least score; without any photo it is infinite.
        """
        if not self.photos:
            return np.inf
        needed = min(coverage / self.max_coverage, 1) - SLACK
        return float(self._scores[np.searchsorted(self._shares, needed)])

    def threshold(self, coverage: float, above: float, pull: float = 0) -> float:
        """Return the pool's own quantile, shrunk toward the threshold `above`.

        Beyond the maximal coverage the own photos can lower the threshold but not raise it, so that
        a set never shrinks if more coverage is asked for.
        """
        if not self.photos:
            return above
        share = self.photos / (self.photos + pull)
        mixed = share * self.quantile(coverage) + (1 - share) * above
        return mixed if coverage <= self.max_coverage + SLACK else min(mixed, above)


class Coverage:
    """The sets of one ensemble, from the scores [N] and classes [N] of held-out photos.

    In a group, and over all classes, every class weighs the same whatever its number of photos: the
    aim is the mean coverage over classes. `groups` has one entry for each class.
    """

    def __init__(
        self,
        scores: Floats,
        labels: Labels,
        groups: Sequence[Group],
        interpolation: Interpolation,
    ) -> None:
        scores = scores.astype(np.float32)
        counts = np.bincount(labels, minlength=len(groups))
        weights = 1 / counts[labels]
        class_rows = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
        self._interpolation = interpolation
        self._group_of_class = group_indices(groups)
        group_of_photo = self._group_of_class[labels]
        group_rows = [group_of_photo == index for index in range(len(GROUPS))]
        self._all = ScorePool(scores, weights)
        self._groups = [ScorePool(scores[rows], weights[rows]) for rows in group_rows]
        self._classes = [ScorePool(scores[rows], weights[rows]) for rows in class_rows]
        self._thresholds: dict[float, Floats] = {}

    @property
    def reach(self) -> dict[Group, float]:
        """The maximal coverage that each group's own photos can support, 0 to 1."""
        return {group: pool.max_coverage for group, pool in zip(GROUPS, self._groups, strict=True)}

    def sets(self, probabilities: Doubles, coverage: float) -> Flags:
        """Return which labels each image's set has, [N, C]; the most probable is always in it.

        `probabilities` [N, C] are the calibrated ones under the uniform prior. Raises `ValueError`
        if `coverage` is not from `LEAST` to `MOST`.
        """
        held: Flags = probabilities.astype(np.float32) >= self.thresholds(coverage)
        held[np.arange(len(held)), probabilities.argmax(axis=1)] = True
        return held

    def thresholds(self, coverage: float) -> Floats:
        """Return the least probability [C] with which each class is in a set."""
        if not LEAST <= coverage <= MOST:
            raise ValueError(f"coverage {coverage} is not from {LEAST} to {MOST}")
        steps = int(np.ceil(coverage / STEP - SLACK))
        if steps not in self._thresholds:
            rounded = steps * STEP
            # Infinite without any photo: then only the most probable class is in a set.
            common = self._all.quantile(rounded)
            by_group = [pool.threshold(rounded, common) for pool in self._groups]
            self._thresholds[steps] = np.array(
                [
                    pool.threshold(rounded, by_group[group], self._interpolation.pull)
                    for pool, group in zip(self._classes, self._group_of_class, strict=True)
                ],
                np.float32,
            )
        return self._thresholds[steps]
