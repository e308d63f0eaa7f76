"""Simulates held-out photos of a model whose right temperatures are known."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.held_out import HeldOut

# The groups of nine classes, three in each.
NINE: list[Group] = [group for group in GROUPS for _ in range(3)]


def held_out(
    photos: int,
    temperatures: Sequence[float] = (1.0, 1.0, 1.0),
    seed: int = 0,
    groups: Sequence[Group] = NINE,
) -> HeldOut:
    """Return photos whose views are all the same and whose right temperatures are given.

    `temperatures` holds one for each group; the group of a photo is that of its predicted class.
    Labels are drawn from the softmax of random scores. The logits are these scores times the
    temperature.
    """
    random = np.random.default_rng(seed)
    scores = random.normal(0, 2.0, (photos, len(groups)))
    labels = draw(np.exp(scores), random)
    predicted = np.array([GROUPS.index(group) for group in groups])[scores.argmax(1)]
    return seen(scores * np.array(temperatures)[predicted, None], labels, groups)


def seen(
    logits: NDArray[np.floating], labels: NDArray[np.integer], groups: Sequence[Group] = NINE
) -> HeldOut:
    """Return photos whose five views have the same logits [N, C]."""
    rows = np.repeat(logits[:, None].astype(np.float32), VIEWS, axis=1)
    return HeldOut("simulated photos", "validation", rows, labels.astype(np.int64), groups)


def draw(weights: NDArray[np.floating], random: np.random.Generator) -> NDArray[np.int64]:
    """Draw a column of each row, int64 [N], in proportion to its weights [N, C]."""
    sums = weights.cumsum(1)
    return np.asarray((random.random((len(sums), 1)) * sums[:, -1:] > sums).sum(1))
