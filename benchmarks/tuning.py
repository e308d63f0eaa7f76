"""Choose a recipe's rates, rank, depth and epochs on the validation photos, never on the test set.

    python benchmarks/tuning.py wardrobe-lt --methods head lift full --tries 40 --seeds 0 1 2

Random search, the same number of tries for each method. Prints the best recipes by mean-class
accuracy with five views, averaged over the seeds, and writes every try to a CSV file.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from models.bundle.manifest import Thresholds
from models.lift.backbone import load_backbone
from training.dataset import load_dataset
from training.evaluation import evaluate
from training.recipe import RECIPES, MethodName, Recipe
from training.train import Trainer, default_device

RATES = [0.01, 0.02, 0.03, 0.06]
TOWER_RATES = [0.0003, 0.001, 0.003, 0.01, 0.03]
SPACES: dict[str, dict[str, list[Any]]] = {
    "head": {"epochs": [5, 10, 15, 20, 30, 40], "head_rate": RATES},
    "lift": {
        "epochs": [5, 10, 15, 20],
        "head_rate": RATES,
        "tuner_rate": TOWER_RATES,
        "rank": [1, 2, 4, 8],
        "blocks": [1, 2, 3, 6],
    },
    "full": {
        "epochs": [5, 10, 15, 20],
        "head_rate": RATES,
        "tuner_rate": TOWER_RATES,
        "blocks": [1, 2, 3, 6],
    },
}


def tries(method: MethodName, number: int) -> Iterator[Recipe]:
    """`number` different random recipes, the same ones at every call."""
    random = np.random.default_rng(0)
    seen: set[str] = set()
    space = SPACES[method]
    while len(seen) < min(number, int(np.prod([len(values) for values in space.values()]))):
        drawn = {key: values[random.integers(len(values))] for key, values in space.items()}
        recipe = RECIPES[method].model_copy(update=drawn)
        if str(drawn) not in seen:
            seen.add(str(drawn))
            yield recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--backbone", default="default")
    parser.add_argument("--methods", nargs="+", choices=list(SPACES), default=list(SPACES))
    parser.add_argument("--tries", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shard", default="0/1", help="I/N: only every N-th try, from the I-th")
    parser.add_argument("--out", type=Path, default=Path("runs/tuning.csv"))
    options = parser.parse_args()
    shard, shards = map(int, options.shard.split("/"))

    dataset = load_dataset(options.data)
    if dataset.val is None:
        sys.exit(f"{options.data} has no val/ to choose on")
    labels = np.array(dataset.val.labels)
    groups = [Thresholds().group(count) for count in dataset.counts]
    trainer = Trainer(dataset, load_backbone(options.backbone), default_device())
    rows = []
    for method in sorted(options.methods, key=["full", "lift", "head"].index):
        for number, recipe in enumerate(tries(method, options.tries)):
            if number % shards != shard:
                continue
            results = []
            for seed in options.seeds:
                run = trainer.train(recipe.model_copy(update={"seed": seed}))
                logits = trainer.view_logits(run, dataset.val)
                results.append(evaluate("val", logits, labels, groups))
            rows.append(
                {
                    "method": method,
                    **{key: getattr(recipe, key) for key in SPACES["lift"]},
                    "mean_class": round(mean(one.full.mean_class for one in results), 2),
                    "few": round(mean(one.full.few or 0 for one in results), 2),
                    "single_mean_class": round(mean(one.single.mean_class for one in results), 2),
                }
            )
            print(rows[-1], flush=True)
    rows.sort(key=lambda row: (str(row["method"]), -float(row["mean_class"])))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
