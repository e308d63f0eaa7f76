"""Confidence statements by betting: how much a cheaper answer loses, where errors stay rare.

A gambler starts with 1 and bets on each photo that the true mean is not what a hypothesis says. As
long as the hypothesis holds, the expected wealth is at most 1, so a wealth of 1 / (1 - level) or
more rejects it at that level (Waudby-Smith & Ramdas 2024, section 4).
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from taillift.models.bundle.calibration_error import Weights

LEVEL: Final = 0.95
GRID: Final = 64
# Each is a share of the largest stake that cannot ruin: one for each frequency of errors, from
# none to many.
STAKES: Final = (0.95, 0.6, 0.3, 0.1)

Losses = npt.NDArray[np.int64]


def mean_loss(losses: Losses, weights: Weights) -> tuple[float, float]:
    """Return the weighted mean of losses [N] and its standard error, for one photo or more.

    The loss of a photo is whether the full answer is right minus whether the cheaper one is: -1, 0
    or 1. The error counts one more lost answer, because observing none does not make it certain.
    """
    squares = ((weights * losses) ** 2).sum()
    return float((weights * losses).mean()), float(np.sqrt(squares + 1) / len(losses))


def upper_bound(losses: Losses, weights: Weights, level: float = LEVEL) -> float:
    """Return an upper bound, in [0, 1], on the expected weighted mean of losses [N].

    It holds with probability `level`. `weights` [N] have mean 1 and may depend on anything but the
    losses. The losses need only be independent: photos of different classes may have different
    expectations.

    The expectation t is rejected if the gambler, who stakes a fixed s on each photo, ends with
    1 / (1 - level) or more. The wealth is

        product over photos of 1 + s (t - weight * loss).

    Its expectation is at most 1 if the mean of the expectations is t or more, whatever each of them
    is (the geometric mean is at most the arithmetic). The stake is the largest that cannot ruin or,
    with many photos, the best if nothing is lost, 2 ln(1 / (1 - level)) / (N t). So the bound is
    the exact binomial one, 1 - (1 - level)^(1/N), if all weights are 1 and no answer changed, and
    sqrt(2 ln(1 / (1 - level)) * mean squared loss / N) if as many answers are won as lost.
    """
    if not len(losses):
        return 1.0
    # Photos that share a weight and a loss share a factor.
    weighted, counts = np.unique(weights * losses, return_counts=True)
    heaviest = weights.max()
    needed = -np.log1p(-level)

    def largest_not_rejected(means: Weights) -> tuple[float, float]:
        """Return it and the next of the rising candidates [T]."""
        share = np.minimum(1, 2 * needed * heaviest / (counts.sum() * means))
        stake = share / np.maximum(heaviest - means, 1e-12)
        factors = 1 + stake[:, None] * (means[:, None] - weighted)
        log_wealth = np.log(np.maximum(factors, 1e-300)) @ counts
        kept = np.flatnonzero(log_wealth - needed < 0)
        last = kept[-1] if len(kept) else 0
        return means[last], means[min(last + 1, len(means) - 1)]

    low, high = largest_not_rejected(np.geomspace(1e-6, 1, GRID))
    low, high = largest_not_rejected(np.linspace(low, high, GRID))
    return float(high)


def running_log_wealth(wrong: Weights, weights: Weights, risk: float) -> Weights:
    """Return the gambler's log wealth [N] after each of the photos, the most confident first.

    On each photo the stake s is set against weight * (wrong - risk). Suppose that the answers down
    to some confidence are wrong more often than `risk`, weighted. Then the product of the factors'
    expectations is at most 1 there (geometric and arithmetic mean), and the wealth is at most a
    martingale that starts at 1. So with probability 1 - d, whatever the confidences are, the wealth
    reaches 1 / d at none of the confidences at which the risk is exceeded (Ville's inequality). The
    lowest confidence at which it does can therefore be taken, with no correction for having looked
    at all of them. The mean wealth over several `STAKES` has the same property.
    """
    if not len(wrong):
        return np.zeros(0)
    largest = 1 / ((1 - risk) * weights.max())
    gains = weights * (risk - wrong)
    logs = [np.cumsum(np.log1p(share * largest * gains)) for share in STAKES]
    mean: Weights = np.logaddexp.reduce(logs, axis=0) - np.log(len(STAKES))
    return mean
