"""Which streams of predictions have left the rates that are expected of them."""

from typing import Final

import numpy as np

from taillift.service.tail.distributions import Doubles, Flags, Indices, log_beta
from taillift.service.tail.reference import Rates

HALVINGS: Final = 30
# The stream teaches again when it has grown by this much.
GROWTH: Final = 1.1


class Band:
    """For each of K streams the rates from `low` to `high` that are as expected.

    At first they are what the held-out photos leave open. While the stream goes on as it began,
    its own confidence sequence narrows them (Robbins' mixture with the held-out photos' beta
    distribution, as in Waudby-Smith and Ramdas 2024, section 2: valid at all times at once). The
    narrowest band so far is kept, so that a rate which changes cannot take its band along.
    `tolerance` is the relative change, up or down, that an operator would not call one.
    """

    def __init__(self, rates: Rates, coverage: float, level: float, tolerance: float) -> None:
        """`coverage` of the held-out photos' bounds; `level`: the chance that the live ones err."""
        self._rates = rates
        self._level = level
        self._tolerance = tolerance
        self.narrowest = np.stack(rates.band(coverage))
        self.counts = np.zeros(len(rates.a))
        self.predictions = 0
        self.taught = 0

    @property
    def low(self) -> Doubles:
        low: Doubles = self.narrowest[0] / (1 + self._tolerance)
        return low

    @property
    def high(self) -> Doubles:
        """A tolerance on the odds, so that it stays below 1."""
        odds = self.narrowest[1] / (1 - self.narrowest[1]) * (1 + self._tolerance)
        high: Doubles = odds / (1 + odds)
        return high

    def learn(self, counts: Doubles, predictions: int, suspected: Flags) -> bool:
        """Take in a batch, and tell whether bands changed; those of `suspected` streams stay."""
        self.counts = self.counts + counts
        self.predictions += predictions
        if self.predictions < GROWTH * self.taught:
            return False
        self.taught = self.predictions
        low, high = self._live()
        low = np.maximum(self.narrowest[0], low)
        high = np.minimum(self.narrowest[1], high)
        keep = suspected | (low >= high)
        self.narrowest = np.where(keep, self.narrowest, np.stack([low, high]))
        return True

    def _live(self) -> tuple[Doubles, Doubles]:
        """The confidence sequence's bounds now."""
        hits, misses = self.counts, self.predictions - self.counts
        after = log_beta(self._rates.a + hits, self._rates.b + misses)
        floor = np.log(self._level) + after - log_beta(self._rates.a, self._rates.b)

        def within(rate: Doubles) -> Flags:
            flags: Flags = hits * np.log(rate) + misses * np.log1p(-rate) >= floor
            return flags

        centre = ((hits + 0.5) / (self.predictions + 1)).clip(1e-12, 1 - 1e-12)
        low_out, low_in = np.full(len(hits), 1e-300), centre
        high_in, high_out = centre, np.full(len(hits), 1 - 1e-16)
        for _ in range(HALVINGS):
            low, high = (low_out + low_in) / 2, (high_in + high_out) / 2
            low_ok, high_ok = within(low), within(high)
            low_out, low_in = np.where(low_ok, low_out, low), np.where(low_ok, low, low_in)
            high_in, high_out = np.where(high_ok, high, high_in), np.where(high_ok, high_out, high)
        return low_out, high_out


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
