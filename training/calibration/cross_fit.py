"""Photos dealt into folds, for answers to those that a fit has not seen."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from taillift.models.bundle.posterior import log_shares
from taillift.models.bundle.schema import Group, Precision
from taillift.models.bundle.session import Session
from taillift.models.lift.model import Model, merge
from taillift.training.calibration.held_out import HeldOut, ViewLogits, view_logits
from taillift.training.data.split import Split
from taillift.training.recipe.recipe import Recipe
from taillift.training.train import Trainer

FOLDS: Final = 5
# Of one class: the surplus of frequent classes would cost time and teach little.
MOST: Final = 40


def originals(split: Split) -> list[int]:
    """For each photo the first with the same content and label: its own index, but for copies."""
    sizes = Counter(photo.size for photo in split.photos)
    first: dict[tuple[int, int, bytes], int] = {}
    found = []
    for index, (photo, label) in enumerate(zip(split.photos, split.labels, strict=True)):
        # Only what has the same size can be a copy, and has to be read.
        alike = sizes[photo.size] > 1
        content = hashlib.sha256(photo.read()).digest() if alike else b""
        found.append(first.setdefault((photo.size, label, content), index))
    return found


def spread(labels: npt.NDArray[np.int64], seed: int = 0) -> npt.NDArray[np.int64]:
    """The fold [N] of each of held-out photos, every class in all of them as evenly as can be."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % FOLDS
    return fold


def deal(
    labels: Sequence[int], folds: int = FOLDS, most: int = MOST, seed: int = 0
) -> list[list[int]]:
    """Indices of the training photos that each fold sets aside, at most `most` of each class.

    A class's photos are spread over the folds, and one of each class stays in training always: a
    class with a single photo is in no fold. Copies of a photo are to be left out of `labels`.
    """
    dealt: list[list[int]] = [[] for _ in range(folds)]
    counts = np.bincount(labels)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    first = 0
    for label, indices in enumerate(by_class):
        if len(indices) < 2:
            continue
        chosen = np.random.default_rng((seed, label)).permutation(indices)[:most]
        for photo in chosen.tolist():
            dealt[first % folds].append(photo)
            first += 1
    return [sorted(fold) for fold in dealt if fold]


# Of all classes together: many classes need fewer photos each.
MOST_OF_ALL: Final = 4000

# Writes a merged model's graphs into a folder.
Write = Callable[[Model, Path], dict[Precision, Path]]


def cross_fit(
    trainer: Trainer, recipe: Recipe, write: Write, groups: Sequence[Group]
) -> dict[Precision, HeldOut]:
    """Train `FOLDS` times, each time without a part of the photos, and measure that part.

    Each model goes the way to the service: merged, written by `write`, run by ONNX Runtime. There
    is nothing where every class has a single photo, which has to stay in training. Raises what
    training raises.
    """
    train = trainer.dataset.train
    most = int(np.clip(MOST_OF_ALL // len(groups), 2, MOST))
    original = np.array(originals(train))
    distinct = np.unique(original)
    folds = deal(np.asarray(train.labels)[distinct].tolist(), FOLDS, most)
    if not folds:
        return {}
    dealt = [distinct[fold].tolist() for fold in folds]
    parts = [
        # What is measured has no copy among what was trained on.
        _measured(
            trainer,
            recipe,
            write,
            aside,
            np.flatnonzero(np.isin(original, aside)).tolist(),
            f"Measuring fold {number} of {len(dealt)}",
        )
        for number, aside in enumerate(dealt, 1)
    ]
    labels = np.concatenate([np.asarray(train.labels)[aside] for aside in dealt])
    data = f"{len(labels)} training photos of {trainer.dataset.name}, in {len(dealt)} folds"
    return {
        precision: HeldOut(
            data,
            "cross-fitting",
            np.concatenate([part[precision] for part in parts]),
            labels,
            groups,
        )
        for precision in parts[0]
    }


def carried_prior(recipe: Recipe, counts: Sequence[int]) -> list[float]:
    """Each class's share in the prior that logits carry after training on `counts` photos."""
    if not recipe.epochs:
        return [1 / len(counts)] * len(counts)
    shares: list[float] = recipe.loss.implied_prior(counts).tolist()
    return shares


def _measured(
    trainer: Trainer,
    recipe: Recipe,
    write: Write,
    aside: Sequence[int],
    without: Sequence[int],
    title: str,
) -> ViewLogits:
    """Of the photos at `aside` by a model trained on all but those at `without`."""
    run = trainer.train(recipe, without=set(without))
    train = trainer.dataset.train
    out = np.bincount(train.only(without).labels, minlength=len(run.metadata.counts))
    # The prior is that of the photos it was trained on, which are fewer.
    left = (np.array(run.metadata.counts) - out).tolist()
    with tempfile.TemporaryDirectory() as folder:
        paths = write(merge(run.model.eval()), Path(folder))
        size = run.metadata.preprocessing.size
        return view_logits(
            {one: Session(path, side=size) for one, path in paths.items()},
            log_shares(carried_prior(recipe, left)),
            train.only(aside),
            run.metadata.preprocessing,
            title,
        )
