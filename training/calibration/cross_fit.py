"""Cross-fitting: logits of training photos from models that were not trained on them."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.posterior import log_shares, without_prior
from taillift.models.bundle.schema import Group, Precision
from taillift.models.bundle.session import Session
from taillift.models.lift.model import Model, merge
from taillift.training.calibration.held_out import HeldOut, ViewLogits, view_logits
from taillift.training.console import duration, note
from taillift.training.data.photo import Split
from taillift.training.recipe.recipe import Recipe
from taillift.training.train import Run, Trainer

FOLDS: Final = 5
# The most photos of one class: the surplus of frequent classes would cost time and teach little.
MAX_PER_CLASS: Final = 40
# The most photos of all classes together: many classes need fewer photos each.
MAX_PHOTOS: Final = 4000

# Writes a merged model's graphs into a folder.
Write = Callable[[Model, Path], dict[Precision, Path]]


def cross_fit(
    trainer: Trainer, recipe: Recipe, write: Write | None, groups: Sequence[Group]
) -> dict[Precision, HeldOut]:
    """Train `FOLDS` times, each time without a part of the photos, and evaluate that part.

    With `write`, each model is merged, written by it, and run by ONNX Runtime in all its variants.
    Without, the fp32 logits come from torch, and the folds share what is frozen: no fold has to
    export a graph. The result is empty if every class has a single photo, because that one has to
    stay in training. Raises what training raises.
    """
    train = trainer.dataset.train
    most = int(np.clip(MAX_PHOTOS // len(groups), 2, MAX_PER_CLASS))
    original = np.array(originals(train))
    distinct = np.unique(original)
    assigned = assign_folds(np.asarray(train.labels)[distinct].tolist(), FOLDS, most)
    if not assigned:
        return {}
    folds = [distinct[fold].tolist() for fold in assigned]
    measured = train.only(np.concatenate(folds).tolist())
    parts: list[ViewLogits] = []
    start = time.monotonic()
    for number, fold in enumerate(folds, 1):
        done = number - 1
        left = (time.monotonic() - start) * (len(folds) - done) / max(1, done)
        learned = f", {duration(left)} left" if done else ""
        note(f"Cross-fitting, because there is no val/: training {number} of {len(folds)}{learned}")
        # A duplicate of an evaluated photo must not be trained on.
        without = np.flatnonzero(np.isin(original, fold)).tolist()
        run = trainer.train(recipe, without=set(without))
        # The model carries the prior of the photos that it was trained on, which are fewer.
        removed = np.bincount(train.only(without).labels, minlength=len(groups))
        remaining = (np.array(run.metadata.prior_counts) - removed).tolist()
        log_prior = log_shares(answered_prior(recipe, remaining))
        if write is None:
            first = sum(map(len, folds[:done]))
            logits = trainer.view_logits(run, measured, range(first, first + len(fold)))
            parts.append({Precision.FP32: without_prior(logits, log_prior)})
        else:
            title = f"Measuring fold {number} of {len(folds)}"
            parts.append(_written_logits(run, write, log_prior, train.only(fold), title))
    labels = np.concatenate([np.asarray(train.labels)[fold] for fold in folds])
    data = f"{len(labels)} training photos of {trainer.dataset.name}, in {len(folds)} folds"
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


def originals(split: Split) -> list[int]:
    """Return, for each photo, the index of the first with the same content and label.

    For a photo that is not a duplicate this is its own index.
    """
    first: dict[tuple[int, int], int] = {}
    pairs = zip(split.labels, split.contents or range(len(split)), strict=True)
    return [first.setdefault(pair, index) for index, pair in enumerate(pairs)]


def assign_folds(
    labels: Sequence[int], folds: int = FOLDS, most: int = MAX_PER_CLASS, seed: int = 0
) -> list[list[int]]:
    """Return the indices of the training photos that each fold holds out.

    There are at most `most` of each class, spread over the folds. At least one photo of each class
    stays in training in every fold, so a class with a single photo is in no fold. `labels` must not
    include duplicates of photos.
    """
    assigned: list[list[int]] = [[] for _ in range(folds)]
    counts = np.bincount(labels)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    position = 0
    for label, indices in enumerate(by_class):
        if len(indices) < 2:
            continue
        chosen = np.random.default_rng((seed, label)).permutation(indices)[:most]
        for photo in chosen.tolist():
            assigned[position % folds].append(photo)
            position += 1
    return [sorted(fold) for fold in assigned if fold]


def stratified_folds(labels: npt.NDArray[np.int64], seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the fold [N] of each held-out photo, with every class spread evenly over the folds."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % FOLDS
    return fold


def carried_prior(recipe: Recipe, counts: Sequence[float]) -> list[float]:
    """Return each class's share in the prior that training on `counts` photos leaves in logits."""
    if not recipe.epochs:
        return [1 / len(counts)] * len(counts)
    shares: list[float] = recipe.loss.implied_prior(counts).tolist()
    return shares


def answered_prior(recipe: Recipe, counts: Sequence[float]) -> list[float]:
    """Return each class's share in the prior that is taken out of the logits to answer.

    It is `carried_prior`; if tau was chosen after training, times (share of the photos)^(tau - 1),
    so that under the uniform prior the answers are those of a loss with that tau.
    """
    carried = carried_prior(recipe, counts)
    if not recipe.loss.tail:
        return carried
    shifted = log_shares(carried) + recipe.loss.tail * log_shares(counts)
    weights = np.exp(shifted - shifted.max())
    shares: list[float] = (weights / weights.sum()).tolist()
    return shares


def _written_logits(
    run: Run, write: Write, log_prior: Doubles, photos: Split, title: str
) -> ViewLogits:
    """Return the logits of photos from the graphs of a run's merged model."""
    preprocessing = run.metadata.preprocessing
    with tempfile.TemporaryDirectory() as folder:
        paths = write(merge(run.model.eval()), Path(folder))
        sessions = {
            precision: Session(path, side=preprocessing.size) for precision, path in paths.items()
        }
        return view_logits(sessions, log_prior, photos, preprocessing, title)
