"""Measures if photos without labels help: pseudo-labels next to no and next to right labels.

    python -m benchmarks.pseudo_labels wardrobe-lt --recipe head --seeds 0 1 2

A share of each class's training photos keeps its labels, drawn by the seed, and the others lose
them. Rows: the labelled photos alone; each method; as many right labels as the method with the most
accepted photos has pseudo-labels, on photos drawn at random; and all labels. The groups are those
of the whole set. Intervals are of the difference to the labelled photos alone: test photos are
drawn again, class by class, the same for both, and so are seeds if there are several.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.arrays import Floats
from taillift.models.bundle.schema import GROUPS, Group
from taillift.models.lift.backbone import load_backbone
from taillift.training.data.dataset import Dataset, load_dataset
from taillift.training.data.photo import Split
from taillift.training.data.pool import FOREIGN
from taillift.training.evaluation import scores
from taillift.training.fit.provenance import PseudoLabelEpoch
from taillift.training.recipe.recipe import Recipe, load_recipe
from taillift.training.train import Trainer

Hits = npt.NDArray[np.bool_]

DRAWS: Final = 2000
METHODS: Final[dict[str, dict[str, Any]]] = {
    "fixmatch": {"name": "fixmatch"},
    "freematch": {"name": "freematch"},
    "loft": {"name": "loft"},
    "loft, soft": {"name": "loft", "soft_weight": 1.0},
    "loft, open world": {
        "name": "loft",
        "threshold": 0.95,
        "weight": 2.0,
        "soft_weight": 1.0,
        "foreign": 0.6,
        "zero_shot": 0.0,
    },
    "loft, open world without its gate": {
        "name": "loft",
        "threshold": 0.95,
        "weight": 2.0,
        "soft_weight": 1.0,
    },
    "finessl": {"name": "finessl"},
    "ulfine": {"name": "ulfine"},
    "loft, evidence": {"name": "loft", "evidence": {}},
}


@dataclass(frozen=True)
class Drawn(Dataset):
    """A part of a set, whose classes stay in the groups that they are in by all photos."""

    own_groups: tuple[Group, ...] = ()

    @property
    def groups(self) -> list[Group]:
        return list(self.own_groups)


@dataclass(frozen=True)
class Measured:
    """The row of one run: its predictions, its pseudo-labels in the last epoch, and its prior.

    `prior` is how far the mean posterior of photos, every class weighing the same, is above the
    uniform share of each group, in points.
    """

    labels: int
    predicted: npt.NDArray[np.int64]
    last: PseudoLabelEpoch | None
    prior: dict[Group, float]


def main() -> None:
    """Train every row with every seed, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--recipe", default="head")
    parser.add_argument("--share", type=float, default=0.2, help="share of labels that is kept")
    parser.add_argument("--pool", type=int, help="unlabelled photos to draw; default: all others")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--ratio", type=int, help="unlabelled photos a labelled one; default: own")
    parser.add_argument("--copies", type=int, default=4, help="augmented copies of each photo")
    parser.add_argument(
        "--views", type=int, choices=(1, 5), default=5, help="1 only without tuners"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--foreign", help="a set whose training photos are half of the pool")
    parser.add_argument("--backbone", default="default")
    parser.add_argument("--out", type=Path, help="default: a file in benchmarks/results")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)

    whole = load_dataset(options.data)
    foreign = load_dataset(options.foreign).train if options.foreign else None
    backbone = load_backbone(options.backbone)
    runs: dict[str, list[Measured]] = {}
    name = f"pseudo-labels-{whole.name}-{options.recipe}{'-foreign' if foreign else ''}.md"
    path = options.out or RESULTS / name

    def measure(title: str, trainer: Trainer, recipe: Recipe, aside: Sequence[int]) -> None:
        """Train without the labels of the photos `aside`, and add a row."""
        dataset = trainer.dataset
        assert dataset.held_out is not None
        run = trainer.train(recipe, without=aside)
        photos = dataset.held_out[1]
        if options.views == 1:
            features = trainer.backbone_features(photos, run.metadata.preprocessing)
            logits = run.model.head(features)[0].detach().numpy()
        else:
            logits = trainer.view_logits(run, photos).mean(1)
        epochs = run.metadata.record.pseudo_labels
        labelled = len(dataset.train) - len(aside)
        predicted, prior = logits.argmax(1), prior_left(logits, photos.labels, whole.groups)
        row = Measured(labelled, predicted, epochs[-1] if epochs else None, prior)
        runs.setdefault(title, []).append(row)
        print(rows_of(runs, whole)[list(runs).index(title)], flush=True)

    for seed in options.seeds:
        drawn, aside = drawn_set(whole, options.share, options.pool, foreign, seed)
        # One trainer for all rows, so that each photo goes through the frozen stages once.
        trainer = Trainer(drawn, backbone)
        changes = {"augmentation.copies": options.copies, "epochs": options.epochs, "seed": seed}
        some = load_recipe(options.recipe, changes)
        measure("labels alone", trainer, some, aside)
        for name in options.methods:
            ratio = {"ratio": options.ratio} if options.ratio else {}
            taught = some.model_dump(exclude={"title"}) | {"unlabelled": METHODS[name] | ratio}
            measure(name, trainer, Recipe.model_validate(taught), aside)
        shares = [row[-1].last for row in runs.values()]
        accepted = max(last.accepted / last.seen for last in shares if last)
        more = np.random.default_rng((seed, 8)).permutation(aside)
        for title, count in (
            ("as many right labels", round(accepted * len(aside))),
            ("all labels", len(aside)),
        ):
            measure(title, trainer, some, more[count:].tolist())

        # After each seed: a benchmark that is broken off leaves what it has measured.
        write_result(path, tables_of(runs, whole))


TITLES: Final = (
    "",
    "labels",
    "mean-class",
    "many",
    "medium",
    "few",
    "difference (95 %)",
    "few (95 %)",
    "accepted",
    "right",
    "few: precision",
    "recall",
    "soft",
    "foreign accepted",
    "foreign soft",
)
NOTES: Final = (
    "Accuracies in per cent, means over the seeds. The columns from *accepted* on are of the last "
    "epoch: the share of unlabelled photos with a pseudo-label, the share of right ones among "
    "these, of few-shot classes the precision and recall, the share of photos that teach softly, "
    "and the shares of foreign photos that have a pseudo-label and that teach softly. All rows "
    "take the same number of epochs, so those with more labels more steps."
)


PRIOR_NOTES: Final = (
    "How far the mean posterior of held-out photos, every class weighing the same, is above the "
    "uniform share of each group, in points. The loss should leave no prior, which is 0."
)


def tables_of(runs: dict[str, list[Measured]], whole: Dataset) -> list[str]:
    """Return the parts of the result."""
    return [markdown(TITLES, rows_of(runs, whole)), NOTES, prior_table(runs), PRIOR_NOTES]


def prior_left(
    logits: Floats, labels: Sequence[int], groups: Sequence[Group]
) -> dict[Group, float]:
    """Return the points by which the mean posterior of logits [N, C] exceeds the uniform share.

    Every class of the photos weighs the same.
    """
    posterior = softmax(logits.astype(np.float64), axis=1)
    mean = np.average(posterior, axis=0, weights=1 / np.bincount(labels)[list(labels)])
    return {
        group: 100
        * float(mean[np.array(groups) == group].sum() - groups.count(group) / len(groups))
        for group in GROUPS
    }


def prior_table(runs: dict[str, list[Measured]]) -> str:
    """Return the table of the prior that is left, means over the seeds."""
    rows = [
        [title, *(f"{np.mean([one.prior[group] for one in measured]):+.1f}" for group in GROUPS)]
        for title, measured in runs.items()
    ]
    return markdown(["", *GROUPS], rows)


def drawn_set(
    whole: Dataset, share: float, pool: int | None, foreign: Split | None, seed: int
) -> tuple[Drawn, list[int]]:
    """Return a set with unlabelled photos, and the indices of these in its training photos.

    `share` of each class keeps its labels, at least one photo. Of the others, `pool` are drawn, or
    all are in. As many `foreign` ones, if any, are in the pool, too.
    """
    random = np.random.default_rng((seed, 7))
    labels = np.array(whole.train.labels)
    kept: list[int] = []
    for label in range(len(whole.classes)):
        own = random.permutation(np.flatnonzero(labels == label))
        kept += own[: max(1, round(share * len(own)))].tolist()
    others = random.permutation(sorted(set(range(len(labels))) - set(kept)))[:pool].tolist()
    unlabelled = whole.train.only(others)
    if foreign is not None:
        strangers = foreign.only(random.permutation(len(foreign))[: len(others)].tolist())
        unlabelled = Split(
            unlabelled.photos + strangers.photos,
            unlabelled.labels + (FOREIGN,) * len(strangers),
            max_pixels=unlabelled.max_pixels,
        )
    drawn = Drawn(
        name=whole.name,
        classes=whole.classes,
        names=whole.names,
        train=whole.train.only(kept + others),
        val=whole.val,
        test=whole.test,
        unlabelled=unlabelled,
        own_groups=tuple(whole.groups),
    )
    return drawn, list(range(len(kept), len(kept) + len(others)))


def rows_of(runs: dict[str, list[Measured]], whole: Dataset) -> list[list[str]]:
    """Return the cells of every row."""
    assert whole.held_out is not None
    labels = np.array(whole.held_out[1].labels)
    groups = whole.groups
    few = np.array([group == "few" for group in groups])
    first = next(iter(runs.values()))
    base = np.stack([measured.predicted == labels for measured in first])
    rows = []
    for title, measured in runs.items():
        every = [scores(one.predicted, labels, groups) for one in measured]
        hits = np.stack([one.predicted == labels for one in measured])
        number = len(hits)
        cells = [title, f"{np.mean([one.labels for one in measured]):.0f}"]
        cells += [
            f"{np.mean([getattr(one, name) for one in every]):.1f}"
            for name in ("mean_class", "many", "medium", "few")
        ]
        for chosen in (np.ones_like(few), few):
            same = title == next(iter(runs))
            cells.append("" if same else interval(hits, base[:number], labels, chosen))
        rows.append(cells + pseudo_cells([one.last for one in measured if one.last]))
    return rows


def pseudo_cells(epochs: Sequence[PseudoLabelEpoch]) -> list[str]:
    """Return the last cells of a row."""
    if not epochs:
        return [""] * len(TITLES[8:])

    def share(parts: Sequence[int], wholes: Sequence[int]) -> str:
        return f"{100 * sum(parts) / sum(wholes):.0f}" if sum(wholes) else "-"

    groups = [group for epoch in epochs for group in epoch.groups.values()]
    rare = [epoch.groups["few"] for epoch in epochs]
    seen, foreign = [epoch.seen for epoch in epochs], [epoch.foreign for epoch in epochs]
    return [
        share([epoch.accepted for epoch in epochs], seen),
        share([group.right for group in groups], [group.judged for group in groups]),
        share([group.right for group in rare], [group.judged for group in rare]),
        share([group.right for group in rare], [group.photos for group in rare]),
        share([epoch.soft for epoch in epochs], seen),
        share([epoch.foreign_accepted for epoch in epochs], foreign),
        share([epoch.foreign_soft for epoch in epochs], foreign),
    ]


def interval(hits: Hits, base: Hits, labels: npt.NDArray[np.int64], chosen: Hits) -> str:
    """Return the difference of the mean-class accuracies over `chosen` [C], with its interval.

    `hits` and `base` are [S, N] of S seeds and N photos.
    """
    random = np.random.default_rng(0)
    differences = hits.astype(float) - base.astype(float)
    of_class = [np.flatnonzero(labels == label) for label in np.flatnonzero(chosen)]
    of_class = [photos for photos in of_class if len(photos)]
    draws = []
    for _ in range(DRAWS):
        seeds = random.integers(0, len(differences), len(differences))
        drawn = differences[seeds].mean(0)
        draws.append(np.mean([drawn[random.choice(own, len(own))].mean() for own in of_class]))
    middle = 100 * float(np.mean([differences.mean(0)[own].mean() for own in of_class]))
    low, high = 100 * np.quantile(draws, [0.025, 0.975])
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()
