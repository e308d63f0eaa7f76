"""Simulated bundles with known confusions, and streams of their predictions."""

from dataclasses import dataclass

import numpy as np

from taillift.models.bundle.schema import GROUPS, Group
from taillift.service.tail.confusion import Confusion, Pair, estimate_confusion
from taillift.service.tail.distributions import Doubles, Indices

RECALL = {"many": 0.85, "medium": 0.75, "few": 0.6}


@dataclass(frozen=True)
class SimulatedBundle:
    """A bundle with the true confusions `matrix` [C, C], and `pairs` from held-out photos."""

    groups: list[Group]
    counts: list[int]
    matrix: Doubles
    pairs: list[Pair]

    @property
    def confusion(self) -> Confusion:
        return estimate_confusion(self.groups, self.pairs)


def simulate(seed: int, held_out: int, per_group: int = 10) -> SimulatedBundle:
    """Return a bundle with `held_out` photos per class.

    Its classes differ in recall, and in how often images of other classes are predicted as them.
    """
    rng = np.random.default_rng(seed)
    groups: list[Group] = [group for group in GROUPS for _ in range(per_group)]
    size = len(groups)
    popularity = rng.gamma(0.5, 1, size) + 0.02
    matrix = np.zeros((size, size))
    pairs: list[Pair] = []
    for true, group in enumerate(groups):
        recall = rng.beta(6 * RECALL[group], 6 * (1 - RECALL[group]))
        errors = rng.dirichlet(0.3 * np.delete(popularity, true) + 1e-6)
        matrix[true] = np.insert((1 - recall) * errors, true, recall)
        drawn = rng.multinomial(held_out, matrix[true])
        pairs += [(true, int(label), int(drawn[label])) for label in np.flatnonzero(drawn)]
    counts = [int(500 * 0.87**rank) + 5 for rank in range(size)]
    return SimulatedBundle(groups, counts, matrix, pairs)


def few_shot_bundle(classes: int, recall: float = 0.9, held_out: int = 20) -> SimulatedBundle:
    """Return a bundle of few-shot classes, each mistaken for any other equally rarely."""
    matrix = np.full((classes, classes), (1 - recall) / (classes - 1))
    np.fill_diagonal(matrix, recall)
    hits = round(recall * held_out)
    pairs = [(true, true, hits) for true in range(classes)]
    pairs += [(true, (true + 1) % classes, held_out - hits) for true in range(classes)]
    return SimulatedBundle(["few"] * classes, [10] * classes, matrix, pairs)


def batches(rng: np.random.Generator, rates: Doubles, size: int, looks: int) -> Indices:
    """Return counts [looks, C] of `size` predictions each."""
    return rng.multinomial(size, rates / rates.sum(), looks)
