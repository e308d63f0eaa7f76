"""Paired differences: two models on the same photos, and how far chance alone carries them apart.

Only photos that one model gets right and the other gets wrong say which is better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from taillift.models.bundle.arrays import Counts, Flags, Labels

# The two-sided 95 % quantile of the normal distribution.
QUANTILE: Final = 1.96
# Photos' worth by which the spread of a class is shrunk toward that of all its photos together.
SHRINK: Final = 2.0
# Photos that are added to those gained, and to those lost.
ADDED: Final = 0.5


class PairedInterval(NamedTuple):
    """The ends of a 95 % interval, as shares."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedCounts:
    """Photos of each class [C]: all, those only the new model gets right, those only the old one.

    Every class has at least one photo.
    """

    photos: Counts
    gained: Counts
    lost: Counts

    @classmethod
    def of(cls, labels: Labels, old: Flags, new: Flags) -> "PairedCounts":
        """Count the classes that occur in `labels` [N]; `old` and `new` [N] say who is right."""
        classes, indices = np.unique(labels, return_inverse=True)
        gained, lost = new & ~old, old & ~new
        return cls(
            *(
                np.bincount(indices, weights, len(classes)).astype(np.int64)
                for weights in (None, gained, lost)
            )
        )

    @property
    def difference(self) -> float:
        """The difference of the mean accuracy over classes, new less old, as a share."""
        return float(((self.gained - self.lost) / self.photos).mean())

    @property
    def p_value(self) -> float:
        """The exact p-value of McNemar (1947) that the models are right equally often."""
        return mcnemar(int(self.gained.sum()), int(self.lost.sum()))

    @property
    def interval(self) -> PairedInterval:
        """The 95 % interval of the difference, given that classes are fixed and photos drawn.

        It is an adjusted Wald interval for paired shares (Bonett and Price 2012, equation 5, which
        adds a photo to those gained and one to those lost), with half a photo instead of one and
        with each class's own variance. The shares of a class are shrunk toward those of all classes
        together, because few photos often show no change at all. Resampling photos instead gives
        intervals that are too short (`python -m benchmarks.gate`).
        """
        classes = len(self.photos)
        weights = 1 / (classes * self.photos)
        # Kish's effective number of photos, as if all weighed the same.
        photos = 1 / float((self.photos * weights**2).sum())
        gained = self._shrunk(self.gained, float(weights @ self.gained))
        lost = self._shrunk(self.lost, float(weights @ self.lost))
        variances = (gained + lost - (gained - lost) ** 2) / self.photos
        scale = photos / (photos + 2 * ADDED)
        added = 2 * ADDED / (photos + 2 * ADDED) ** 2
        half = QUANTILE * math.sqrt(scale**2 * float(variances.sum()) / classes**2 + added)
        centre = scale * self.difference
        return PairedInterval(max(-1.0, centre - half), min(1.0, centre + half))

    def _shrunk(self, counts: Counts, toward: float) -> np.ndarray:
        shares: np.ndarray = (counts + SHRINK * toward) / (self.photos + SHRINK)
        return shares


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided probability of a split at least as uneven, if both ways are as likely.

    This is McNemar's test (1947) in its exact form: under the hypothesis the smaller number is
    binomial with a half.
    """
    changed = gained + lost
    ways = below = 1  # of choosing 0 photos, then 1, and so on
    for count in range(min(gained, lost)):
        ways = ways * (changed - count) // (count + 1)
        below += ways
    return min(1.0, below / 2 ** (changed - 1)) if changed else 1.0


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Return which hypotheses Holm's procedure (1979) rejects, [N].

    The probability that it rejects any true one is at most `level`.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    rejected = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected
