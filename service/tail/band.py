"""The rates that count as expected: from held-out photos, narrowed by the live stream."""

from typing import Final

import numpy as np

from service.tail.exact import Doubles, Flags, log_beta
from service.tail.reference import Rates

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
