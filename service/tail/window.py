"""Recent predictions, class by class, in bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from taillift.service.tail.distributions import Doubles, Indices

# Of the confidence, from 0 to 1.
BINS: Final = 50
BUCKETS: Final = 12
QUANTILES: Final = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Bucket:
    """One part of the window. `number` is its position among such parts since 1970."""

    number: int
    histogram: npt.NDArray[np.uint32]


class Window:
    """Histograms [C, 50] of the confidence over the last `seconds`; their sums are the counts.

    The window is a ring of 12 buckets and their sum, so that it forgets a twelfth of itself at a
    time. A bucket takes 200 C bytes, however many predictions there are.
    """

    def __init__(self, classes: int, seconds: float) -> None:
        self._bucket_seconds = seconds / BUCKETS
        self._shape = (classes, BINS)
        self.buckets: list[Bucket] = []
        self.histogram = np.zeros(self._shape, np.int64)

    def number(self, now: float) -> int:
        """Return the number of the bucket that `now`, in seconds since 1970, belongs to."""
        return int(now // self._bucket_seconds)

    def add(self, labels: Indices, confidences: Doubles, now: float) -> None:
        self.forget(now)
        number = self.number(now)
        if not self.buckets or self.buckets[-1].number < number:
            self.buckets.append(Bucket(number, np.zeros(self._shape, np.uint32)))
        bins = (confidences * BINS).astype(np.int64).clip(0, BINS - 1)
        cells, counts = np.unique(labels * BINS + bins, return_counts=True)
        self.buckets[-1].histogram.reshape(-1)[cells] += counts.astype(np.uint32)
        self.histogram.reshape(-1)[cells] += counts

    def forget(self, now: float) -> None:
        """Drop the buckets that are older than the window at `now`, and those later than `now`.

        The latter are from a clock that was ahead. Nothing would be forgotten until their time.
        """
        newest = self.number(now)
        buckets, self.buckets = self.buckets, []
        for bucket in buckets:
            if newest - BUCKETS < bucket.number <= newest:
                self.buckets.append(bucket)
            else:
                self.histogram -= bucket.histogram

    def restore(self, buckets: Sequence[Bucket]) -> None:
        """Replace the content of the window by saved `buckets`, the oldest first."""
        self.buckets = list(buckets)
        self.histogram = np.zeros(self._shape, np.int64)
        for bucket in buckets:
            self.histogram += bucket.histogram

    @property
    def counts(self) -> Indices:
        """[C], the predictions of each class."""
        counts: Indices = self.histogram.sum(1)
        return counts


def quantiles(histogram: Indices) -> Doubles:
    """Return the 10 %, 50 % and 90 % quantiles [K, 3] of the confidence; NaN without predictions.

    `histogram` is [K, 50]. The quantiles are linear within a bin, so they are off by 0.02 at most.
    """
    below = np.cumsum(histogram, axis=1)
    totals = below[:, -1]
    result = np.full((len(histogram), len(QUANTILES)), np.nan)
    predicted = np.flatnonzero(totals)
    for column, share in enumerate(QUANTILES):
        wanted = share * totals[predicted]
        bins = (below[predicted] < wanted[:, None]).sum(1)
        inside = histogram[predicted, bins]
        into_bin = (wanted - (below[predicted, bins] - inside)) / inside
        result[predicted, column] = (bins + into_bin) / BINS
    return result
