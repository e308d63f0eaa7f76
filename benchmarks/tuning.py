"""Choose the values of a recipe without looking at the test photos.

    python -m benchmarks.tuning wardrobe-lt lift optimiser.tuner_rate=0.02,0.05 epochs=5,10

Trains every combination of the values and prints the accuracies with five views, averaged over
seeds, the best mean-class accuracy first. They are measured on val/; if the data has none, a part
of the training photos is set aside. All other fields stay as in the recipe. With --log, every run
adds a row to a CSV file, which shows how many tries each recipe was given.
"""

import argparse
import csv
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from taillift.models.bundle.manifest import Scores
from taillift.models.bundle.schema import Group
from taillift.models.errors import UserError
from taillift.models.lift.backbone import load_backbone
from taillift.training.comparison.compare import in_order
from taillift.training.data.dataset import Dataset, Split, hold_out, load_dataset
from taillift.training.evaluation import evaluate
from taillift.training.recipe.recipe import Recipe, load_recipe, parse_changes
from taillift.training.train import Trainer

MEASURES: Final = ("overall", "mean_class", "many", "medium", "few")
Changes = dict[str, Any]


@dataclass(frozen=True)
class Try:
    """The scores of one run with five views, or the reason why it failed."""

    changes: Changes
    recipe: Recipe
    seconds: float
    scores: Scores | None
    failure: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("recipe", help="a name from `taillift recipes`, or a YAML file")
    parser.add_argument("values", nargs="+", metavar="KEY=V1,V2", help="fields of the recipe")
    parser.add_argument("--backbone", default="default")
    parser.add_argument("--imbalance", type=float, help="cut the training photos to a long tail")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--log", type=Path, help="CSV file to which every run is added")
    options = parser.parse_args()

    backbone = load_backbone(options.backbone)
    plans = [
        (load_recipe(options.recipe, {**changes, "seed": seed}), changes)
        for changes in combinations(options.values)
        for seed in options.seeds
    ]
    whole = load_dataset(options.data, options.imbalance)
    # From all photos: a class stays in its group when some of its photos are set aside.
    groups = whole.groups
    dataset = hold_out(whole)
    assert dataset.val is not None
    trainer = Trainer(dataset, backbone)
    by_recipe = dict(plans)
    tries = []
    for recipe in in_order(list(by_recipe)):
        tries.append(attempt(trainer, recipe, by_recipe[recipe], dataset.val, groups))
        if options.log:
            log(options.log, tries[-1], dataset, backbone.name)
    Console().print(table(tries))


def combinations(values: Sequence[str]) -> Iterator[Changes]:
    """Yield every choice of one value for each key, from texts such as "key=v1,v2".

    Raises `UserError` if a text has another form.
    """
    choices = []
    for value in values:
        key, equals, texts = value.partition("=")
        if not equals:
            raise UserError(f"{value!r}: write KEY=V1,V2, such as optimiser.tuner_rate=0.02,0.05")
        choices.append([f"{key}={text}" for text in texts.split(",")])
    return (parse_changes(chosen) for chosen in itertools.product(*choices))


def attempt(
    trainer: Trainer, recipe: Recipe, changes: Changes, split: Split, groups: Sequence[Group]
) -> Try:
    """Train one recipe and score it on `split`; a run that fails is a try, too."""
    start = time.monotonic()
    try:
        run = trainer.train(recipe)
    except UserError as error:
        return Try(changes, recipe, time.monotonic() - start, None, str(error))
    logits = run.answers(trainer.view_logits(run, split))
    scores = evaluate("val", logits, np.array(split.labels), groups).full
    return Try(changes, recipe, time.monotonic() - start, scores)


def log(path: Path, attempted: Try, dataset: Dataset, backbone: str) -> None:
    """Add a row to the CSV file, after the headings if the file is new."""
    scores = attempted.scores.model_dump() if attempted.scores else {}
    figures = {key: scores.get(key) for key in MEASURES}
    row: dict[str, object] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": dataset.name,
        "fingerprint": dataset.fingerprint[:12],
        "backbone": backbone,
        "recipe": attempted.recipe.name,
        "changes": " ".join(f"{key}={value}" for key, value in attempted.changes.items()),
        "seed": attempted.recipe.seed,
        "seconds": round(attempted.seconds, 1),
        **{key: "" if value is None else f"{value:.2f}" for key, value in figures.items()},
        "failure": attempted.failure,
        "fields": attempted.recipe.model_dump_json(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def table(tries: Sequence[Try]) -> Table:
    """Return a table with a row for each combination, averaged over seeds.

    The best mean-class accuracy is first; combinations with a failed run are last.
    """
    keys = [key.replace(".", ".\n") for key in tries[0].changes]
    grid = Table(*keys, *MEASURES, "failed", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    by_changes: dict[str, list[Try]] = {}
    for attempted in tries:
        by_changes.setdefault(str(attempted.changes), []).append(attempted)

    def rank(combination: Sequence[Try]) -> tuple[bool, float]:
        accuracies = [run.scores.mean_class for run in combination if run.scores]
        failed = len(accuracies) < len(combination)
        return failed, -mean(accuracies) if accuracies else 0.0

    for combination in sorted(by_changes.values(), key=rank):
        cells = []
        for key in MEASURES:
            values = [getattr(run.scores, key) for run in combination if run.scores]
            present = [value for value in values if value is not None]
            cells.append(f"{mean(present):.1f}" if present else "-")
        failed = sum(run.scores is None for run in combination)
        grid.add_row(*map(str, combination[0].changes.values()), *cells, str(failed or ""))
    return grid


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
