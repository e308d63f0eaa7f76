"""Sets of labels that hold the right one as often as is asked for, in rare classes too.

A score is the calibrated probability of a photo's true class under the uniform prior: the
prevalence-adjusted softmax of Ding, Fermanian & Salmon (arXiv 2507.06867, section 3), for logits
that carry no training prior. A class is in the set where its probability is at least its threshold.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import Field

from taillift.models.bundle.arrays import Doubles, Flags, Floats, Labels
from taillift.models.bundle.ensemble import Ensemble
from taillift.models.bundle.schema import GROUPS, Group, SchemaModel

LEAST: Final = 0.5
MOST: Final = 0.99
# To this much a coverage is rounded up, so that only so many thresholds are ever kept.
STEP: Final = 0.001
# Sums of shares are off by less.
SLACK: Final = 1e-9


class Interpolation(SchemaModel):
    """How far a class's threshold is drawn to that of its group.

    Of n photos the share n / (n + pull) is the class's own: the tau of Interp-Q (arXiv 2507.06867,
    section 3), one for each class.
    """

    pull: float = Field(ge=0, description="what the group counts as, in photos")


class GroupCoverage(SchemaModel):
    photos: int
    coverage: float | None = Field(description="absent without photos")
    size: float | None = Field(description="labels in a set")


class CoverageScores(SchemaModel):
    """How often sets hold the right label, in per cent, and how many labels they have."""

    target: float = Field(description="per cent")
    marginal: float | None = Field(description="over photos; absent without any")
    macro: float | None = Field(description="mean over classes")
    gap: float | None = Field(description="points that classes miss of the target, mean over them")
    size: float | None = Field(description="labels in a set, mean over classes")
    groups: dict[Group, GroupCoverage] = Field(description="of the true class, over classes")


class PredictionSets(SchemaModel):
    """What `coverage=` is answered from, and what held-out photos say of it."""

    interpolation: Interpolation
    photos: int = Field(description="that the thresholds are made of")
    reach: dict[Group, float] = Field(
        description="per cent: the highest coverage that a group's own photos can support"
    )
    data: str = Field(description="what the estimates were measured on")
    estimates: dict[Ensemble, tuple[CoverageScores, ...]] = Field(
        {}, description="for each ensemble"
    )
    notes: tuple[str, ...] = Field((), description="what there were too few photos for")


class _Pool:
    """Photos that share a threshold."""

    def __init__(self, scores: Floats, weights: Doubles) -> None:
        order = np.argsort(-scores, kind="stable")
        self._scores = scores[order]
        self._shares = np.cumsum(weights[order]) / max(weights.sum(), SLACK)
        # Kish's effective number: that of equal weights with this variance of the mean.
        self.photos = float(weights.sum() ** 2 / (weights**2).sum()) if len(weights) else 0.0

    @property
    def reach(self) -> float:
        """The highest coverage that so many photos can support."""
        return self.photos / (self.photos + 1)

    def quantile(self, coverage: float) -> float:
        """The score that the share `coverage` reaches, with the finite-sample correction.

        Out of reach it is the least score, and infinite without any photo.
        """
        if not self.photos:
            return np.inf
        needed = min(coverage / self.reach, 1) - SLACK
        return float(self._scores[np.searchsorted(self._shares, needed)])

    def threshold(self, coverage: float, above: float, pull: float = 0) -> float:
        """Its own quantile drawn to the threshold `above`.

        Out of reach the own photos can lower the threshold but not raise it, so that a set never
        shrinks where more is asked for.
        """
        if not self.photos:
            return above
        share = self.photos / (self.photos + pull)
        mixed = share * self.quantile(coverage) + (1 - share) * above
        return mixed if coverage <= self.reach + SLACK else min(mixed, above)


class Coverage:
    """Sets for one ensemble, from the scores [N] and classes [N] of held-out photos.

    In a group, and over all, every class weighs the same whatever its number of photos: what is
    aimed at is the mean coverage over classes. `groups` has one entry a class.
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
        rows = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
        of_group = np.array([GROUPS.index(group) for group in groups])
        within = [of_group[labels] == place for place in range(len(GROUPS))]
        self._interpolation = interpolation
        self._of_group = of_group
        self._all = _Pool(scores, weights)
        self._groups = [_Pool(scores[those], weights[those]) for those in within]
        self._classes = [_Pool(scores[those], weights[those]) for those in rows]
        self._thresholds: dict[float, Floats] = {}

    @property
    def reach(self) -> dict[Group, float]:
        """The highest coverage that each group's own photos can support, 0 to 1."""
        return {group: pool.reach for group, pool in zip(GROUPS, self._groups, strict=True)}

    def sets(self, probabilities: Doubles, coverage: float) -> Flags:
        """Which labels each image's set has, [N, C]; the most probable is always among them.

        `probabilities` [N, C] are the calibrated ones under the uniform prior, and `coverage` is
        from `LEAST` to `MOST`, else `ValueError`.
        """
        held: Flags = probabilities.astype(np.float32) >= self.thresholds(coverage)
        held[np.arange(len(held)), probabilities.argmax(axis=1)] = True
        return held

    def thresholds(self, coverage: float) -> Floats:
        """The least probability [C] with which each class is in a set."""
        if not LEAST <= coverage <= MOST:
            raise ValueError(f"coverage {coverage} is not from {LEAST} to {MOST}")
        steps = int(np.ceil(coverage / STEP - SLACK))
        if steps not in self._thresholds:
            self._thresholds[steps] = self._compute(steps * STEP)
        return self._thresholds[steps]

    def _compute(self, coverage: float) -> Floats:
        # Without any photo no class but the answer is in a set.
        common = self._all.quantile(coverage)
        by_group = [pool.threshold(coverage, common) for pool in self._groups]
        return np.array(
            [
                pool.threshold(coverage, by_group[place], self._interpolation.pull)
                for pool, place in zip(self._classes, self._of_group, strict=True)
            ],
            np.float32,
        )
