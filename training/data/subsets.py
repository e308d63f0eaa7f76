"""A long tail cut from a set that has none."""

import logging
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from taillift.models.errors import UserError

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


def holdout_indices(
    labels: Sequence[int], share: float, most: int, seed: int
) -> tuple[list[int], list[int]]:
    """Indices that stay and indices set aside: of each class a `share`, at most `most`.

    Of a class with two photos or more at least one is set aside and at least one stays; a class's
    only photo stays. Raises `UserError` where `share` is not between 0 and 1 or `most` below 1.
    """
    if not 0 < share < 1 or most < 1:
        raise UserError(
            f"a share of {share:g} and at most {most} photos cannot be set aside: give a share "
            "between 0 and 1, and 1 photo or more"
        )
    counts = np.bincount(labels)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    aside: set[int] = set()
    for label, indices in enumerate(by_class):
        count = held_count(len(indices), share, most)
        aside.update(np.random.default_rng((seed, label)).permutation(indices)[:count].tolist())
    stay = [index for index in range(len(labels)) if index not in aside]
    return stay, sorted(aside)


def held_count(photos: int, share: float, most: int) -> int:
    """How many of a class's photos are set aside."""
    return min(most, photos - 1, max(1, round(share * photos))) if photos > 1 else 0
