"""How much accuracy a cheaper answer can have lost, from answers in pairs.

The loss of a photo is whether the full answer is right less whether the cheaper one is: -1, 0 or 1.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

LEVEL: Final = 0.95
GRID: Final = 64

Losses = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]


def photo_weights(count: int) -> Weights:
    """[N] ones: every photo counts alike."""
    return np.ones(count)


def class_weights(labels: npt.NDArray[np.int64]) -> Weights:
    """[N], of mean 1, with which the mean over photos is the mean over classes of class means."""
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    shares: Weights = len(labels) / (len(counts) * counts[places])
    return shares


def measured(losses: Losses, weights: Weights) -> tuple[float, float]:
    """The weighted mean of losses [N] and its standard error, of one photo or more.

    The error is as if one more answer had been lost: none is no certainty.
    """
    squares = ((weights * losses) ** 2).sum()
    return float((weights * losses).mean()), float(np.sqrt(squares + 1) / len(losses))


def upper_bound(losses: Losses, weights: Weights, level: float = LEVEL) -> float:
    """At least the expected weighted mean of losses [N] with probability `level`; in [0, 1].

    `weights` [N] have mean 1 and may depend on anything but the losses. The losses need only be
    independent: photos of different classes may have different expectations.

    That the expectation is t is rejected where a gambler who starts with 1 and stakes a fixed s on
    each photo has 1 / (1 - level) or more in the end (Waudby-Smith & Ramdas 2024, section 4):

        product over photos of 1 + s (t - weight * loss)

    has expectation at most 1 if the mean of the expectations is t or more, whatever each of them is
    (the geometric mean is no more than the arithmetic). The stake is the most that cannot ruin or,
    with many photos, the best if nothing is lost, 2 ln(1 / (1 - level)) / (N t). So the bound is
    the exact binomial one, 1 - (1 - level)^(1/N), where all weights are 1 and no answer changed,
    and sqrt(2 ln(1 / (1 - level)) * mean squared loss / N) where as many are won as lost.
    """
    if not len(losses):
        return 1.0
    # Photos that share a weight and a loss share a factor.
    stakes, counts = np.unique(weights * losses, return_counts=True)

    def largest_kept(candidates: Weights) -> tuple[float, float]:
        kept = np.flatnonzero(_log_wealth(candidates, stakes, counts, weights.max(), level) < 0)
        last = kept[-1] if len(kept) else 0
        return candidates[last], candidates[min(last + 1, len(candidates) - 1)]

    low, high = largest_kept(np.geomspace(1e-6, 1, GRID))
    low, high = largest_kept(np.linspace(low, high, GRID))
    return float(high)


def _log_wealth(
    candidates: Weights, gains: Weights, counts: Losses, heaviest: float, level: float
) -> Weights:
    """Over what rejects each of the candidates [T]; 0 or more is rejected."""
    needed = -np.log1p(-level)
    share = np.minimum(1, 2 * needed * heaviest / (counts.sum() * candidates))
    stake = share / np.maximum(heaviest - candidates, 1e-12)
    factors = 1 + stake[:, None] * (candidates[:, None] - gains)
    logs: Weights = np.log(np.maximum(factors, 1e-300)) @ counts - needed
    return logs
