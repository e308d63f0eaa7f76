"""Measure what `taillift suggest` finds, against photos at random, on the backbone's features.

    python -m benchmarks.suggest [--data wardrobe-lt] [--share 0.5] [--photos 50] [--seeds 10]

A share of each class's training photos has labels, drawn by the seed, and the others are the pool.
A head learns the labelled photos' centre views, as `benchmarks.extend` does, and rules choose
photos of the pool by its probabilities. *Rare* is the share of them that is of classes with fewer
than 20 labelled photos; *rare classes* the share of these classes that is among them; *alike* the
mean cosine of each to the nearest other one, in per cent. Then a new head learns the labelled
photos and the chosen ones with their right labels: mean-class accuracy and that of the rare classes
on the test photos' centre views. Each figure is the mean of the seeds, with the standard error of
its difference to the first row, which is of the same draws. Results are written to
benchmarks/results/suggest.md.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from scipy.special import softmax

from benchmarks.extend import SCALE, Task
from benchmarks.photos import SAMPLE
from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.arrays import Doubles, Flags, Floats, Indices
from taillift.models.bundle.feature_statistics import FeatureStatistics
from taillift.models.bundle.head_training import train_head
from taillift.models.bundle.manifest import Thresholds
from taillift.models.lift.backbone import load_backbone
from taillift.service.inference.suggestion import CANDIDATES, PoolPhoto, diverse
from taillift.training.data.dataset import load_dataset

FEW: Final = Thresholds().few
# Returns the indices of the photos that a rule chooses, from probabilities [N, C], features [N, D],
# the rare classes, the number of photos, and a generator.
Rule = Callable[[Doubles, Floats, Indices, int, np.random.Generator], Sequence[int]]


def at_random(
    uniform: Doubles, _features: Floats, _few: Indices, count: int, random: np.random.Generator
) -> Sequence[int]:
    return [int(index) for index in random.permutation(len(uniform))[:count]]


def by(value: Callable[[Doubles, Indices], float], differing: bool = False) -> Rule:
    """Return the rule that takes the photos of the greatest value, or of them those that differ."""

    def rule(
        uniform: Doubles, features: Floats, few: Indices, count: int, _: np.random.Generator
    ) -> Sequence[int]:
        values = np.array([value(row, few) for row in uniform])
        best = [int(index) for index in np.argsort(-values, kind="stable")]
        if not differing:
            return best[:count]
        candidates = [
            PoolPhoto(Path(), uniform[index], features[index], float(values[index]))
            for index in best[: CANDIDATES * count]
        ]
        return [best[index] for index in diverse(candidates, count)]

    return rule


def mass(uniform: Doubles, few: Indices) -> float:
    return float(uniform[few].sum())


def doubt(uniform: Doubles, _few: Indices) -> float:
    return float(1 - uniform.max())


def mass_and_doubt(uniform: Doubles, few: Indices) -> float:
    return mass(uniform, few) * doubt(uniform, few)


def nothing(
    _uniform: Doubles, _features: Floats, _few: Indices, _count: int, _: np.random.Generator
) -> Sequence[int]:
    return []


RULES: Final[dict[str, Rule]] = {
    "at random": at_random,
    "no more labels": nothing,
    "doubt": by(doubt),
    "mass times doubt, diverse": by(mass_and_doubt, differing=True),
    "mass of rare classes": by(mass),
    "mass, diverse (suggest)": by(mass, differing=True),
}


def head(task: Task, chosen: Indices, seed: int) -> Floats:
    """Return the rows [C, D] of a head that learns the training photos at `chosen`."""
    features, labels = task.features[chosen], task.labels[chosen]
    statistics = FeatureStatistics.of(features, labels, len(task.counts))
    nothing = np.zeros(len(task.counts), np.int64)
    return train_head(task.start, SCALE, features, labels, statistics, nothing, seed)


def labelled_photos(task: Task, share: float, random: np.random.Generator) -> Flags:
    """Return which training photos [N] have labels: a share of each class, at least one."""
    kept = np.zeros(len(task.labels), bool)
    for label in range(len(task.counts)):
        own = random.permutation(np.flatnonzero(task.labels == label))
        kept[own[: max(1, round(share * len(own)))]] = True
    return kept


def measure(task: Task, share: float, count: int, seed: int) -> dict[str, list[float]]:
    """Return for each rule the rare share, the rare classes found, and both accuracies."""
    random = np.random.default_rng(seed)
    kept = labelled_photos(task, share, random)
    few = np.flatnonzero(np.bincount(task.labels[kept], minlength=len(task.counts)) < FEW)
    labelled, pool = np.flatnonzero(kept), np.flatnonzero(~kept)
    rows = head(task, labelled, seed)
    uniform = softmax(SCALE * (task.features[pool] @ rows.T).astype(np.float64), axis=1)
    measured = {}
    for name, rule in RULES.items():
        index = rule(uniform, task.features[pool], few, count, random)
        chosen = pool[np.array(index, np.int64)]
        rare = np.isin(task.labels[chosen], few)
        found = len(set(task.labels[chosen][rare].tolist()))
        accuracies = task.accuracies(head(task, np.concatenate([labelled, chosen]), seed))
        shares = [np.nan, np.nan, np.nan]
        if len(chosen):
            shares = [100 * rare.mean(), 100 * found / len(few), 100 * alike(task.features[chosen])]
        measured[name] = [*shares, accuracies.mean(), accuracies[few].mean()]
    return measured


def alike(features: Floats) -> float:
    """Return the mean cosine of unit features [N, D] with the nearest other ones."""
    cosines = features @ features.T
    np.fill_diagonal(cosines, -1)
    return float(cosines.max(1).mean())


def main() -> None:
    """Measure every rule with every seed, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=SAMPLE)
    parser.add_argument("--share", type=float, default=0.5, help="share of photos with a label")
    parser.add_argument("--photos", type=int, default=50, help="photos to choose")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    task = Task.of(load_dataset(options.data), load_backbone("default"))
    runs = [measure(task, options.share, options.photos, seed) for seed in range(options.seeds)]
    first = next(iter(RULES))
    table = []
    for name in RULES:
        values = np.array([run[name] for run in runs])
        gains = values - np.array([run[first] for run in runs])
        errors = gains.std(0, ddof=1) / np.sqrt(len(runs))
        cells = [f"{value:.1f}" for value in values.mean(0)]
        if name != first:
            differences = zip(gains.mean(0), errors, strict=True)
            cells = [
                f"{cell} ({gain:+.1f} ± {error:.1f})"
                for cell, (gain, error) in zip(cells, differences, strict=True)
            ]
        table.append([name, *("" if "nan" in cell else cell for cell in cells)])
    titles = ["chosen by", "rare, %", "rare classes, %", "alike, %", "mean-class", "rare classes"]
    write_result(RESULTS / "suggest.md", [markdown(titles, table)])


if __name__ == "__main__":
    main()
