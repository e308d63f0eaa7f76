"""Several recipes on the same photos, side by side."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Final

import numpy as np
import torch
from rich.table import Table

from models import UserError
from models.bundle.manifest import Evaluation, Scores, Thresholds
from models.lift.backbone import Backbone
from training.checkpoint import save
from training.dataset import Dataset
from training.evaluation import class_accuracies, evaluate
from training.figures import draw_comparison
from training.recipe import MethodName, Recipe
from training.train import Trainer

TITLES: Final[dict[MethodName, str]] = {
    "zero-shot": "zero-shot",
    "head": "head only",
    "full": "full fine-tuning",
    "lift": "LIFT",
}
MEASURES: Final = {
    "overall": "overall",
    "mean_class": "mean-class",
    "many": "many",
    "medium": "medium",
    "few": "few",
}
VIEWS: Final = {"single": "one view", "full": "five views (TTE)"}


@dataclass(frozen=True)
class Result:
    """One run: its scores and, per class, the accuracy with five views in per cent."""

    recipe: Recipe
    trainable_parameters: int
    evaluation: Evaluation
    class_rates: list[float]


def compare(
    dataset: Dataset, backbone: Backbone, recipes: Sequence[Recipe], out: Path, device: torch.device
) -> list[Result]:
    """Train and measure every recipe; leaves checkpoints, results.csv and comparison.png in `out`.

    Raises `UserError` where there are no held-out photos.
    """
    if dataset.held_out is None:
        raise UserError(f"{dataset.name} has neither test/ nor val/: nothing to compare on")
    split_name, split = dataset.held_out
    labels = np.asarray(split.labels)
    groups = [Thresholds().group(count) for count in dataset.counts]
    trainer = Trainer(dataset, backbone, device)
    results = []
    # Recipes with fewer frozen stages first: the rows of the others follow from theirs.
    depth = ["full", "lift", "head", "zero-shot"]
    for recipe in sorted(recipes, key=lambda one: (one.seed, depth.index(one.method))):
        run = trainer.train(recipe)
        save(out / f"{recipe.method}-{recipe.seed}.safetensors", run.model, run.facts)
        logits = trainer.view_logits(run, split)
        accuracies = class_accuracies(logits, labels, len(groups))
        results.append(
            Result(
                recipe,
                run.facts.trainable_parameters,
                evaluate(f"{dataset.name} {split_name}", logits, labels, groups),
                [one.full if one else float("nan") for one in accuracies],
            )
        )
    write_csv(out / "results.csv", results)
    draw(out / "comparison.png", dataset, results)
    return results


def by_method(results: Sequence[Result]) -> Mapping[MethodName, list[Result]]:
    """In the order of `TITLES`."""
    found = {name: [one for one in results if one.recipe.method == name] for name in TITLES}
    return {name: ones for name, ones in found.items() if ones}


def table(results: Sequence[Result]) -> Table:
    """Mean, and spread over seeds, of every measure in per cent: a column a method."""
    methods = by_method(results)
    grid = Table(title=f"Accuracy on {results[0].evaluation.data}, %", title_justify="left")
    grid.add_column("")
    for method in methods:
        grid.add_column(TITLES[method], justify="right")
    for views, title in VIEWS.items():
        grid.add_row(title, style="bold")
        for key, name in MEASURES.items():
            cells = (
                _cell([getattr(getattr(one.evaluation, views), key) for one in ones])
                for ones in methods.values()
            )
            grid.add_row(f"  {name}", *cells)
        grid.add_section()
    return grid


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ±{stdev(known):.1f}" if len(known) > 1 else ""
    return f"{mean(known):.1f}{spread}"


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """One row a run and number of views."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "seed", "trainable", "views", *Scores.model_fields, "recipe"])
        for one in results:
            recipe = one.recipe
            for views, scores in ((1, one.evaluation.single), (5, one.evaluation.full)):
                figures = [
                    "" if value is None else f"{value:.2f}"
                    for value in scores.model_dump().values()
                ]
                start = [recipe.method, recipe.seed, one.trainable_parameters, views]
                writer.writerow([*start, *figures, recipe.model_dump_json()])


def draw(path: Path, dataset: Dataset, results: Sequence[Result]) -> None:
    """Mean over seeds, with five views."""
    groups = by_method(results)
    scores = {
        TITLES[method]: _mean_scores([one.evaluation.full for one in ones])
        for method, ones in groups.items()
    }
    rates = {
        TITLES[method]: np.mean([one.class_rates for one in ones], axis=0).tolist()
        for method, ones in groups.items()
    }
    draw_comparison(path, scores, rates, dataset.classes, dataset.counts)


def _mean_scores(scores: Sequence[Scores]) -> Scores:
    def average(key: str) -> float | None:
        values = [getattr(one, key) for one in scores]
        return None if None in values else mean(values)

    return Scores.model_validate({key: average(key) for key in Scores.model_fields})
