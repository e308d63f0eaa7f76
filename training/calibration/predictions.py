"""The answers that held-out photos get, for each ensemble."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from taillift.models.bundle.arrays import Doubles, Floats, Indices, group_indices
from taillift.models.bundle.ensemble import Ensemble, MeanLogits, mean_over_views
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.posterior import posterior
from taillift.models.bundle.temperature import Calibration
from taillift.training.calibration.betting import class_weights
from taillift.training.calibration.held_out import HeldOut


@dataclass(frozen=True)
class Predictions:
    """Combined logits [N, C] of `views` [N], true `labels` [N] and `groups` [C] (indices)."""

    ensemble: Ensemble
    logits: Floats
    views: Indices
    labels: Indices
    groups: Indices

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def weights(self) -> Doubles:
        """[N], with a sum of 1 and the same for every class that has photos.

        So held-out photos, however they are distributed, speak for equally frequent classes.
        """
        return class_weights(self.labels) / max(1, len(self))

    @cached_property
    def predicted_groups(self) -> Indices:
        """[N], the group of the class with the largest logit."""
        found: Indices = self.groups[self.logits.argmax(axis=1)]
        return found

    def probabilities(self, temperatures: Doubles) -> Doubles:
        """[N, C] where classes are equally frequent, at temperatures [N]."""
        return posterior(self.logits, np.zeros(len(self.groups)), temperatures)

    def at(self, temperatures: Doubles) -> "ScoredPredictions":
        """What the answers say where classes are equally frequent, at temperatures [N]."""
        shares = self.probabilities(temperatures)
        best = shares.argmax(axis=1)
        return ScoredPredictions(
            shares.max(axis=1), best == self.labels, self.groups[best], self.weights
        )

    def calibrated(self, calibration: Calibration) -> "ScoredPredictions":
        return self.at(
            calibration.temperatures(self.logits, self.views, self.ensemble, self.groups)
        )

    def uncalibrated(self) -> "ScoredPredictions":
        return self.at(np.ones(len(self)))


@dataclass(frozen=True)
class ScoredPredictions:
    """Of each photo: the answer's confidence, whether it is right, its group, a weight; all [N]."""

    confidence: Doubles
    right: np.ndarray[tuple[int], np.dtype[np.bool_]]
    groups: Indices
    weights: Doubles

    def __len__(self) -> int:
        return len(self.right)

    def of_group(self, group: int) -> "ScoredPredictions":
        rows = self.groups == group
        return ScoredPredictions(
            self.confidence[rows], self.right[rows], self.groups[rows], self.weights[rows]
        )


def answers(held: HeldOut, adaptive: MeanLogits | None = None) -> list[Predictions]:
    """For one view, for all, and for `adaptive` where it is given."""
    count, _, classes = held.view_logits.shape
    full = mean_over_views(held.view_logits.reshape(-1, classes), VIEWS)
    mean_logits: list[MeanLogits] = [
        MeanLogits(held.view_logits[:, 0], np.ones(count, np.int64)),
        MeanLogits(full, np.full(count, VIEWS)),
    ]
    if adaptive:
        mean_logits.append(adaptive)
    groups = group_indices(held.groups)
    return [
        Predictions(ensemble, logits, views, held.labels, groups)
        for ensemble, (logits, views) in zip(Ensemble, mean_logits, strict=False)
    ]


def effective(weights: Doubles) -> float:
    """How many equally weighted photos would say as much (Kish 1965): (sum w)^2 / sum w^2."""
    squares = float(np.square(weights).sum())
    # Rounded, so that N equal weights are worth N.
    return round(float(weights.sum()) ** 2 / squares, 6) if squares else 0.0
