"""The outcomes of a comparison: a JSON file for each run, results.csv, and a table of means."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.box import SIMPLE_HEAD
from rich.table import Table

from taillift.models.bundle.atomic import atomic_file
from taillift.models.bundle.manifest import Accuracy, Evaluation, Scores
from taillift.models.bundle.schema import GROUPS, ROUNDING
from taillift.models.lift.tuners import Full
from taillift.training.evaluation import TauPoint
from taillift.training.fit.provenance import Provenance
from taillift.training.recipe.recipe import Recipe

Kind = Literal["frozen", "light", "heavy"]
Views = Literal["single", "full"]
VIEW_TITLES: Final[dict[Views, str]] = {"single": "one view", "full": "five views"}
MEASURES: Final = {"geometric_mean": "G-mean", "macro_f1": "macro-F1"}
Columns = tuple[tuple[Views, str], ...]
COLUMNS: Final[Columns] = (
    ("single", "mean_class"),
    ("single", "few"),
    ("full", "overall"),
    ("full", "mean_class"),
    ("full", "many"),
    ("full", "medium"),
    ("full", "few"),
)
# A terminal has no room for these: figures that one forgotten class pulls down.
WIDE_COLUMNS: Final[Columns] = (
    *COLUMNS,
    ("full", "worst_class"),
    ("full", "harmonic_mean"),
    ("full", "geometric_mean"),
    ("full", "macro_f1"),
)


class Outcome(BaseModel):
    """A finished run. `accuracies` has one entry a class, in the order of the dataset.

    `tau_curve` is of five views; outcomes of 0.1.0 and failed runs lack it. `hits` has a text for
    each class with a digit for each photo that recipes are `chosen_on`, the same ones in the same
    order in all outcomes of a folder: 1 if five views recognise it. Failed runs and early outcomes
    lack them.
    `seconds` is the time of training and evaluation. A run that failed gives the reason in
    `failure`, and has neither record nor evaluation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    recipe: Recipe
    data: str
    fingerprint: str
    backbone: str
    backbone_sha256: str
    trainable_parameters: int = 0
    seconds: float
    record: Provenance | None = None
    evaluation: Evaluation | None = None
    accuracies: tuple[Accuracy | None, ...] = ()
    tau_curve: tuple[TauPoint, ...] = ()
    chosen_on: str = ""
    hits: tuple[str, ...] = ()
    failure: str | None = None


def kind_of(recipe: Recipe) -> Kind:
    """Return whether the tower stays frozen, gets a small tuner, or has all weights tuned.

    "heavy" means that all weights of some blocks at least are tuned. A soup is as heavy as its
    heaviest parent.
    """
    if recipe.soup is not None:
        kinds = {kind_of(parent) for parent in recipe.soup.parents}
        return next(kind for kind in ("heavy", "light", "frozen") if kind in kinds)
    if not (recipe.epochs and recipe.tuners):
        return "frozen"
    return "heavy" if any(isinstance(tuner, Full) for tuner in recipe.tuners) else "light"


def run_path(folder: Path, recipe: Recipe, suffix: str) -> Path:
    """Return the path of a run's checkpoint (".safetensors") or outcome (".json")."""
    return folder / f"{recipe.name}-{recipe.seed}{suffix}"


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Write an outcome as JSON."""
    with atomic_file(path) as temporary:
        temporary.write_text(outcome.model_dump_json(indent=2) + "\n", "utf-8")


def read_outcome(path: Path) -> Outcome | None:
    """Read an outcome; None if there is none that this version of taillift can read."""
    try:
        return Outcome.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def read_outcomes(folder: Path) -> dict[Path, Outcome]:
    """Read all outcomes in the folder by their paths, sorted by recipe and seed."""
    outcomes = [
        (path, outcome)
        for path in folder.glob("*.json")
        if (outcome := read_outcome(path)) is not None
    ]
    return dict(sorted(outcomes, key=lambda pair: (pair[1].recipe.name, pair[1].recipe.seed)))


def succeeded(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, Evaluation]]:
    """Return the runs that did not fail, each with its evaluation."""
    return [(outcome, outcome.evaluation) for outcome in outcomes if outcome.evaluation is not None]


@dataclass(frozen=True)
class Row:
    """One recipe with all its seeds; no other row has its label."""

    label: str
    recipe: Recipe
    outcomes: list[Outcome]

    @property
    def trainable_parameters(self) -> int | None:
        """The number of trained weights; None if every run failed."""
        runs = (outcome.trainable_parameters for outcome, _ in succeeded(self.outcomes))
        return next(runs, None)

    def values(self, views: Views, measure: str) -> list[float]:
        """Return a measure in per cent for each seed; a failed run has none.

        Nor does any run if the measure is of a group without photos.
        """
        runs = succeeded(self.outcomes)
        values = [getattr(getattr(evaluation, views), measure) for _, evaluation in runs]
        return [value for value in values if value is not None]

    def tau_curve(self) -> list[TauPoint]:
        """Return the mean over seeds of the runs' curves; empty if no run has one."""
        curves = [outcome.tau_curve for outcome in self.outcomes if outcome.tau_curve]
        return [mean_point(points) for points in zip(*curves, strict=True)]

    def cells(self, columns: Columns) -> list[str]:
        """Return the row's cells in a table: trainable parameters, and the columns' measures."""
        trained = self.trainable_parameters
        return [
            "-" if trained is None else abbreviate(trained),
            *(mean_and_deviation(self.values(views, measure)) for views, measure in columns),
        ]


def mean_point(points: Sequence[TauPoint]) -> TauPoint:
    """Return the mean of several runs' accuracies with one tau."""

    def over(measure: str) -> float | None:
        values = [getattr(point, measure) for point in points]
        return None if None in values else mean(values)

    measures = {measure: over(measure) for measure in ("mean_class", *GROUPS)}
    return TauPoint.model_validate({"tau": points[0].tau, **measures})


def margin(curve: Sequence[TauPoint], others: Iterable[Sequence[TauPoint]]) -> float | None:
    """Return how many points of mean-class accuracy a curve is above all others at tau = 1.

    The others have at least as much few-shot accuracy there: a recipe that only moves along a curve
    of another gains nothing. Between its points, a curve is a straight line. None if no other curve
    reaches this few-shot accuracy, or if there are no few-shot classes.
    """
    own = next(point for point in curve if point.tau == 1)
    best = []
    for other in others:
        taus = [point.tau for point in other]
        fine = np.linspace(taus[0], taus[-1], 100 * len(taus))
        if own.few is None or any(point.few is None for point in other):
            continue
        few = np.interp(fine, taus, np.array([point.few for point in other], np.float64))
        means = np.interp(fine, taus, [point.mean_class for point in other])
        best += means[few >= own.few - ROUNDING].tolist()
    return own.mean_class - max(best) if best else None


def rows_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return a row for each recipe, in the order of their first outcomes."""
    by_name: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_name.setdefault(outcome.recipe.name, []).append(outcome)
    labels = labels_of(outcome.recipe for outcome in outcomes)
    return [Row(labels[name], runs[0].recipe, runs) for name, runs in by_name.items()]


def labels_of(recipes: Iterable[Recipe]) -> dict[str, str]:
    """Return a label for each recipe's name: its title, and the name too if titles are equal.

    A recipe that was copied from another's YAML has the other's title until it is given its own.
    """
    titles = {recipe.name: recipe.title for recipe in recipes}
    count = Counter(titles.values())
    return {
        name: title if count[title] == 1 else f"{title} ({name})" for name, title in titles.items()
    }


def abbreviate(number: int) -> str:
    """Return three digits and a unit: 842, 76.8 k, 178 k, 85.1 M."""
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        # A number that rounds to 1,000 of a unit is 1 of the next.
        if number >= 0.9995 * size:
            return f"{number / size:#.3g}".rstrip(".") + unit
    return str(number)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return the mean, and the standard deviation if there are several values."""
    if not values:
        return "-"
    deviation = f" ±{stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{deviation}"


def headings(columns: Columns) -> list[tuple[str, str]]:
    """Return the views and the measure above each of a row's cells."""
    measures = [
        (VIEW_TITLES[views], MEASURES.get(measure, measure.replace("_", "-")))
        for views, measure in columns
    ]
    return [("", "weights trained"), *measures]


def caption(outcomes: Sequence[Outcome]) -> str:
    """Return what the table shows, on which photos, and over how many seeds."""
    data = next((evaluation.data for _, evaluation in succeeded(outcomes)), outcomes[0].data)
    seeds = len({outcome.recipe.seed for outcome in outcomes})
    over = f", mean and standard deviation over {seeds} seeds" if seeds > 1 else ""
    return f"Accuracy on {data}, %{over}"


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each run that failed."""
    return [
        f"{row.label}, seed {outcome.recipe.seed}, failed: {outcome.failure}"
        for row in rows_of(outcomes)
        for outcome in row.outcomes
        if outcome.failure
    ]


def table(outcomes: Sequence[Outcome]) -> Table:
    """Return a table with a row for each recipe, for terminals of 80 columns and more."""
    grid = Table(
        title=caption(outcomes), title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False
    )
    grid.add_column("", no_wrap=True)
    for views, measure in headings(COLUMNS):
        # In a narrow column, a name is broken at its space.
        grid.add_column(f"{views}\n{measure.replace('-', ' ')}", justify="right")
    for row in rows_of(outcomes):
        grid.add_row(row.label, *row.cells(COLUMNS))
    return grid


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the table with `WIDE_COLUMNS` in Markdown, with the failures below it."""
    names = ["", *(", ".join(filter(None, heading)) for heading in headings(WIDE_COLUMNS))]
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [
        [row.label.replace("|", "\\|"), *row.cells(WIDE_COLUMNS)] for row in rows_of(outcomes)
    ]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = "".join(f"\n- {line}" for line in failures(outcomes))
    return f"{caption(outcomes)}\n\n{text}\n" + (f"{notes}\n" if notes else "")


def write_csv(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write a row for each run and number of views, and one without scores for a failed run."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                *("recipe", "title", "seed", "data", "backbone", "trainable", "seconds"),
                *("precision", "views", *Scores.model_fields, "failure", "fields"),
            ]
        )
        for outcome in outcomes:
            recipe, evaluation = outcome.recipe, outcome.evaluation
            precision = outcome.record.precision if outcome.record else None
            start = [
                *(recipe.name, recipe.title, recipe.seed, outcome.data, outcome.backbone),
                *(outcome.trainable_parameters, outcome.seconds, precision or ""),
            ]
            end = [outcome.failure or "", recipe.model_dump_json()]
            if evaluation is None:
                writer.writerow([*start, "", *[""] * len(Scores.model_fields), *end])
                continue
            for views, scores in ((1, evaluation.single), (5, evaluation.full)):
                values = scores.model_dump().values()
                cells = ["" if value is None else f"{value:.2f}" for value in values]
                writer.writerow([*start, views, *cells, *end])


def write_tau_csv(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write a row for each run and tau, with the accuracies of five views in per cent."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["recipe", "title", "seed", "data", *TauPoint.model_fields])
        for outcome in outcomes:
            recipe = outcome.recipe
            for point in outcome.tau_curve:
                _, *values = point.model_dump().values()
                cells = ["" if value is None else f"{value:.2f}" for value in values]
                start = [recipe.name, recipe.title, recipe.seed, outcome.data]
                writer.writerow([*start, f"{point.tau:g}", *cells])
