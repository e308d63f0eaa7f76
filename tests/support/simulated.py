"""Held-out photos of a model whose right confidence is known."""

from collections.abc import Sequence

import numpy as np

from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.calibration.held_out import HeldOut

# Of nine classes, three a group.
NINE: list[Group] = [group for group in GROUPS for _ in range(3)]


def held_out(
    photos: int,
    temperatures: Sequence[float] = (1.0, 1.0, 1.0),
    seed: int = 0,
    groups: Sequence[Group] = NINE,
) -> HeldOut:
    """Views alike, and the right temperature of each group of the predicted class.

    Labels are drawn from the softmax of random scores, which the logits are a multiple of.
    """
    random = np.random.default_rng(seed)
    scores = random.normal(0, 2.0, (photos, len(groups)))
    labels = draw(np.exp(scores), random)
    predicted = np.array([GROUPS.index(group) for group in groups])[scores.argmax(1)]
    return seen(scores * np.array(temperatures)[predicted, None], labels, groups)


def seen(logits: np.ndarray, labels: np.ndarray, groups: Sequence[Group] = NINE) -> HeldOut:
    """Five views with the same logits [N, C]."""
    rows = np.repeat(logits[:, None].astype(np.float32), VIEWS, axis=1)
    return HeldOut("simulated photos", "validation", rows, labels.astype(np.int64), groups)


def draw(weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A column of each row, as often as its weight [N, C] says."""
    sums = weights.cumsum(1)
    return np.asarray((random.random((len(sums), 1)) * sums[:, -1:] > sums).sum(1))
