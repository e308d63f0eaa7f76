"""Predictions of how long work takes, from how long past work took."""

from collections.abc import Sequence
from typing import Final

import numpy as np

# Weight of the newest measurement in a moving average.
NEWEST: Final = 0.2

# The slowest work counts as so many times what was expected. One odd image may take a hundred times
# as long as its size suggests, and then all others would seem too slow to be let in.
SLOWEST: Final = 3.0


class MovingAverage:
    """A running mean in which older values fade."""

    def __init__(self, value: float) -> None:
        self.value = value

    def update(self, value: float) -> None:
        self.value += NEWEST * (value - self.value)


class LatencyModel:
    """The line `seconds = slope * count + base`, times a factor that follows the newest work.

    At least two warm batches of different sizes give the line. Requests cannot: batches of one size
    may follow each other for hours, which do not tell slope from base. They move only the factor,
    which stands for whatever makes everything slower or faster.
    """

    def __init__(self, slope: float = 0.0, base: float = 0.0) -> None:
        self.slope = slope
        self.base = base
        self._factor = MovingAverage(1.0)

    def fit(self, counts: Sequence[int], seconds: Sequence[float]) -> None:
        """Fit the line with the least squares of relative errors; slope and base are not negative.

        Batches of one size, or a fit that is negative, give a line through the origin.
        """
        sizes, times = np.asarray(counts, np.float64), np.asarray(seconds, np.float64)
        design = np.stack([sizes, np.ones_like(sizes)], 1) / times[:, None]
        slope, base = np.linalg.lstsq(design, np.ones_like(times), rcond=None)[0]
        if base < 0 or slope <= 0 or len(set(counts)) < 2:
            slope, base = float((times / sizes).mean()), 0.0
        self.slope, self.base = float(slope), float(base)
        self._factor = MovingAverage(1.0)

    def update(self, count: int, seconds: float) -> None:
        """Learn from one batch of `count`."""
        if (line := self.slope * count + self.base) > 0:
            self._factor.update(min(seconds / line, SLOWEST * self._factor.value))

    def seconds(self, count: float, batch: float = float("inf")) -> float:
        """Predict the seconds of `count` in batches of at most `batch`; 0 for nothing."""
        batches = max(1.0, count / batch) if count > 0 else 0.0
        return self._factor.value * (self.slope * count + self.base * batches)
