"""Which streams of predictions have left the rates that are expected of them."""

from typing import Final

import numpy as np

from service.tail.band import Band
from service.tail.evidence import CAP, Evidence, discoveries
from service.tail.exact import Doubles, Flags, Indices
from service.tail.reference import Rates

# Odds of the rates that are bet on, in units of the band's nearer end.
FEWER: Final = (1 / 16, 1 / 4, 1 / 2, 3 / 4)
MORE: Final = (4 / 3, 2, 4, 16)

# Nats a prediction that count as none.
NO_GAIN: Final = 1e-12

LEVEL: Final = 0.05
TOLERANCE: Final = 0.1
# How the level is divided: for e-BH, for the held-out photos' bounds and for the live ones.
TESTS, HELD_OUT, LIVE = 0.6, 0.2, 0.2


class Drift:
    """A sequential test for each of K streams, with the false discovery rate controlled.

    Looking is allowed at any time, as often as one likes. At every look the mean share of false
    ones among the streams found is at most `level`; false is one whose rate has always been
    within its band, and the chance that a band misses its stream is paid for by `level` too.
    """

    def __init__(self, rates: Rates, level: float = LEVEL, tolerance: float = TOLERANCE) -> None:
        streams = len(rates.a)
        self._level = TESTS * level
        self._streams = streams
        self.band = Band(
            rates,
            coverage=1 - HELD_OUT * level / streams,
            level=LIVE * level / streams,
            tolerance=tolerance,
        )
        self.evidence = Evidence(len(FEWER + MORE), rates.mean, CAP * self.threshold)
        self.bet()

    def bet(self) -> None:
        """Lay the bets against the band as it is now."""
        self._stakes = Stakes(*self._bets())

    @property
    def threshold(self) -> float:
        """The e-value at which a stream is found for sure, were it the only one."""
        return self._streams / self._level

    def look(self, counts: Indices, predictions: int) -> None:
        """Take in what was predicted since the last look: `counts` [K] of `predictions`."""
        hits = counts.astype(np.float64)
        gains = self._stakes.gains(hits, predictions)
        suspected = self.values * self._level > 1
        self.evidence.update(gains, predictions)
        suspected |= self.values * self._level > 1
        if self.band.learn(hits, predictions, suspected):
            self.bet()

    @property
    def values(self) -> Doubles:
        return self.evidence.values

    @property
    def found(self) -> Flags:
        return discoveries(self.values, self._level)

    @property
    def direction(self) -> Indices:
        """[K]: 1 where the evidence is for more predictions than expected, -1 for fewer."""
        fewer, more = np.split(self.evidence.wealth, [len(FEWER)])
        return np.where(more.sum(0) > fewer.sum(0), 1, -1)

    def delay(self, rates: Doubles) -> Doubles:
        """[K]: predictions within which 95 of 100 changes to `rates` from now on are found.

        Infinite where the new rate is within the band, or as good as.
        """
        gain, spread = self._stakes.at(rates)
        nats = np.log(self.threshold) + self.evidence.cost(gain, self.evidence.predictions)
        needed: Doubles = time_to(nats, gain, spread).min(0)
        return needed

    def _bets(self) -> tuple[Doubles, Doubles]:
        """[B, K]: the expected rate that is bet against, and the rate that is bet on."""
        low, high = self.band.low, self.band.high
        null = np.stack([low] * len(FEWER) + [high] * len(MORE))
        odds = null / (1 - null) * np.array(FEWER + MORE)[:, None]
        return null, odds / (1 + odds)


class Stakes:
    """What a hit and a miss gain, in nats, where the rate `bet` is bet on against `null`."""

    def __init__(self, null: Doubles, bet: Doubles) -> None:
        self.hit: Doubles = np.log(bet / null)
        self.miss: Doubles = np.log1p(-bet) - np.log1p(-null)

    def gains(self, hits: Doubles, predictions: int) -> Doubles:
        """Of `hits` [K] in `predictions`: the log likelihood ratio of the two rates."""
        gains: Doubles = hits * (self.hit - self.miss)
        gains += predictions * self.miss
        return gains

    def at(self, rates: Doubles) -> tuple[Doubles, Doubles]:
        """Mean (at least `NO_GAIN`) and standard deviation of a prediction's gain at `rates`."""
        mean = rates * self.hit + (1 - rates) * self.miss
        spread: Doubles = np.sqrt(rates * (1 - rates)) * np.abs(self.hit - self.miss)
        return mean.clip(NO_GAIN), spread


def time_to(nats: Doubles, gain: Doubles, spread: Doubles, sigmas: float = 1.645) -> Doubles:
    """Steps n with n gain - sigmas spread sqrt(n) = nats: a random walk's 95 % point."""
    half = sigmas * spread / (2 * gain)
    steps = (half + np.sqrt(half**2 + nats / gain)) ** 2
    return np.where(gain > NO_GAIN, steps, np.inf)
