"""A long tail cut from a set that has none."""

import logging
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from models import UserError

# Photos are whole, and so a ratio comes out a little larger than it was asked for.
NEAR: Final = 0.1

logger = logging.getLogger(__name__)


def tail_counts(largest: int, classes: int, ratio: float) -> list[int]:
    """How many photos each class keeps: largest / ratio^(i / (C - 1)), rounded down.

    That is the exponential profile of CIFAR-100-LT (Cui et al. 2019, Cao et al. 2019); at least
    one photo is kept.
    """
    return [max(1, int(largest / ratio ** (place / (classes - 1)))) for place in range(classes)]


def tail_indices(labels: Sequence[int], classes: Sequence[str], ratio: float) -> list[int]:
    """Indices of the photos that stay when the set is cut to an imbalance ratio, in their order.

    The classes lose more and more photos from the largest to the smallest, equal ones in the order
    of their names; a class that has fewer than it may keep keeps all, and where the ratio of the
    largest to the smallest becomes another by that, a warning says which. Which photos stay is the
    same for the same set: the classes are shuffled one after the other by numpy's generator of old,
    seeded with 0, and the first ones are taken, which is how CIFAR-100-LT is made (Cao et al.
    2019). Raises `UserError` where `ratio` is below 1.
    """
    if not ratio >= 1:
        raise UserError(f"an imbalance ratio of {ratio:g} is below 1: give largest over smallest")
    counts = np.bincount(labels, minlength=len(classes))
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    order = sorted(range(len(classes)), key=lambda one: (-counts[one], classes[one]))
    wanted = tail_counts(int(counts.max()), len(classes), ratio)
    random = np.random.RandomState(0)
    kept: list[list[int]] = []
    for label, most in zip(order, wanted, strict=True):
        indices = by_class[label]
        random.shuffle(indices)
        kept.append(indices[:most].tolist())
    _check_ratio(len(kept[0]), len(kept[-1]), ratio)
    return sorted(index for indices in kept for index in indices)


def _check_ratio(largest: int, smallest: int, ratio: float) -> None:
    if not math.isclose(largest / smallest, ratio, rel_tol=NEAR):
        logger.warning(
            "an imbalance ratio of %g was asked for, and the photos give %.3g: %d of the largest "
            "class, %d of the smallest",
            ratio,
            largest / smallest,
            largest,
            smallest,
        )
