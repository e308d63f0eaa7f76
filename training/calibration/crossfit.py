"""Logits of training photos from models that have not seen them, where nothing else is held out."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from models import UserError
from models.bundle.ensemble import Floats
from models.bundle.precision import Precision
from models.bundle.record import Group
from models.bundle.session import Session
from models.lift.model import Model, merge
from training.calibration.folds import deal
from training.calibration.held_out import HeldOut
from training.calibration.views import view_logits
from training.checkpoint import Facts
from training.train import Trainer

FOLDS: Final = 5
# Of one class, and of all: the surplus of frequent classes would cost time and teach little.
MOST_OF_CLASS: Final = 40
MOST: Final = 4000

# Writes a merged model's graphs into a folder.
Write = Callable[[Model, Path], dict[Precision, Path]]


def cross_fit(
    trainer: Trainer,
    facts: Facts,
    write: Write,
    log_prior: Floats,
    groups: Sequence[Group],
) -> dict[Precision, HeldOut]:
    """Train `FOLDS` times, each time without a part of the photos, and measure that part.

    Each model goes the way to the service: merged, written by `write`, run by ONNX Runtime. Raises
    `UserError` where every class has a single photo, and what training raises.
    """
    train = trainer.dataset.train
    most = int(np.clip(MOST // len(groups), 2, MOST_OF_CLASS))
    dealt = deal(train.labels, FOLDS, most)
    if not dealt:
        raise UserError("every class has a single training photo: none can be held out")
    parts = []
    for number, aside in enumerate(dealt, 1):
        model = trainer.train_without(facts.recipe, aside).model
        with tempfile.TemporaryDirectory() as folder:
            paths = write(merge(model.eval()), Path(folder))
            sessions = {
                one: Session(path, side=facts.preprocessing.size) for one, path in paths.items()
            }
            title = f"Measuring fold {number} of {len(dealt)}"
            parts.append(
                view_logits(sessions, log_prior, train.only(aside), facts.preprocessing, title)
            )
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
