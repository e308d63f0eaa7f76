"""Statistics of the training photos' features: enough to train a head again without the photos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.bundle.arrays import Counts, Doubles, Floats, Labels
from taillift.models.bundle.folder import read_arrays
from taillift.models.errors import UserError

STATISTICS: Final = "statistics.npz"
ARRAYS: Final = ("means", "covariance", "counts")
# The beginning of their names among the tensors of a checkpoint.
PREFIX: Final = "stats."
# The cosine by which a photo may be further from a class to count a third as much for its drift.
NEARNESS: Final = 0.1
TINY: Final = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class FeatureStatistics:
    """Each class's mean feature [C, D], one covariance [D, D] within classes, and photos [C].

    The features are the unit features of the photos' centre views. The covariance is that around
    the class means, pooled over all classes and shrunk; zeros if no class has two photos.
    """

    means: Floats
    covariance: Floats
    counts: Counts

    @classmethod
    def of(cls, features: Floats, labels: Labels, classes: int) -> "FeatureStatistics":
        """Measure unit features [N, D] of photos whose classes are `labels` [N].

        The covariance S is shrunk toward its mean variance m: (1 - b²/d²) S + (b²/d²) m I, with
        the share that Ledoit and Wolf (2004, section 3.2) derive from the spread of the residuals.
        A residual of a class with n photos is lengthened by sqrt(n / (n - 1)), because the mean
        that it is measured from is the photos' own, and counts as (n - 1) / n of a photo.
        """
        width = features.shape[1]
        counts = np.bincount(labels, minlength=classes)
        means = np.zeros((classes, width), np.float32)
        total, fourth, used, free = np.zeros((width, width)), 0.0, 0, 0
        order = np.argsort(labels, kind="stable")
        for index, rows in enumerate(np.split(order, np.cumsum(counts)[:-1])):
            if not len(rows):
                continue
            own = features[rows].astype(np.float64)
            means[index] = own.mean(0)
            if len(rows) > 1:
                residuals = (own - own.mean(0)) * np.sqrt(len(rows) / (len(rows) - 1))
                total += residuals.T @ residuals
                fourth += float(np.square(np.square(residuals).sum(1)).sum())
                used += len(rows)
                free += len(rows) - 1
        if used:
            covariance = total / used
            variance = float(np.trace(covariance)) / width
            target = variance * np.eye(width)
            apart = float(np.square(covariance - target).sum())
            error = (fourth / used - float(np.square(covariance).sum())) / free
            share = min(max(error, 0.0) / apart, 1.0) if apart > 0 else 0.0
            total = (1 - share) * covariance + share * target
        return cls(means, total.astype(np.float32), counts)

    def only(self, classes: Sequence[int | None]) -> "FeatureStatistics":
        """Return the statistics of these classes in this order; None is a class without photos."""
        rows = np.array([-1 if index is None else index for index in classes])
        known = rows >= 0
        return FeatureStatistics(
            np.where(known[:, None], self.means[rows], 0).astype(np.float32),
            self.covariance,
            np.where(known, self.counts[rows], 0),
        )

    def joined(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Return the statistics of the photos of both, which are about the same classes."""
        counts = self.counts + other.counts
        sums = self.counts[:, None] * self.means + other.counts[:, None] * other.means
        own, new = (float(np.maximum(part.counts - 1, 0).sum()) for part in (self, other))
        mixed = (own * self.covariance + new * other.covariance) / max(own + new, 1.0)
        means = sums / np.maximum(counts, 1)[:, None]
        return FeatureStatistics(means.astype(np.float32), mixed.astype(np.float32), counts)

    def moved(self, before: Floats, after: Floats) -> "FeatureStatistics":
        """Return the statistics after a change of the tower, from photos of other classes.

        Their unit features [N, D] were `before` and are `after` it. The mean of each class moves as
        the photos do, of which those near it count more: exp(cos / 0.1), as in the compensation of
        semantic drift (Yu et al. 2020, section 3.3, with another kernel). The covariance stays.
        """
        closeness = np.exp((unit(self.means) @ before.T - 1) / NEARNESS)
        weights = closeness / np.maximum(closeness.sum(1, keepdims=True), TINY)
        means = self.means + weights @ (after - before)
        # A class without photos has no mean that could move.
        means[self.counts == 0] = 0
        return FeatureStatistics(means.astype(np.float32), self.covariance, self.counts)

    def root(self) -> Floats:
        """Return the symmetric square root [D, D] of the covariance."""
        values, vectors = np.linalg.eigh(self.covariance.astype(np.float64))
        root: Doubles = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        return root.astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write the statistics next to a bundle's graph."""
        np.savez_compressed(folder / STATISTICS, allow_pickle=False, **self.arrays())

    def arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Return the three arrays by name; each name begins with `prefix`."""
        return {f"{prefix}{name}": getattr(self, name) for name in ARRAYS}

    @classmethod
    def read(cls, folder: Path, classes: int, width: int) -> "FeatureStatistics":
        """Read what `save` wrote of C `classes` with features of D = `width` numbers.

        Raises `UserError` if it is something else.
        """
        path = folder / STATISTICS
        arrays = dict(zip(ARRAYS, read_arrays(path, ARRAYS), strict=True))
        return cls.checked(arrays, path, classes, width)

    @classmethod
    def checked(
        cls, arrays: Mapping[str, np.ndarray], path: Path, classes: int, width: int
    ) -> "FeatureStatistics":
        """Return the statistics in `arrays`, which come from the file `path`.

        Raises `UserError` if they are not those of C `classes` with features of D = `width`
        numbers.
        """
        means, covariance, counts = (arrays[name] for name in ARRAYS)
        if not (
            (means.dtype, means.shape) == (np.dtype(np.float32), (classes, width))
            and (covariance.dtype, covariance.shape) == (np.dtype(np.float32), (width, width))
            and (counts.dtype, counts.shape) == (np.dtype(np.int64), (classes,))
            and np.isfinite(means).all()
            and np.isfinite(covariance).all()
            and (counts >= 0).all()
        ):
            raise UserError(
                f"{path} does not hold means float32 [{classes}, {width}], their covariance and "
                f"counts int64 [{classes}], all finite: make it again"
            )
        return cls(means, covariance, counts)


def unit(rows: Floats) -> Floats:
    """Return rows [N, D] at unit length; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    lengthened: Floats = (rows / np.maximum(lengths, TINY)).astype(np.float32)
    return lengthened
