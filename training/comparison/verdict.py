"""The verdict on the outcomes: does heavy fine-tuning hurt the tail here, and what to take?"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from taillift.models.bundle.schema import Group
from taillift.training.comparison.outcome import (
    Outcome,
    Row,
    abbreviate,
    kind_of,
    rows_of,
    succeeded,
)

DRAWS: Final = 10_000
DRAWS_AT_ONCE: Final = 250
# Points that do not matter: heavy fine-tuning that loses fewer does no harm.
HARMLESS: Final = 1.0
# With fewer, an interval says too little about another seed or class.
MIN_SEEDS: Final = 2
MIN_CLASSES: Final = 5

Floats = npt.NDArray[np.float64]
Measure = Literal["few", "mean-class"]


@dataclass(frozen=True)
class Difference:
    """The accuracy of a heavy recipe minus a light one's, in points, and its 95 % interval."""

    heavy: str
    light: str
    measure: Measure
    points: float
    low: float
    high: float
    seeds: int
    classes: int

    @property
    def answer(self) -> Literal["yes", "no", "cannot tell"]:
        """Whether the heavy recipe does harm."""
        if self.seeds < MIN_SEEDS or self.classes < MIN_CLASSES:
            return "cannot tell"
        if self.low > -HARMLESS:
            return "no"
        return "yes" if self.high < 0 else "cannot tell"

    @property
    def reason(self) -> str:
        """The answer in a sentence."""
        classes = "few-shot classes" if self.measure == "few" else "all classes on average"
        side = "worse" if self.points < 0 else "better"
        finding = (
            f"{self.heavy} is {abs(self.points):.1f} points {side} than {self.light} on {classes} "
            f"(95 % interval {self.low:+.1f} to {self.high:+.1f})"
        )
        if self.seeds < MIN_SEEDS:
            return f"{finding}, but one seed cannot tell luck from method"
        if self.classes < MIN_CLASSES:
            return f"{finding}, but {self.classes} classes are too few to rely on"
        if self.answer == "cannot tell":
            return f"{finding}, and the interval includes harm as well as none"
        if self.answer == "no" and self.low < 0:
            return f"{finding}, so it loses less than {HARMLESS:g} point if any"
        return finding


@dataclass(frozen=True)
class Verdict:
    """All differences, grouped by heavy recipe; the first of each group decides."""

    differences: list[list[Difference]]

    @property
    def deciding(self) -> list[Difference]:
        """The first difference of each heavy recipe."""
        return [of_recipe[0] for of_recipe in self.differences]

    @property
    def headline(self) -> str:
        """The answer if all heavy recipes share it, else the answer for each."""
        answers = {difference.answer for difference in self.deciding}
        if len(answers) == 1:
            return f"{answers.pop().capitalize()}."
        parts = [f"{difference.heavy}: {difference.answer}" for difference in self.deciding]
        return "It depends: " + "; ".join(parts)


def compare_kinds(outcomes: Sequence[Outcome], groups: Sequence[Group]) -> Verdict | None:
    """Compare every heavy recipe with LIFT and the best other light one.

    `groups` has one entry a class. Few-shot classes decide, or all classes if there are none. None
    if a heavy or a light recipe is missing.
    """
    rows = [row for row in rows_of(outcomes) if succeeded(row.outcomes)]
    light = [row for row in rows if kind_of(row.recipe) == "light"]
    lift = [row for row in light if row.recipe.name == "lift"]
    others = [row for row in light if row.recipe.name != "lift"]
    best = max(others, key=lambda row: mean(row.values("full", "mean_class")), default=None)
    opponents = lift + ([best] if best else [])
    differences = []
    for heavy in rows:
        if kind_of(heavy.recipe) == "heavy":
            of_recipe = [pair for row in opponents for pair in differences_of(heavy, row, groups)]
            if of_recipe:
                differences.append(of_recipe)
    return Verdict(differences) if differences else None


@dataclass(frozen=True)
class Recommendation:
    """The recipe to take, and why, in a sentence."""

    row: Row
    reason: str

    @property
    def sentence(self) -> str:
        """The reason, and how to be surer of it."""
        if len(succeeded(self.row.outcomes)) >= MIN_SEEDS:
            return self.reason
        return f"{self.reason} One seed cannot tell luck from method: pass --seeds 0,1,2."


def recommendation(outcomes: Sequence[Outcome], groups: Sequence[Group]) -> Recommendation | None:
    """Return which recipe to take: the cheapest of those that may be as good as the best.

    The best has the highest mean-class accuracy with five views. Another may be as good if the
    interval of their paired difference includes zero, and is cheaper if it trains fewer weights.
    `groups` has one entry a class. None if fewer than two recipes succeeded.
    """
    rows = [row for row in rows_of(outcomes) if succeeded(row.outcomes)]
    if len(rows) < 2:
        return None
    best = max(rows, key=lambda row: mean(row.values("full", "mean_class")))
    weights = {row.label: row.trainable_parameters or 0 for row in rows}
    cheaper = [row for row in rows if weights[row.label] < weights[best.label]]
    for row in sorted(cheaper, key=lambda row: weights[row.label]):
        for pair in differences_of(best, row, groups):
            if pair.measure == "mean-class" and pair.low <= 0:
                return Recommendation(
                    row,
                    f"Take {row.label}: {best.label} is {pair.points:.1f} points better on all "
                    f"classes on average (95 % interval {pair.low:+.1f} to {pair.high:+.1f}), "
                    f"which may be noise, and trains {abbreviate(weights[best.label])} weights "
                    f"instead of {abbreviate(weights[row.label])}.",
                )
    why = "recipes that train fewer weights are worse beyond noise"
    return Recommendation(
        best,
        f"Take {best.label}: it is the best on all classes on average, and "
        f"{why if cheaper else 'none trains fewer weights'}.",
    )


def differences_of(heavy: Row, light: Row, groups: Sequence[Group]) -> list[Difference]:
    """Return the differences on few-shot and on all classes, with five views, over shared seeds.

    Only classes with held-out photos count. A measure without classes is left out.
    """
    rates, other_rates = (
        {outcome.recipe.seed: class_rates(outcome) for outcome, _ in succeeded(row.outcomes)}
        for row in (heavy, light)
    )
    seeds = sorted(rates.keys() & other_rates.keys())
    if not seeds:
        return []
    points = np.array([rates[seed] - other_rates[seed] for seed in seeds])
    present = ~np.isnan(points).any(0)
    few = np.array([group == "few" for group in groups])
    classes: dict[Measure, npt.NDArray[np.bool_]] = {"few": few & present, "mean-class": present}
    differences = []
    for measure, chosen in classes.items():
        if chosen.any():
            low, high = interval(points[:, chosen])
            differences.append(
                Difference(
                    heavy=heavy.label,
                    light=light.label,
                    measure=measure,
                    points=float(points[:, chosen].mean()),
                    low=low,
                    high=high,
                    seeds=len(seeds),
                    classes=int(chosen.sum()),
                )
            )
    return differences


def interval(differences: Floats) -> tuple[float, float]:
    """Return the 95 % interval of the mean of [S, C], by drawing seeds and classes again.

    Both are drawn with replacement and independently of each other: the pigeonhole bootstrap (Owen
    2007), which tends to overstate the variance and not to understate it.
    """
    random = np.random.default_rng(0)
    seeds, classes = differences.shape
    means = []
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        rows = random.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS_AT_ONCE) / seeds
        columns = random.multinomial(classes, np.full(classes, 1 / classes), DRAWS_AT_ONCE)
        means.append(((rows @ differences) * columns).sum(1) / classes)
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def class_rates(outcome: Outcome) -> Floats:
    """Return the accuracy [C] with five views in per cent; NaN for a class without photos."""
    return np.array([accuracy.full if accuracy else np.nan for accuracy in outcome.accuracies])
