"""Measure `taillift extend` against training on everything, on the backbone's frozen features.

    python -m benchmarks.extend [--sets wardrobe-lt places50-lt] [--seeds 3]
    python -m benchmarks.extend --tune [--sets wardrobe-lt] [--seeds 1]

A head is trained on a part of the classes, and then the others are new: every third class of
wardrobe-lt (from the first and from the second on), every fifth of places50-lt. The table has the
mean accuracy of classes on the test photos' centre views, over all, the old, the new, and the new
few-shot classes, for

- joint: one head, trained on the photos of all classes;
- append: rows from the new classes' mean features behind those of the old head, as `extend`
  starts, without training;
- new photos only: the head trained on them, without draws of old classes;
- extend a bundle, or a checkpoint: what `taillift extend` does. Only a checkpoint has a text tower,
  from which new rows start by half.

Then 10 classes are added, at once and 5 after the other 5. Each figure is the mean of the seeds
with their standard deviation. Results are written to benchmarks/results/extend.md.

With --tune, LIFT itself is trained on the old classes, and its checkpoint is extended with and
without --tune; results are written to benchmarks/results/extend-tune.md.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from benchmarks.photos import SAMPLE
from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.bundle.arrays import Doubles, Floats, Labels
from taillift.models.bundle.feature_statistics import FeatureStatistics, unit
from taillift.models.bundle.head_training import extended_head, new_rows, train_head
from taillift.models.lift.backbone import Backbone, load_backbone
from taillift.training.data.dataset import Dataset, load_dataset
from taillift.training.evaluation import class_rates, view_logits
from taillift.training.fit.build import class_texts, initial_weight, preprocessing_for
from taillift.training.fit.checkpoint import extend, measured_statistics, restore, save
from taillift.training.fit.inputs import centre_photos
from taillift.training.recipe.recipe import load_recipe
from taillift.training.train import Trainer

SCALE: Final = 16.0
FEW: Final = 20
# For each set, the step between new classes and the first of them, one table each.
SPLITS: Final = {SAMPLE: [(3, 0), (3, 1)], "places50-lt": [(5, 0)]}
METHODS: Final = (
    "joint",
    "append",
    "new photos only",
    "extend a bundle",
    "extend a checkpoint",
)


@dataclass(frozen=True)
class Task:
    """Unit features [N, D] and labels [N] of training and test photos, and unit rows of a head.

    `start` [C, D] are the rows that training starts from, half from the `texts` [C, D]. Classes are
    in the order of their frequency; `counts` are their training photos.
    """

    features: Floats
    labels: Labels
    test_features: Floats
    test_labels: Labels
    start: Floats
    texts: Floats
    counts: list[int]

    @classmethod
    def of(cls, dataset: Dataset, backbone: Backbone) -> "Task":
        """Compute the features of a set's photos, once."""
        assert dataset.test is not None
        preprocessing = preprocessing_for(backbone.image)

        def features(photos: Dataset) -> tuple[Tensor, Tensor]:
            trainer = Trainer(photos, backbone)
            return trainer.centre_features(preprocessing, range(len(photos.train)))

        trained, tested = features(dataset), features(replace(dataset, train=dataset.test))
        recipe = load_recipe("head")
        rows = initial_weight(backbone, recipe, dataset.names, lambda: trained)
        texts = class_texts(backbone, recipe.head, dataset.names)
        return cls(
            unit(trained[0].numpy()),
            trained[1].numpy(),
            unit(tested[0].numpy()),
            tested[1].numpy(),
            unit(rows.numpy()),
            unit(texts.numpy()),
            dataset.counts,
        )

    def accuracies(self, rows: Floats) -> Doubles:
        """Return the accuracy of each class [C] in per cent, with a head of these rows."""
        predicted = (self.test_features @ rows.T).argmax(1)
        return 100 * class_rates(predicted, self.test_labels, len(rows))

    def trained(self, classes: Sequence[int], seed: int) -> Floats:
        """Return the rows of a head that is trained on the photos of `classes`, in their order."""
        chosen, labels = self.photos(classes)
        statistics = FeatureStatistics.of(chosen, labels, len(classes))
        nothing = np.zeros(len(classes), np.int64)
        return train_head(
            self.start[list(classes)], SCALE, chosen, labels, statistics, nothing, seed
        )

    def photos(self, classes: Sequence[int]) -> tuple[Floats, Labels]:
        """Return the training photos of `classes`, with labels in their order."""
        place = np.full(len(self.counts), -1)
        place[list(classes)] = np.arange(len(classes))
        chosen = place[self.labels] >= 0
        return self.features[chosen], place[self.labels[chosen]]

    def extended(
        self,
        rows: Floats,
        old: Sequence[int],
        new: Sequence[int],
        seed: int,
        with_text: bool = False,
    ) -> Floats:
        """Return the rows of a head of `old` classes after `new` ones are added behind them.

        Of the old classes only statistics are used.
        """
        known = FeatureStatistics.of(*self.photos(old), len(old))
        features, labels = self.photos(new)
        indices = [*range(len(old)), *[None] * len(new)]
        labels = labels + len(old)
        texts = self.texts[[*old, *new]] if with_text else None
        return extended_head(rows, SCALE, known, indices, features, labels, seed, texts)[0]


def methods(task: Task, new: Sequence[int], seed: int) -> dict[str, Doubles]:
    """Return each method's accuracies [C] with these new classes."""
    everything = range(len(task.counts))
    old = [one for one in everything if one not in set(new)]
    order = np.argsort([*old, *new])
    before = task.trained(old, seed)
    known = FeatureStatistics.of(*task.photos(old), len(old))
    added = FeatureStatistics.of(*task.photos(new), len(new))
    appended = np.concatenate([before, new_rows(before, known.means, added.means)])
    features, labels = task.photos(new)
    nothing = np.zeros(len(appended), np.int64)
    only_new = train_head(appended, SCALE, features, labels + len(old), known, nothing, seed)
    rows = {
        "joint": task.trained(everything, seed),
        "append": appended[order],
        "new photos only": only_new[order],
        "extend a bundle": task.extended(before, old, new, seed)[order],
        "extend a checkpoint": task.extended(before, old, new, seed, with_text=True)[order],
    }
    return {name: task.accuracies(rows[name]) for name in METHODS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", default=list(SPLITS), help="names or paths")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    if options.tune:
        tables = [tuned_table(source, options.seeds) for source in options.sets]
        write_result(RESULTS / "extend-tune.md", tables)
        return
    backbone, texts, twice = load_backbone("default"), [], []
    for source in options.sets:
        dataset = load_dataset(source)
        task = Task.of(dataset, backbone)
        for step, first in SPLITS.get(dataset.name, SPLITS[SAMPLE]):
            old, new, few = parts_of(task.counts, step, first)
            runs = [methods(task, new, seed) for seed in range(options.seeds)]
            rows = [
                [name, *means([run[name] for run in runs], (old + new, old, new, few))]
                for name in METHODS
            ]
            titles = [
                f"{dataset.name}: classes {first}, {first + step}, … new",
                "all",
                f"old ({len(old)})",
                f"new ({len(new)})",
                f"few of the new ({len(few)})",
            ]
            texts.append(markdown(titles, rows))
        twice.append(added_twice(task, dataset.name, options.seeds))
    titles = ["10 classes added", "all classes, at once", "5 and then 5"]
    write_result(RESULTS / "extend.md", [*texts, markdown(titles, twice)])


def parts_of(
    counts: Sequence[int], step: int, first: int
) -> tuple[list[int], list[int], list[int]]:
    """Return the old classes, every `step`-th from `first` on as new ones, and the few of these."""
    new = list(range(first, len(counts), step))
    old = [one for one in range(len(counts)) if one not in new]
    return old, new, [one for one in new if counts[one] < FEW]


def means(runs: Sequence[Doubles], parts: Sequence[Sequence[int]]) -> list[str]:
    """Return the mean accuracy of each part of the classes, over runs of accuracies [C]."""
    return [spread([float(run[list(part)].mean()) for run in runs]) for part in parts]


def tuned_table(source: str, seeds: int) -> str:
    """Return the accuracies of LIFT's checkpoints that were extended with and without --tune."""
    dataset = load_dataset(source)
    rows = []
    for step, first in SPLITS.get(dataset.name, SPLITS[SAMPLE]):
        old, new, few = parts_of(dataset.counts, step, first)
        runs = [tuned(dataset, new, seed) for seed in range(seeds)]
        for name, accuracies in zip(
            ("extend", "extend --tune"), zip(*runs, strict=True), strict=True
        ):
            cells = means(accuracies, (old + new, old, new, few))
            rows.append([f"classes {first}, {first + step}, … new: {name}", *cells])
    return markdown([dataset.name, "all", "old", "new", "few of the new"], rows)


def tuned(dataset: Dataset, new: Sequence[int], seed: int) -> tuple[Doubles, Doubles]:
    """Return the accuracies [C] of LIFT on the other classes, extended without and with --tune."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (photo, label) in enumerate(
            zip(dataset.train.photos, dataset.train.labels, strict=True)
        ):
            place = folder / ("new" if label in new else "old/train") / dataset.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.jpg").write_bytes(photo.read())
        known = load_dataset(str(folder / "old"))
        recipe = load_recipe("lift").model_copy(update={"seed": seed})
        run = Trainer(known, load_backbone("default")).train(recipe)
        checkpoint = folder / "lift.safetensors"
        statistics = measured_statistics(run.model, run.metadata, known)
        save(checkpoint, run.model, run.metadata, statistics=statistics)
        found = []
        for tune in (False, True):
            target = folder / f"{tune}.safetensors"
            extend(checkpoint, folder / "new", target, tune=tune, seed=seed)
            found.append(accuracies_of(target, dataset))
    return found[0], found[1]


def accuracies_of(checkpoint: Path, dataset: Dataset) -> Doubles:
    """Return a checkpoint's accuracy of each class [C] of the set, in per cent, in its order."""
    assert dataset.test is not None
    model, metadata = restore(checkpoint)
    photos = centre_photos(dataset.test, metadata.preprocessing)
    logits = view_logits(model, photos, torch.device("cpu"))[:, 0]
    place = np.array([dataset.classes.index(label) for label in metadata.classes])
    return 100 * class_rates(place[logits.argmax(1)], photos.labels.numpy(), len(dataset.classes))


def added_twice(task: Task, name: str, seeds: int) -> list[str]:
    """Return a row of a table: accuracy with 10 classes added at once, and 5 after 5."""
    classes = len(task.counts)
    new = np.linspace(0, classes - 1, 10, dtype=int).tolist()
    old = [one for one in range(classes) if one not in new]
    first, second = new[::2], new[1::2]
    once, twice = [], []
    for seed in range(seeds):
        before = task.trained(old, seed)
        rows = task.extended(before, old, new, seed)
        once.append(float(task.accuracies(rows[np.argsort([*old, *new])]).mean()))
        rows = task.extended(before, old, first, seed)
        rows = task.extended(rows, [*old, *first], second, seed)
        twice.append(float(task.accuracies(rows[np.argsort([*old, *first, *second])]).mean()))
    return [name, spread(once), spread(twice)]


def spread(values: Sequence[float]) -> str:
    """Return the mean and, of several values, their standard deviation."""
    deviation = f" ± {np.std(values):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
