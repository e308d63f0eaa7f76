"""The outcomes of a comparison as rows: results.csv, and a table of means and spreads."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Final, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from taillift.models.bundle.atomic import atomic_file
from taillift.models.bundle.manifest import Scores
from taillift.training.comparison.outcome import Outcome, succeeded
from taillift.training.recipe.recipe import Recipe

Views = Literal["single", "full"]
VIEWS: Final[dict[Views, str]] = {"single": "one view", "full": "five views"}
COLUMNS: Final[tuple[tuple[Views, str], ...]] = (
    ("single", "mean_class"),
    ("single", "few"),
    ("full", "overall"),
    ("full", "mean_class"),
    ("full", "many"),
    ("full", "medium"),
    ("full", "few"),
)


@dataclass(frozen=True)
class Row:
    """One recipe with all its seeds; no other row has its label."""

    label: str
    recipe: Recipe
    outcomes: list[Outcome]

    @property
    def trainable_parameters(self) -> int | None:
        """None where every run failed."""
        return next((one.trainable_parameters for one, _ in succeeded(self.outcomes)), None)

    def values(self, views: Views, measure: str) -> list[float]:
        """In per cent, one a seed; none of a group without photos, or where the run failed."""
        found = [getattr(getattr(one, views), measure) for _, one in succeeded(self.outcomes)]
        return [value for value in found if value is not None]

    @property
    def cells(self) -> list[str]:
        """Of the table: trainable parameters, and the measures of `COLUMNS`."""
        trained = self.trainable_parameters
        first = "-" if trained is None else short(trained)
        return [first, *(spread(self.values(views, measure)) for views, measure in COLUMNS)]


def rows_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """By recipe, in the order of their first outcomes."""
    names = dict.fromkeys(one.recipe.name for one in outcomes)
    by_name = {name: [one for one in outcomes if one.recipe.name == name] for name in names}
    labels = labels_of(one.recipe for one in outcomes)
    return [Row(labels[name], ones[0].recipe, ones) for name, ones in by_name.items()]


def labels_of(recipes: Iterable[Recipe]) -> dict[str, str]:
    """By recipe's name, what people know it by: its title, and the name, too, of like titles.

    One that is started from another's YAML has the other's title until it is given its own.
    """
    titles = {one.name: one.title for one in recipes}
    count = Counter(titles.values())
    return {
        name: title if count[title] == 1 else f"{title} ({name})" for name, title in titles.items()
    }


def short(number: int) -> str:
    """Three digits and a unit: 842, 76.8 k, 178 k, 85.1 M."""
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        # What rounds to 1,000 of a unit is one of the next.
        if number >= 0.9995 * size:
            return f"{number / size:#.3g}".rstrip(".") + unit
    return str(number)


def spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation where there are several."""
    if not values:
        return "-"
    deviation = f" ±{stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{deviation}"


def headings() -> list[tuple[str, str]]:
    """Views and measure above each of a row's cells."""
    measures = [(VIEWS[views], measure.replace("_", "-")) for views, measure in COLUMNS]
    return [("", "weights trained"), *measures]


def caption(outcomes: Sequence[Outcome]) -> str:
    data = next((one.data for _, one in succeeded(outcomes)), outcomes[0].data)
    seeds = len({one.recipe.seed for one in outcomes})
    over = f", mean and standard deviation over {seeds} seeds" if seeds > 1 else ""
    return f"Accuracy on {data}, %{over}"


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each run that failed."""
    return [
        f"{row.label}, seed {one.recipe.seed}, failed: {one.failure}"
        for row in rows_of(outcomes)
        for one in row.outcomes
        if one.failure
    ]


def table(outcomes: Sequence[Outcome]) -> Table:
    """A row a recipe, for terminals of 80 columns and more."""
    grid = Table(
        title=caption(outcomes), title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False
    )
    grid.add_column("", no_wrap=True)
    for views, measure in headings():
        # Where the space is small, a name is broken at its space.
        grid.add_column(f"{views}\n{measure.replace('-', ' ')}", justify="right")
    for row in rows_of(outcomes):
        grid.add_row(row.label, *row.cells)
    return grid


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The same table, for a README."""
    names = ["", *(", ".join(filter(None, heading)) for heading in headings())]
    lines = [names, ["---", *["---:"] * len(headings())]]
    lines += [[row.label.replace("|", "\\|"), *row.cells] for row in rows_of(outcomes)]
    drawn = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = "".join(f"\n- {line}" for line in failures(outcomes))
    return f"{caption(outcomes)}\n\n{drawn}\n" + (f"{notes}\n" if notes else "")


def write_csv(path: Path, outcomes: Sequence[Outcome]) -> None:
    """One row a run and number of views; of a run that failed, one without scores."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                *("recipe", "title", "seed", "data", "backbone", "trainable", "seconds"),
                *("precision", "views", *Scores.model_fields, "failure", "fields"),
            ]
        )
        for one in outcomes:
            writer.writerows(_csv_rows(one))


def _csv_rows(outcome: Outcome) -> list[list[object]]:
    recipe = outcome.recipe
    start = [
        *(recipe.name, recipe.title, recipe.seed, outcome.data, outcome.backbone),
        *(outcome.trainable_parameters, outcome.seconds, _precision(outcome)),
    ]
    end = [outcome.failure or "", recipe.model_dump_json()]
    if outcome.evaluation is None:
        return [[*start, "", *[""] * len(Scores.model_fields), *end]]
    both = (1, outcome.evaluation.single), (5, outcome.evaluation.full)
    return [[*start, views, *_rounded(scores), *end] for views, scores in both]


def _precision(outcome: Outcome) -> str:
    return (outcome.record and outcome.record.precision) or ""


def _rounded(scores: Scores) -> list[str]:
    return ["" if value is None else f"{value:.2f}" for value in scores.model_dump().values()]
