"""The dependence of predictions on each other, learned from the stream itself."""

from typing import Final

import numpy as np

from taillift.service.tail.distributions import Doubles, Indices

# Counts are compared in blocks of these sizes, because dependence may be long or short.
SCALES: Final = (8, 32, 128, 512, 2048)
# Two blocks that are compared begin this many predictions apart, or one block if that is longer:
# the blocks next to each other would show the same things.
GAP: Final = 1024
# Labels that two blocks of the largest scale need, with those of a call of `learn`.
KEPT: Final = 2 * SCALES[-1]
LONGEST: Final = 128
# The recent mean forgets after so many predictions, or so many blocks if that is longer.
MEMORY, BLOCKS = 2048, 8
# Weight of the expected shares among the shares that were counted.
PRIOR: Final = 200.0
# Deviations of an estimate from 1 that count as chance, in standard errors.
GATE: Final = 3.5
# The first predictions may all show the same few things, and nothing in them would tell. So a
# stream is taken to be this dependent at its beginning, and less and less until `SETTLED`.
UNKNOWN, SETTLED = 64.0, 1500


class Dependence:
    """An estimate of the design effect of the class counts.

    The design effect is the variance of a count divided by that of independent draws (Kish 1965).
    It is the mean square of differences between two blocks, as in von Neumann (1941), at the scale
    where it is largest. A change of the rates hits few differences, so it is not taken for
    dependence. One mean is over all blocks and one over the recent ones.
    """

    def __init__(self, shares: Doubles) -> None:
        """`shares` [C] are the expected ones."""
        self._prior = PRIOR * shares / shares.sum()
        self.counts = np.zeros(len(shares))
        self.predictions = 0
        self.labels = np.zeros(0, np.int64)
        # Of all blocks and of the recent ones, by scale: number, sum and sum of squares.
        self.sums = np.zeros((2, len(SCALES), 3))

    def learn(self, labels: Indices) -> None:
        """Add at most `LONGEST` predictions in the order in which they came."""
        before = self.predictions
        self.predictions += len(labels)
        self.labels = np.concatenate([self.labels, labels])[-KEPT - LONGEST :]
        self.counts += np.bincount(labels, minlength=len(self.counts))
        spread = self._spreads().sum()
        for scale, size in enumerate(SCALES):
            keep = 1 - 1 / max(BLOCKS, MEMORY / size)
            for ratio in self._squares(size, before) / (2 * size * spread):
                self.sums[0, scale] += (1, ratio, ratio**2)
                self.sums[1, scale] *= keep
                self.sums[1, scale] += (1, ratio, ratio**2)

    def _spreads(self) -> Doubles:
        """[C], the variances of one prediction's counts."""
        shares = (self._prior + self.counts) / (PRIOR + self.predictions)
        spreads: Doubles = shares * (1 - shares)
        return spreads

    def _squares(self, size: int, before: int) -> Doubles:
        """Return |a - b|² for the counts a, b of each block since `before` and its counterpart."""
        blocks = np.arange(max(before // size, 1), self.predictions // size)
        apart = np.minimum(max(GAP // size, 1), (blocks + 1) // 2)
        first = self.predictions - len(self.labels)
        starts = np.stack([blocks, blocks - apart])[..., None] * size - first
        labels = self.labels[starts + np.arange(size)]
        classes = len(self.counts)
        cells = labels + classes * np.arange(len(blocks))[:, None]
        distinct, places = np.unique(cells, return_inverse=True)
        signs = np.broadcast_to(np.array([1.0, -1.0])[:, None, None], cells.shape)
        differences = np.bincount(places.ravel(), signs.ravel(), len(distinct))
        squares = np.bincount(distinct // classes, differences**2, len(blocks))
        return squares.astype(np.float64)

    @property
    def estimates(self) -> Doubles:
        """[scales], the estimates; what is within chance of independent predictions is 1."""
        spreads = self._spreads()
        freedom = spreads.sum() ** 2 / (spreads**2).sum()
        number, total, squares = np.moveaxis(self.sums, -1, 0)
        known = number >= 2
        number = number.clip(1)
        mean = total / number
        error = np.sqrt((squares / number - mean**2).clip(0) / number)
        chance = mean - 1 < GATE * np.sqrt(3 / (freedom * number))
        found: Doubles = np.where(known & ~chance, mean + error, 1.0).max(0).clip(1)
        for scale in np.flatnonzero(~known[0]):
            found[scale] = 1 + 4 * (found[scale - 1] - 1) if scale else 1.0
        return found

    @property
    def measured(self) -> float:
        """The design effect that was measured, at least 1."""
        return float(self.estimates.max())

    @property
    def design_effect(self) -> float:
        """The design effect that evidence has to be weakened by."""
        floor = 1 + (UNKNOWN - 1) * max(0.0, 1 - self.predictions / SETTLED)
        return max(floor, self.measured)

    def delay(self, steps: Doubles) -> Doubles:
        """Return the predictions from now on that are worth as many independent ones as `steps`."""
        unsettled = max(0, SETTLED - self.predictions)
        return np.maximum(steps * self.measured, unsettled)
