"""Photos dealt into folds, for answers to those that a fit has not seen."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from training.data.split import Split

FOLDS: Final = 5
# Of one class: the surplus of frequent classes would cost time and teach little.
MOST: Final = 40


def originals(split: Split) -> list[int]:
    """For each photo the first with the same content and label: its own index, but for copies."""
    sizes = Counter(photo.size for photo in split.photos)
    first: dict[tuple[int, int, bytes], int] = {}
    found = []
    for index, (photo, label) in enumerate(zip(split.photos, split.labels, strict=True)):
        # Only what has the same size can be a copy, and has to be read.
        alike = sizes[photo.size] > 1
        content = hashlib.sha256(photo.read()).digest() if alike else b""
        found.append(first.setdefault((photo.size, label, content), index))
    return found


def spread(labels: npt.NDArray[np.int64], seed: int = 0) -> npt.NDArray[np.int64]:
    """The fold [N] of each of held-out photos, every class in all of them as evenly as can be."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % FOLDS
    return fold


def deal(
    labels: Sequence[int], folds: int = FOLDS, most: int = MOST, seed: int = 0
) -> list[list[int]]:
    """Indices of the training photos that each fold sets aside, at most `most` of each class.

    A class's photos are spread over the folds, and one of each class stays in training always: a
    class with a single photo is in no fold. Copies of a photo are to be left out of `labels`.
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
