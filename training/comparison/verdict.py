"""Does heavy fine-tuning hurt the tail here? The papers' question, answered from the outcomes."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from taillift.models.bundle.schema import Group
from taillift.training.comparison.outcome import Outcome, kind_of, succeeded
from taillift.training.comparison.table import Row, rows_of

Answer = Literal["yes", "no", "cannot tell"]
Floats = npt.NDArray[np.float64]

DRAWS: Final = 10_000
DRAWS_AT_ONCE: Final = 250
# Points that do not matter: heavy fine-tuning that loses fewer does no harm.
MARGIN: Final = 1.0
# Below these an interval says too little of what another seed or class would give.
FEWEST_SEEDS: Final = 2
FEWEST_CLASSES: Final = 5


@dataclass(frozen=True)
class Difference:
    """Accuracy of a heavy recipe minus a light one's, in points, and its 95 % interval."""

    heavy: str
    light: str
    measure: Literal["few", "mean-class"]
    points: float
    low: float
    high: float
    seeds: int
    classes: int

    @property
    def answer(self) -> Answer:
        """Whether the heavy recipe does harm."""
        if self.seeds < FEWEST_SEEDS or self.classes < FEWEST_CLASSES:
            return "cannot tell"
        if self.low > -MARGIN:
            return "no"
        return "yes" if self.high < 0 else "cannot tell"

    @property
    def reason(self) -> str:
        """The answer in a sentence."""
        what = "few-shot classes" if self.measure == "few" else "all classes on average"
        side = "worse" if self.points < 0 else "better"
        found = (
            f"{self.heavy} is {abs(self.points):.1f} points {side} than {self.light} on {what} "
            f"(95 % interval {self.low:+.1f} to {self.high:+.1f})"
        )
        if self.seeds < FEWEST_SEEDS:
            return f"{found}, but one seed cannot tell luck from method"
        if self.classes < FEWEST_CLASSES:
            return f"{found}, but {self.classes} classes are too few to go by"
        if self.answer == "cannot tell":
            return f"{found}, and the interval holds harm as well as none"
        if self.answer == "no" and self.low < 0:
            return f"{found}, so it loses less than {MARGIN:g} point if any"
        return found


@dataclass(frozen=True)
class Verdict:
    """All differences, by heavy recipe; the first of each decides."""

    differences: list[list[Difference]]

    @property
    def deciding(self) -> list[Difference]:
        return [ones[0] for ones in self.differences]

    @property
    def headline(self) -> str:
        answers = {one.answer for one in self.deciding}
        if len(answers) == 1:
            return f"{answers.pop().capitalize()}."
        return "It depends: " + "; ".join(f"{one.heavy}: {one.answer}" for one in self.deciding)


def judge(outcomes: Sequence[Outcome], groups: Sequence[Group]) -> Verdict | None:
    """Every heavy recipe against LIFT and the best other light one; `groups` of each class.

    Few-shot classes decide, or all where there are none. None where heavy or light is missing.
    """
    rows = [row for row in rows_of(outcomes) if succeeded(row.outcomes)]
    heavy = [row for row in rows if kind_of(row.recipe) == "heavy"]
    light = _opponents([row for row in rows if kind_of(row.recipe) == "light"])
    found = [_differences(one, light, groups) for one in heavy]
    differences = [ones for ones in found if ones]
    return Verdict(differences) if differences else None


def interval(differences: Floats) -> tuple[float, float]:
    """95 % interval of the mean of [S, C], by drawing seeds and classes with replacement.

    The two are drawn independently of each other: the pigeonhole bootstrap (Owen 2007), which
    rather overstates the variance than understates it.
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


def _opponents(light: Sequence[Row]) -> list[Row]:
    """LIFT, and the best of the others by mean-class accuracy."""
    lift = [row for row in light if row.recipe.name == "lift"]
    others = [row for row in light if row.recipe.name != "lift"]
    best = max(others, key=lambda row: mean(row.values("full", "mean_class")), default=None)
    return lift + ([best] if best else [])


def _differences(heavy: Row, opponents: Sequence[Row], groups: Sequence[Group]) -> list[Difference]:
    few = np.array([group == "few" for group in groups])
    found = []
    for light in opponents:
        points = _paired(heavy, light)
        if not len(points):
            continue
        present = ~np.isnan(points).any(0)
        for measure, chosen in (("few", few & present), ("mean-class", present)):
            if chosen.any():
                found.append(_difference(heavy, light, measure, points[:, chosen]))
    return found


def _difference(heavy: Row, light: Row, measure: str, points: Floats) -> Difference:
    low, high = interval(points)
    return Difference(
        heavy=heavy.label,
        light=light.label,
        measure="few" if measure == "few" else "mean-class",
        points=float(points.mean()),
        low=low,
        high=high,
        seeds=points.shape[0],
        classes=points.shape[1],
    )


def _paired(heavy: Row, light: Row) -> Floats:
    """[S, C]: differences of class accuracies with five views, of the seeds that both have."""
    one, other = _rates(heavy), _rates(light)
    return np.array([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])


def _rates(row: Row) -> dict[int, Floats]:
    return {one.recipe.seed: class_rates(one) for one, _ in succeeded(row.outcomes)}


def class_rates(outcome: Outcome) -> Floats:
    """[C], accuracy with five views in per cent; NaN without a held-out photo."""
    return np.array([one.full if one else np.nan for one in outcome.accuracies])
