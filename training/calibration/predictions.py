"""The model's predictions on held-out photos, for each ensemble."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from taillift.models.bundle.arrays import Doubles, Floats, Indices, group_indices
from taillift.models.bundle.calibration_error import ScoredPredictions
from taillift.models.bundle.ensemble import Ensemble, MeanLogits, mean_over_views
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.posterior import posterior
from taillift.models.bundle.temperature import Calibration
from taillift.models.bundle.weights import class_weights
from taillift.training.calibration.held_out import HeldOut


@dataclass(frozen=True)
class Predictions:
    """Mean logits [N, C] over `views` [N], true `labels` [N] and group indices `groups` [C]."""

    ensemble: Ensemble
    logits: Floats
    views: Indices
    labels: Indices
    groups: Indices

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def weights(self) -> Doubles:
        """Weights [N] that sum to 1, with the same sum for every class that has photos.

        With them, held-out photos stand for equally frequent classes, whatever their own
        distribution is.
        """
        return class_weights(self.labels) / max(1, len(self))

    @cached_property
    def predicted_groups(self) -> Indices:
        """The group of the class with the largest logit, [N]."""
        groups: Indices = self.groups[self.logits.argmax(axis=1)]
        return groups

    def probabilities(self, temperatures: Doubles) -> Doubles:
        """Return probabilities [N, C] at temperatures [N], for equally frequent classes."""
        return posterior(self.logits, np.zeros(len(self.groups)), temperatures)

    def at(self, temperatures: Doubles) -> "ScoredPredictions":
        """Return the answers at temperatures [N], for equally frequent classes."""
        probabilities = self.probabilities(temperatures)
        answers = probabilities.argmax(axis=1)
        return ScoredPredictions(
            probabilities.max(axis=1), answers == self.labels, self.groups[answers], self.weights
        )

    def calibrated(self, calibration: Calibration) -> "ScoredPredictions":
        """Return the answers at the temperatures of `calibration`."""
        return self.at(
            calibration.temperatures(self.logits, self.views, self.ensemble, self.groups)
        )

    def uncalibrated(self) -> "ScoredPredictions":
        """Return the answers at temperature 1."""
        return self.at(np.ones(len(self)))


def predictions_on(held: HeldOut, adaptive: MeanLogits | None = None) -> list[Predictions]:
    """Return the predictions of one view, of all views, and of `adaptive` if it is given."""
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
