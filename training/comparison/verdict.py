"""The verdict on the outcomes: does heavy fine-tuning hurt the tail here, and what to take?"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from taillift.models.bundle.schema import Group
from taillift.models.release.paired import QUANTILE, PairedCounts
from taillift.training.comparison.outcome import (
    Outcome,
    Row,
    abbreviate,
    kind_of,
    rows_of,
    succeeded,
)
from taillift.training.recipe.recipe import Aim

DRAWS: Final = 10_000
DRAWS_AT_ONCE: Final = 250
# Points that do not matter: heavy fine-tuning that loses fewer does no harm.
HARMLESS: Final = 1.0
# With fewer, an interval says too little about another seed or class.
MIN_SEEDS: Final = 2
MIN_CLASSES: Final = 5
LESS_LUCK: Final = "an average of several trainings depends less on luck"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The accuracy of a heavy recipe minus a light one's, in points, and its 95 % interval."""

    heavy: str
    light: str
    measure: Aim
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


def recommendation(
    outcomes: Sequence[Outcome], groups: Sequence[Group], aim: Aim = "mean-class"
) -> Recommendation | None:
    """Return which recipe to take, and why.

    The best has the highest accuracy that is aimed at, with five views, on the photos that recipes
    are chosen on. Another may be as good if the interval of their paired difference includes zero.
    A soup comes first: it costs as much to serve as one of its parents, and an average of several
    trainings has the luck of none. Without one, that which trains the fewest weights is taken.
    `groups` has one entry a class. None if fewer than two recipes succeeded, or if there are no
    photos of what is aimed at.
    """
    rows = [row for row in rows_of(outcomes) if succeeded(row.outcomes)]
    # Outcomes of earlier versions only have the accuracy of each class.
    by_photo = all(outcome.hits for row in rows for outcome, _ in succeeded(row.outcomes))
    means = {row.label: row_accuracy(row, groups, aim, by_photo) for row in rows}
    rows = [row for row in rows if not np.isnan(means[row.label])]
    if len(rows) < 2:
        return None
    best, *others = sorted(rows, key=lambda row: -means[row.label])
    weights = {row.label: row.trainable_parameters or 0 for row in rows}
    preferred = sorted(rows, key=lambda row: (not is_soup(row), weights[row.label]))
    before_best = preferred[: preferred.index(best)]
    photos = succeeded(best.outcomes)[0][0].chosen_on if by_photo else ""
    where = f"on {photos}, " if photos else ""
    what = "few-shot classes" if aim == "few" else "all classes on average"
    for row in before_best:
        pair = paired_difference(best, row, groups, aim, by_photo)
        if pair is not None and pair.low <= 0:
            merit = (
                f"trains {abbreviate(weights[best.label])} weights instead of "
                f"{abbreviate(weights[row.label])}"
            )
            return Recommendation(
                row,
                f"Take {row.label}: {where}{best.label} is {pair.points:.1f} points better on "
                f"{what} (95 % interval {pair.low:+.1f} to {pair.high:+.1f}), "
                f"which may be noise, and {LESS_LUCK if is_soup(row) else merit}.",
            )
    pair = paired_difference(best, (before_best or others)[0], groups, aim, by_photo)
    if is_soup(best):
        why = LESS_LUCK
    elif before_best:
        why = "recipes that train fewer weights are worse beyond noise"
        why = f"soups and {why}" if is_soup(before_best[0]) else why
    else:
        why = "none trains fewer weights"
    sure = "."
    if pair is not None:
        sure = (
            f": {pair.light} is {pair.points:.1f} points worse (95 % interval {pair.low:+.1f} to "
            f"{pair.high:+.1f})."
        )
    return Recommendation(
        best, f"Take {best.label}: {where}it is the best on {what}, and {why}{sure}"
    )


def is_soup(row: Row) -> bool:
    return row.recipe.soup is not None


def row_accuracy(row: Row, groups: Sequence[Group], aim: Aim, by_photo: bool) -> float:
    """Return the accuracy that is aimed at, in per cent, over seeds; NaN without photos of it."""
    rates = np.array([choice_rates(outcome, by_photo) for outcome, _ in succeeded(row.outcomes)])
    wanted = ~np.isnan(rates).any(0) & members(groups, aim)
    return float(rates[:, wanted].mean()) if wanted.any() else float("nan")


def members(groups: Sequence[Group], aim: Aim) -> npt.NDArray[np.bool_]:
    """Return which classes [C] an accuracy is the mean of."""
    return np.array([aim == "mean-class" or group == "few" for group in groups])


def choice_rates(outcome: Outcome, by_photo: bool) -> Floats:
    """Return the accuracy [C] on the photos that recipes are chosen on, in per cent; NaN if none.

    Unless `by_photo`, these are the photos that are compared on.
    """
    if not by_photo:
        return class_rates(outcome)
    return np.array(
        [100 * hits.count("1") / len(hits) if hits else np.nan for hits in outcome.hits]
    )


def paired_difference(
    one: Row, other: Row, groups: Sequence[Group], aim: Aim, by_photo: bool
) -> Difference | None:
    """Return the accuracy of `one` less that of `other`; None without a seed that both have.

    `by_photo`, the interval says how far other photos of these very classes, and other seeds, would
    move it. Else it is `interval`, and says nothing with fewer than `MIN_CLASSES` classes.
    """
    runs, other_runs = (
        {outcome.recipe.seed: outcome for outcome, _ in succeeded(row.outcomes)}
        for row in (one, other)
    )
    seeds = sorted(runs.keys() & other_runs.keys())
    if not seeds:
        return None
    rates = [
        choice_rates(runs[seed], by_photo) - choice_rates(other_runs[seed], by_photo)
        for seed in seeds
    ]
    wanted = ~np.isnan(rates).any(0) & members(groups, aim)
    points, classes = np.array(rates)[:, wanted], int(wanted.sum())
    if by_photo:
        low, high = photo_interval(
            [paired_counts(runs[seed], other_runs[seed], wanted) for seed in seeds]
        )
    elif classes < MIN_CLASSES:
        low, high = -100.0, 100.0
    else:
        low, high = interval(points)
    return Difference(
        heavy=one.label,
        light=other.label,
        measure=aim,
        points=float(points.mean()),
        low=low,
        high=high,
        seeds=len(seeds),
        classes=classes,
    )


def paired_counts(one: Outcome, other: Outcome, wanted: npt.NDArray[np.bool_]) -> PairedCounts:
    """Count the photos of the `wanted` classes [C] that only one of two runs gets right."""
    labels = np.repeat(np.arange(len(wanted)), [len(hits) for hits in one.hits])
    right, other_right = (np.array(list("".join(run.hits))) == "1" for run in (one, other))
    kept = wanted[labels]
    return PairedCounts.of(labels[kept], other_right[kept], right[kept])


def photo_interval(seeds: Sequence[PairedCounts]) -> tuple[float, float]:
    """Return the 95 % interval of a difference in points, from the same photos with each seed.

    To the photos' variance, which is taken as that of one seed, the variance of the mean over seeds
    is added: both err on the side of a wider interval.
    """
    ends = 100 * np.array([counts.interval for counts in seeds])
    photos = ((ends[:, 1] - ends[:, 0]) / 2 / QUANTILE) ** 2
    means = 100 * np.array([counts.difference for counts in seeds])
    between = means.var(ddof=1) / len(seeds) if len(seeds) > 1 else 0.0
    half = QUANTILE * np.sqrt(photos.mean() + between)
    centre = ends.mean()
    return float(centre - half), float(centre + half)


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
    classes: dict[Aim, npt.NDArray[np.bool_]] = {"few": few & present, "mean-class": present}
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
