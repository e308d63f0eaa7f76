"""Training photos dealt into folds, for logits of photos that a model has not seen."""

from collections.abc import Sequence
from typing import Final

import numpy as np

FOLDS: Final = 5
# Of one class: the surplus of frequent classes would cost time and teach little.
MOST: Final = 40


def deal(
    labels: Sequence[int], folds: int = FOLDS, most: int = MOST, seed: int = 0
) -> list[list[int]]:
    """Indices of the photos that each fold sets aside, by class and at most `most` of each.

    A class's photos are spread over the folds, and one of each class stays in training always: a
    class with a single photo is in no fold.
    """
    dealt: list[list[int]] = [[] for _ in range(folds)]
    counts = np.bincount(labels)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    first = 0
    for label, indices in enumerate(by_class):
        if len(indices) < 2:
            continue
        chosen = np.random.default_rng((seed, label)).permutation(indices)[:most]
        for photo in chosen.tolist():
            dealt[first % folds].append(photo)
            first += 1
    return [sorted(fold) for fold in dealt if fold]
