"""Training photos set aside to choose on."""

from collections.abc import Sequence

import numpy as np

from models import UserError


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
