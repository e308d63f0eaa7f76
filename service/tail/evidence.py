"""E-processes that find a change whenever it comes, in bounded memory."""

from typing import Final

import numpy as np

from service.tail.exact import Doubles, Flags

# A change is looked for from everywhere, in steps of as many predictions as this many of the
# class are expected in.
STEP: Final = 10.0
# What is left for later falls with this power of time: the earlier the sooner found, the later
# the slower.
FATIGUE: Final = 0.25
# Evidence beyond what decides is not kept: the way back would be as long as the way there.
CAP: Final = 100.0
LIMIT: Final = 600.0


class Evidence:
    """For each of K streams an e-process: the wealth of bets against what is expected of it.

    Each of B bets is begun anew with every batch of predictions, with a part of one unit of wealth
    that is spent more and more slowly and never runs out: a mixture over the times of a change
    (the e-SR detector of Shin, Ramdas and Rinaldo 2023, equation 19, with starting weights that
    sum to 1). As long as a stream is as expected the mean of its value is at most 1 at any time,
    however that time is chosen, and the chance that the value ever reaches 1/x is at most x
    (Ville). Memory is B K numbers, and a batch of any size costs O(B K).
    """

    def __init__(self, bets: int, rates: Doubles, cap: float) -> None:
        """`rates` [K] are those expected; a stream's value stays below `cap`."""
        self._step = STEP / rates
        self._cap = cap
        self.wealth = np.zeros((bets, len(rates)))
        self.predictions = 0

    def update(self, gains: Doubles, predictions: int) -> None:
        """After a batch of `predictions`: `gains` [B, K] are the bets' log likelihood ratios.

        The ratios' rates may depend on what came before the batch, not on the batch.
        """
        before = self._spent(self.predictions)
        self.predictions += predictions
        begun = (self._spent(self.predictions) - before) / len(self.wealth)
        factors = np.exp(gains.clip(-LIMIT, LIMIT))
        self.wealth = np.minimum((self.wealth + begun) * factors, self._cap)

    @property
    def values(self) -> Doubles:
        """[K], the e-values now."""
        values: Doubles = self.wealth.sum(0) + 1 - self._spent(self.predictions)
        return values

    def cost(self, gain: Doubles, predictions: int) -> Doubles:
        """[K]: nats that a bet has to make up for its late and partial start.

        For bets that gain `gain` [K] nats a prediction, begun after `predictions`; those begun
        while the first nat could have been earned are counted.
        """
        begun = self._spent(predictions + 1 / gain) - self._spent(predictions)
        nats: Doubles = 1 - np.log(begun / len(self.wealth))
        return nats

    def _spent(self, predictions: Doubles | int) -> Doubles:
        spent: Doubles = -np.expm1(-FATIGUE * np.log1p(predictions / self._step))
        return spent


def discoveries(values: Doubles, level: float) -> Flags:
    """[K]: the streams that e-BH finds (Wang and Ramdas 2022, section 4).

    The share of false ones among them is at most `level` in the mean, however the streams depend
    on each other.
    """
    order = np.argsort(-values, kind="stable")
    ranks = np.arange(1, len(values) + 1)
    enough = values[order] >= len(values) / (level * ranks)
    found = np.zeros(len(values), np.bool_)
    if enough.any():
        found[order[: ranks[enough][-1]]] = True
    return found
