"""Choose a recipe's values on the validation photos, never on the test photos.

    python benchmarks/tuning.py wardrobe-lt lift tuner_rate=0.02,0.05,0.1 rank=1,4 --seeds 0 1

Trains every combination and prints the accuracies on val/ with five views, averaged over seeds, the
best mean-class accuracy first. What is not named stays as in the method's recipe.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from statistics import mean

import numpy as np
from rich.console import Console
from rich.table import Table

from models.bundle.manifest import Scores, Thresholds
from models.lift.backbone import load_backbone
from training.dataset import load_dataset
from training.evaluation import evaluate
from training.recipe import Recipe, recipe_for
from training.train import Trainer, default_device


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("method")
    parser.add_argument("values", nargs="+", metavar="KEY=V1,V2", help="fields of a recipe")
    parser.add_argument("--backbone", default="default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()

    dataset = load_dataset(options.data)
    if dataset.val is None:
        sys.exit(f"{options.data} has no val/ to choose on")
    labels = np.array(dataset.val.labels)
    groups = [Thresholds().group(count) for count in dataset.counts]
    trainer = Trainer(dataset, load_backbone(options.backbone), default_device())
    tried: list[tuple[dict[str, str], list[Scores]]] = []
    for changes in combinations(options.values):
        results = []
        for seed in options.seeds:
            run = trainer.train(recipe_for(options.method, **changes, seed=seed))
            logits = trainer.view_logits(run, dataset.val)
            results.append(evaluate("val", logits, labels, groups).full)
        tried.append((changes, results))
    Console().print(table(tried))


def combinations(values: Sequence[str]) -> Iterator[dict[str, str]]:
    """Every choice of one value for each key, of "key=v1,v2" and so on."""
    keys, lists = zip(*(one.split("=", 1) for one in values), strict=True)
    if unknown := set(keys) - set(Recipe.model_fields):
        sys.exit(f"a recipe has no {', '.join(sorted(unknown))}")
    for chosen in itertools.product(*(one.split(",") for one in lists)):
        yield dict(zip(keys, chosen, strict=True))


def table(tried: list[tuple[dict[str, str], list[Scores]]]) -> Table:
    measures = ("mean_class", "many", "medium", "few")
    grid = Table(*tried[0][0], *measures)
    ranked = sorted(tried, key=lambda one: -mean(scores.mean_class for scores in one[1]))
    for changes, results in ranked:
        figures = (mean(getattr(one, key) or 0 for one in results) for key in measures)
        grid.add_row(*changes.values(), *(f"{figure:.1f}" for figure in figures))
    return grid


if __name__ == "__main__":
    main()
