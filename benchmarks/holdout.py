"""Sets training photos aside for validation, for data sets that have no val split."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from taillift.models.errors import UserError
from taillift.training.data.dataset import Dataset


def hold_out(dataset: Dataset, share: float = 0.2, most: int = 10, seed: int = 0) -> Dataset:
    """Return the set with some training photos as `val`; a set that has `val` stays as it is.

    `holdout_indices` says which. The classes keep their order, and so do the labels. Raises
    `UserError` if no class has two photos, and for the reasons of `holdout_indices`.
    """
    if dataset.val is not None:
        return dataset
    stay, aside = holdout_indices(dataset.train.labels, share, most, seed)
    if not aside:
        raise UserError(
            f"{dataset.name} has one training photo of each class, and none can be set aside: add "
            "some, or a val split"
        )
    return replace(dataset, train=dataset.train.only(stay), val=dataset.train.only(aside))


def holdout_indices(
    labels: Sequence[int], share: float, most: int, seed: int
) -> tuple[list[int], list[int]]:
    """Return the indices of the photos that stay and of those set aside, both sorted.

    A `share` of each class is set aside, but at most `most` photos. If a class has at least two
    photos, at least one is set aside and at least one stays; an only photo stays. Raises
    `UserError` if `share` is not between 0 and 1 or `most` is below 1.
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
        photos = len(indices)
        count = min(most, photos - 1, max(1, round(share * photos))) if photos > 1 else 0
        aside.update(np.random.default_rng((seed, label)).permutation(indices)[:count].tolist())
    stay = [index for index in range(len(labels)) if index not in aside]
    return stay, sorted(aside)
