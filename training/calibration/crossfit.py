"""Logits of training photos from models that have not seen them, where nothing else is held out."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from models.bundle.posterior import log_shares
from models.bundle.precision import Precision
from models.bundle.record import Group
from models.bundle.session import Session
from models.lift.model import Model, merge
from training.calibration.folds import FOLDS, MOST, deal, originals
from training.calibration.held_out import HeldOut
from training.calibration.views import ViewLogits, view_logits
from training.recipe import Recipe
from training.train import Trainer

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
    run = trainer.train_without(recipe, set(without))
    train = trainer.dataset.train
    out = np.bincount(train.only(without).labels, minlength=len(run.facts.counts))
    # The prior is that of the photos it was trained on, which are fewer.
    left = (np.array(run.facts.counts) - out).tolist()
    with tempfile.TemporaryDirectory() as folder:
        paths = write(merge(run.model.eval()), Path(folder))
        size = run.facts.preprocessing.size
        return view_logits(
            {one: Session(path, side=size) for one, path in paths.items()},
            log_shares(carried_prior(recipe, left)),
            train.only(aside),
            run.facts.preprocessing,
            title,
        )
