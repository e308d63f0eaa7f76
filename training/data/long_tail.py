"""Cuts the training photos of a set to a long tail."""

import logging
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from taillift.models.errors import UserError

# Counts are rounded down to whole photos, so the resulting ratio may differ a little.
RATIO_TOLERANCE: Final = 0.1

logger = logging.getLogger(__name__)


def tail_counts(largest: int, classes: int, ratio: float) -> list[int]:
    """Return how many photos each class keeps: largest / ratio^(i / (C - 1)), rounded down.

    This is the exponential profile of CIFAR-100-LT (Cui et al. 2019, Cao et al. 2019). Every class
    keeps at least one photo.
    """
    return [max(1, int(largest / ratio ** (index / (classes - 1)))) for index in range(classes)]


def tail_indices(labels: Sequence[int], classes: Sequence[str], ratio: float) -> list[int]:
    """Return the sorted indices of the photos that stay after a cut to an imbalance ratio.

    From the largest class to the smallest, each loses more photos than the one before; classes of
    equal size are in the order of their names. A class with fewer photos than its share keeps them
    all. A warning says if the ratio of the largest to the smallest class becomes another because of
    this.

    The choice is always the same for the same set. As for CIFAR-100-LT (Cao et al. 2019), numpy's
    old generator, seeded with 0, shuffles one class after the other, and the first photos stay.

    Raises `UserError` if `ratio` is below 1.
    """
    if not ratio >= 1:
        raise UserError(f"an imbalance ratio of {ratio:g} is below 1: give largest over smallest")
    counts = np.bincount(labels, minlength=len(classes))
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    order = sorted(range(len(classes)), key=lambda label: (-counts[label], classes[label]))
    quotas = tail_counts(int(counts.max()), len(classes), ratio)
    random = np.random.RandomState(0)
    kept: list[list[int]] = []
    for label, quota in zip(order, quotas, strict=True):
        indices = by_class[label]
        random.shuffle(indices)
        kept.append(indices[:quota].tolist())
    largest, smallest = len(kept[0]), len(kept[-1])
    if not math.isclose(largest / smallest, ratio, rel_tol=RATIO_TOLERANCE):
        logger.warning(
            "the photos give an imbalance ratio of %.3g instead of %g: the largest class has %d, "
            "the smallest %d",
            largest / smallest,
            ratio,
            largest,
            smallest,
        )
    return sorted(index for indices in kept for index in indices)
