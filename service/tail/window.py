"""What was predicted of late, class by class, in bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from taillift.service.tail.distributions import Doubles, Indices

# Of confidence from 0 to 1.
BINS: Final = 50
BUCKETS: Final = 12
QUANTILES: Final = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Bucket:
    """One part of the window: `number` counts such parts since 1970."""

    number: int
    histogram: npt.NDArray[np.uint32]


class Window:
    """Histograms [C, 50] of confidence over the last `seconds`, of which the counts follow.

    Kept as a ring of 12 parts and their sum, so that what is older than the window is forgotten a
    twelfth of it at a time: 200 C bytes a part, whatever the traffic.
    """

    def __init__(self, classes: int, seconds: float) -> None:
        self._bucket_seconds = seconds / BUCKETS
        self._shape = (classes, BINS)
        self.buckets: list[Bucket] = []
        self.histogram = np.zeros(self._shape, np.int64)

    def number(self, now: float) -> int:
        """Of the part that `now`, in seconds since 1970, belongs to."""
        return int(now // self._bucket_seconds)

    def add(self, labels: Indices, confidences: Doubles, now: float) -> None:
        self.forget(now)
        number = self.number(now)
        if not self.buckets or self.buckets[-1].number < number:
            self.buckets.append(Bucket(number, np.zeros(self._shape, np.uint32)))
        bins = (confidences * BINS).astype(np.int64).clip(0, BINS - 1)
        places, counts = np.unique(labels * BINS + bins, return_counts=True)
        self.buckets[-1].histogram.reshape(-1)[places] += counts.astype(np.uint32)
        self.histogram.reshape(-1)[places] += counts

    def forget(self, now: float) -> None:
        """Drop the parts that the window at `now` no longer reaches."""
        oldest = self.number(now) - BUCKETS
        while self.buckets and self.buckets[0].number <= oldest:
            self.histogram -= self.buckets.pop(0).histogram

    def restore(self, buckets: Sequence[Bucket]) -> None:
        """Put kept parts, oldest first, in the place of what is there."""
        self.buckets = list(buckets)
        self.histogram = np.zeros(self._shape, np.int64)
        for bucket in buckets:
            self.histogram += bucket.histogram

    @property
    def counts(self) -> Indices:
        """[C]"""
        counts: Indices = self.histogram.sum(1)
        return counts


def quantiles(histogram: Indices) -> Doubles:
    """[K, 3]: the confidence below which 10, 50 and 90 of 100 lie; NaN without any.

    Of histograms [K, 50], linear within a bin: 0.02 off at most.
    """
    below = np.cumsum(histogram, axis=1)
    totals = below[:, -1]
    result = np.full((len(histogram), len(QUANTILES)), np.nan)
    seen = np.flatnonzero(totals)
    for column, share in enumerate(QUANTILES):
        wanted = share * totals[seen]
        bins = (below[seen] < wanted[:, None]).sum(1)
        inside = histogram[seen, bins]
        into = (wanted - (below[seen, bins] - inside)) / inside
        result[seen, column] = (bins + into) / BINS
    return result
