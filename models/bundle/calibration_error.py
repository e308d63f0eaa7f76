"""Calibration error: whether answers are right as often as their confidence says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Doubles, Flags, Indices, Labels

Weights = Doubles

MAX_BINS: Final = 15
# With fewer photos than this in a bin there are fewer bins.
MIN_IN_BIN: Final = 20
# With fewer photos than this there is no error.
MIN_PHOTOS: Final = 100
# The one-sided 95 % quantile of the normal distribution.
QUANTILE_95: Final = 1.645


def class_weights(labels: Labels) -> Weights:
    """Return weights [N] of mean 1 that turn a mean over photos into a mean over classes.

    With them the weighted mean over photos is the mean of the classes' own means.
    """
    _, class_indices, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights: Weights = len(labels) / (len(counts) * counts[class_indices])
    return weights


def effective_counts(weights: Weights) -> Weights:
    """Return how many equally weighted photos say as much as the first n do, [N].

    Kish's effective sample size (1965), (sum w)^2 / sum w^2, of positive weights [N].
    """
    counts: Weights = np.cumsum(weights) ** 2 / np.cumsum(weights**2)
    return counts


def effective_count(weights: Weights) -> float:
    """Return the last of `effective_counts`, and 0 without photos."""
    # Rounded so that N equal weights are worth exactly N.
    return round(float(effective_counts(weights)[-1]), 6) if len(weights) else 0.0


@dataclass(frozen=True)
class ScoredPredictions:
    """The confidence of each photo's answer, whether it is right, its group and weight; all [N]."""

    confidence: Doubles
    right: Flags
    groups: Indices
    weights: Doubles

    def __len__(self) -> int:
        return len(self.right)

    def of_group(self, group: int) -> "ScoredPredictions":
        """Return the answers with a class of the group with this index."""
        rows = self.groups == group
        return ScoredPredictions(
            self.confidence[rows], self.right[rows], self.groups[rows], self.weights[rows]
        )


@dataclass(frozen=True)
class Bin:
    """Means over the photos of a bin, which are the part `share` of the whole.

    `photos` is the effective number, as if equally weighted. `chance` is the variance of the
    accuracy if confidence is perfect.
    """

    confidence: float
    accuracy: float
    share: float
    photos: float
    chance: float

    @property
    def noise(self) -> float:
        """The sample variance of the accuracy (Kumar et al. 2019, section 5)."""
        return self.accuracy * (1 - self.accuracy) / max(1.0, self.photos - 1)


def bins(scored: ScoredPredictions) -> list[Bin]:
    """Return at most `MAX_BINS` bins of equal weight, by confidence."""
    if not len(scored):
        return []
    return equal_bins(
        scored, int(np.clip(effective_count(scored.weights) // MIN_IN_BIN, 1, MAX_BINS))
    )


def equal_bins(scored: ScoredPredictions, count: int) -> list[Bin]:
    """Return `count` bins of equal weight, without those that no photo falls into."""
    order = np.argsort(scored.confidence, kind="stable")
    shares = scored.weights[order] / scored.weights.sum()
    middles = shares.cumsum() - shares / 2
    numbers = np.minimum((middles * count).astype(np.int64), count - 1)
    result = []
    for number in np.unique(numbers):
        rows = order[numbers == number]
        weights, confidence = scored.weights[rows], scored.confidence[rows]
        photos = effective_count(weights)
        result.append(
            Bin(
                confidence=float(np.average(confidence, weights=weights)),
                accuracy=float(np.average(scored.right[rows], weights=weights)),
                share=float(weights.sum() / scored.weights.sum()),
                photos=photos,
                chance=float(np.average(confidence * (1 - confidence), weights=weights)) / photos,
            )
        )
    return result


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the root mean squared gap over bins, less what chance explains, in points.

    The plug-in estimate grows with the number of bins and falls with the photos, even if confidence
    is perfect. This one does not (Kumar et al. 2019, section 5, with bins of equal mass as Roelofs
    et al. 2022, section 6, recommend). It is 0 if chance explains more than the gap.
    """
    square = sum(b.share * ((b.confidence - b.accuracy) ** 2 - b.noise) for b in bins)
    return 100 * math.sqrt(max(0.0, square))


def expected_error(scored: ScoredPredictions) -> float:
    """Return the mean absolute gap between confidence and accuracy over bins, in points.

    This is the expected calibration error as usually reported (Guo et al. 2017, equation 3), with
    `MAX_BINS` bins of equal mass. Chance alone makes it larger the fewer photos there are.
    """
    bins = equal_bins(scored, MAX_BINS)
    return 100 * sum(b.share * abs(b.confidence - b.accuracy) for b in bins)


def minimum_detectable_error(bins: Sequence[Bin]) -> float:
    """Return what the error of perfect confidence stays under 95 times out of 100, in points.

    With perfect confidence, the squared gap of a bin has the mean v = E[p (1 - p)] / n, and the
    variance 2 v^2.
    """
    variance = sum(2 * (b.share * b.chance) ** 2 for b in bins)
    return 100 * math.sqrt(QUANTILE_95 * math.sqrt(variance))
