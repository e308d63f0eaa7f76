"""Classes and groups whose prediction rate has left the range that is expected of it.

Three parts: the confidence band of the rates that count as expected, the evidence against it (an
e-process per stream of predictions), and the test that decides by the evidence of all streams.
The test is sequential: it may be evaluated at any time and as often as one likes, and its error
rate holds. Each such evaluation is called a look.
"""

from typing import Final

import numpy as np

from taillift.service.tail.distributions import Doubles, Flags, Indices, log_beta
from taillift.service.tail.reference import Rates

# False discovery rate, and the relative change that does not count as drift.
LEVEL: Final = 0.05
TOLERANCE: Final = 0.1
# How the level is divided: for e-BH, for the bounds from held-out photos, and for the live bounds.
TEST_SHARE, HELD_OUT_SHARE, LIVE_SHARE = 0.6, 0.2, 0.2

# The band is narrowed again each time the stream has grown by this factor.
GROWTH: Final = 1.1
# Its bounds are found by so many steps at most, until a step is smaller than this.
STEPS, PRECISION = 60, 1e-9
FEWEST: Final = 1e-9
LOG_TINY: Final = float(np.log(1e-300))

# The time of a change is unknown, so bets start all the time; the unit of time is the number of
# predictions in which this many of the class are expected.
STEP: Final = 10.0
# The wealth not yet spent on bets decays with this power of time. A larger power finds early
# changes sooner and late ones later.
DECAY: Final = 0.25
# Cap the e-value at this multiple of the threshold, or recovery after a false alarm would take as
# long as the alarm did.
CAP: Final = 100.0
MAX_LOG_GAIN: Final = 600.0

# The bets: odds of the rate that is bet on, in units of the odds at the nearer end of the band.
FEWER: Final = (1 / 16, 1 / 4, 1 / 2, 3 / 4)
MORE: Final = (4 / 3, 2, 4, 16)
# A gain per prediction that counts as none, in nats.
NO_GAIN: Final = 1e-12


class ConfidenceBand:
    """For each of K streams, the range of rates from `low` to `high` that count as expected.

    It starts as the interval that the held-out photos leave open. While the stream goes on as it
    began, its own confidence sequence narrows the interval (Robbins' mixture with the held-out
    photos' beta distribution, as in Waudby-Smith and Ramdas 2024, section 2: valid at all times at
    once). The narrowest interval so far is kept, so that a rate which changes cannot take its band
    along. `tolerance` is the relative change, up or down, that an operator would not call drift.
    """

    def __init__(self, rates: Rates, coverage: float, level: float, tolerance: float) -> None:
        """`coverage` is that of the held-out photos' bounds, `level` the error rate of the live."""
        self._rates = rates
        self._level = level
        self._tolerance = tolerance
        self.narrowest = np.stack(rates.interval(coverage))
        self.counts = np.zeros(len(rates.a))
        self.predictions: Doubles | float = 0.0
        self.narrowed_at = 0.0

    @property
    def low(self) -> Doubles:
        low: Doubles = self.narrowest[0] / (1 + self._tolerance)
        return low

    @property
    def high(self) -> Doubles:
        """The upper end, with the tolerance applied to the odds so that it stays below 1."""
        odds = self.narrowest[1] / (1 - self.narrowest[1]) * (1 + self._tolerance)
        high: Doubles = odds / (1 + odds)
        return high

    def add(self, counts: Doubles, predictions: Doubles | float) -> bool:
        """Count a batch and return whether it is time to narrow the bands."""
        self.counts = self.counts + counts
        self.predictions = self.predictions + predictions
        return float(np.max(self.predictions)) >= GROWTH * self.narrowed_at

    def narrow(self, suspected: Flags) -> None:
        """Narrow the bands by what was counted; those of `suspected` streams stay."""
        self.narrowed_at = float(np.max(self.predictions))
        low, high = self._confidence_sequence()
        low = np.maximum(self.narrowest[0], low)
        high = np.minimum(self.narrowest[1], high)
        keep = suspected | (low >= high)
        self.narrowest = np.where(keep, self.narrowest, np.stack([low, high]))

    def _confidence_sequence(self) -> tuple[Doubles, Doubles]:
        """Return the current bounds: the rates at which the mixture likelihood ratio is `level`."""
        hits, misses = self.counts, self.predictions - self.counts
        after = log_beta(self._rates.a + hits, self._rates.b + misses)
        floor = np.log(self._level) + after - log_beta(self._rates.a, self._rates.b)
        low, high = log_lower_bound(hits, misses, floor), log_lower_bound(misses, hits, floor)
        return np.exp(low), -np.expm1(high)


def log_lower_bound(hits: Doubles, misses: Doubles, floor: Doubles) -> Doubles:
    """Return the logarithms [K] of the lowest rates whose log likelihood is at least `floor` [K].

    The log likelihood of `hits` and `misses` [K] is concave in the logarithm of the rate, so each
    step of Newton's method ends at or below the bound, and the next one ends nearer to it.
    """
    some = hits.clip(FEWEST)
    likeliest = -np.log1p(misses.clip(FEWEST) / some)
    excess = hits * likeliest + misses * np.log(-np.expm1(likeliest)) - floor
    # A parabola's estimate is the first guess. Without hits the bound is 0.
    width = np.sqrt(2 * excess.clip(FEWEST) * -np.expm1(likeliest) / some)
    guess = np.where(misses > 0, likeliest - width, floor / some)
    bounds: Doubles = np.where(hits > 0, guess.clip(LOG_TINY), LOG_TINY)
    open_ = np.flatnonzero(hits > 0)
    for _ in range(STEPS):
        before, left, right = bounds[open_], hits[open_], misses[open_]
        miss = -np.expm1(before)
        slope = left - right * (1 - miss) / miss
        step = (floor[open_] - left * before - right * np.log(miss)) / slope
        bounds[open_] = (before + step).clip(LOG_TINY)
        open_ = open_[np.abs(step) > PRECISION * np.minimum(-before, 1)]
        if not open_.size:
            break
    return bounds


class Evidence:
    """For each of K streams an e-process: the wealth of bets against what is expected of it.

    Each of B bets starts anew with every batch of predictions, with a part of one unit of wealth
    that is spent more and more slowly and never runs out: a mixture over the times of a change
    (the e-SR detector of Shin, Ramdas and Rinaldo 2023, equation 19, with starting weights that
    sum to 1). As long as a stream is as expected, the mean of its e-value is at most 1 at any time,
    however that time is chosen, and the chance that the e-value ever reaches 1/x is at most x
    (Ville). Memory is B K numbers, and a batch of any size costs O(B K).
    """

    def __init__(self, bets: int, rates: Doubles, cap: float) -> None:
        """`rates` [K] are the expected ones; the wealth of each bet stays below `cap`."""
        self._step = STEP / rates
        self._cap = cap
        self.wealth = np.zeros((bets, len(rates)))
        self.predictions: Doubles | float = 0.0
        self._staked = np.zeros(len(rates))

    def restore(self, wealth: Doubles, predictions: Doubles) -> None:
        """Continue from the `wealth` [B, K] after `predictions`."""
        self.wealth, self.predictions = wealth, predictions
        self._staked = self._spent(predictions)

    def update(self, gains: Doubles, predictions: Doubles | float) -> None:
        """Add a batch of `predictions` with the bets' log likelihood ratios `gains` [B, K].

        The rates of the ratios may depend on what came before the batch, but not on the batch.
        """
        before = self._staked
        self.predictions = self.predictions + predictions
        self._staked = self._spent(self.predictions)
        started = (self._staked - before) / len(self.wealth)
        factors = np.exp(gains.clip(-MAX_LOG_GAIN, MAX_LOG_GAIN))
        self.wealth = np.minimum((self.wealth + started) * factors, self._cap)

    @property
    def e_values(self) -> Doubles:
        """[K], the current e-values."""
        values: Doubles = self.wealth.sum(0) + 1 - self._staked
        return values

    def start_cost(self, gain: Doubles, predictions: Doubles | float) -> Doubles:
        """Return the nats [K] that a bet has to make up for its late and partial start.

        The bet gains `gain` [K] nats per prediction and starts after `predictions`. Bets that
        start before the first nat could have been earned are counted in.
        """
        started = self._spent(predictions + 1 / gain) - self._spent(predictions)
        nats: Doubles = 1 - np.log(started / len(self.wealth))
        return nats

    def _spent(self, predictions: Doubles | float) -> Doubles:
        """Return the share of the initial wealth [K] that is staked after `predictions`."""
        spent: Doubles = -np.expm1(-DECAY * np.log1p(predictions / self._step))
        return spent


def discoveries(e_values: Doubles, level: float) -> Flags:
    """Return the streams [K] that e-BH discovers (Wang and Ramdas 2022, section 4).

    The expected share of false ones among them is at most `level`, however the streams depend on
    each other.
    """
    order = np.argsort(-e_values, kind="stable")
    ranks = np.arange(1, len(e_values) + 1)
    enough = e_values[order] >= len(e_values) / (level * ranks)
    discovered = np.zeros(len(e_values), np.bool_)
    if enough.any():
        discovered[order[: ranks[enough][-1]]] = True
    return discovered


class Stakes:
    """Gains of a hit and of a miss, in nats, if the rate `bet` is bet on against `null`."""

    def __init__(self, null: Doubles, bet: Doubles) -> None:
        self.hit: Doubles = np.log(bet / null)
        self.miss: Doubles = np.log1p(-bet) - np.log1p(-null)

    def gains(self, hits: Doubles, predictions: Doubles | float) -> Doubles:
        """Return the log likelihood ratio of the two rates for `hits` [K] in `predictions`."""
        gains: Doubles = hits * (self.hit - self.miss)
        gains += predictions * self.miss
        return gains

    def moments(self, rates: Doubles) -> tuple[Doubles, Doubles]:
        """Return mean (at least `NO_GAIN`) and standard deviation of one prediction's gain."""
        mean = rates * self.hit + (1 - rates) * self.miss
        spread: Doubles = np.sqrt(rates * (1 - rates)) * np.abs(self.hit - self.miss)
        return mean.clip(NO_GAIN), spread


def steps_to_reach(nats: Doubles, gain: Doubles, spread: Doubles, sigmas: float = 1.645) -> Doubles:
    """Return the steps n with n gain - sigmas spread sqrt(n) = nats: a random walk's 95 % point."""
    half = sigmas * spread / (2 * gain)
    steps = (half + np.sqrt(half**2 + nats / gain)) ** 2
    return np.where(gain > NO_GAIN, steps, np.inf)


class Drift:
    """A sequential test for each of K streams, with the false discovery rate controlled.

    At every look the expected share of false discoveries is at most `level`. A discovery is false
    if the stream's rate has always been within its band; the chance that a band misses the true
    rate of its stream is included in `level`.
    """

    def __init__(self, rates: Rates, level: float = LEVEL, tolerance: float = TOLERANCE) -> None:
        streams = len(rates.a)
        self._level = TEST_SHARE * level
        self._streams = streams
        self.band = ConfidenceBand(
            rates,
            coverage=1 - HELD_OUT_SHARE * level / streams,
            level=LIVE_SHARE * level / streams,
            tolerance=tolerance,
        )
        self.evidence = Evidence(len(FEWER + MORE), rates.mean, CAP * self.threshold)
        self.place_bets()

    def place_bets(self) -> None:
        """Place the bets [B, K] against the current band: some for fewer, some for more."""
        low, high = self.band.low, self.band.high
        null = np.stack([low] * len(FEWER) + [high] * len(MORE))
        odds = null / (1 - null) * np.array(FEWER + MORE)[:, None]
        self._stakes = Stakes(null, odds / (1 + odds))

    @property
    def threshold(self) -> float:
        """The e-value that is enough for a discovery even if no other stream drifts."""
        return self._streams / self._level

    def update(self, counts: Indices | Doubles, predictions: Doubles | float) -> None:
        """Add the `counts` [K] of a batch of `predictions`.

        They are those of independent predictions. If predictions depend on each other, both are to
        be divided by the design effect before, which may differ between streams [K].
        """
        hits = np.asarray(counts, np.float64)
        before = self.e_values
        self.evidence.update(self._stakes.gains(hits, predictions), predictions)
        if self.band.add(hits, predictions):
            self.band.narrow(np.maximum(before, self.e_values) * self._level > 1)
            self.place_bets()

    @property
    def e_values(self) -> Doubles:
        return self.evidence.e_values

    @property
    def found(self) -> Flags:
        """[K], the streams that are found to drift."""
        return discoveries(self.e_values, self._level)

    @property
    def direction(self) -> Indices:
        """[K], 1 if the evidence is for more predictions than expected, -1 if for fewer."""
        fewer, more = np.split(self.evidence.wealth, [len(FEWER)])
        return np.where(more.sum(0) > fewer.sum(0), 1, -1)

    def delay(self, rates: Doubles, after: int | None = None) -> Doubles:
        """Return the predictions [K] within which 95 of 100 changes to `rates` are found.

        The change happens `after` so many predictions, or now. Infinite if the new rate is within
        the band, or almost.
        """
        gain, spread = self._stakes.moments(rates)
        start = self.evidence.predictions if after is None else after
        nats = np.log(self.threshold) + self.evidence.start_cost(gain, start)
        needed: Doubles = steps_to_reach(nats, gain, spread).min(0)
        return needed
