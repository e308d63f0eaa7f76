"""Test-time ensembling: several views of one image, one row of logits."""

from enum import StrEnum

import numpy as np
import numpy.typing as npt

from models.bundle.images import VIEWS

Floats = npt.NDArray[np.float32]


class Ensemble(StrEnum):
    """`off`: the centre view. `full`: the mean of all five views' logits (LIFT, section 3.4)."""

    OFF = "off"
    FULL = "full"

    @property
    def views(self) -> int:
        return VIEWS if self is Ensemble.FULL else 1


def combine(logits: Floats, views: int) -> Floats:
    """Mean logits over each image's views: [images * views, C] to [images, C].

    Raises `ValueError` where the rows are no multiple of `views`.
    """
    mean: Floats = logits.reshape(-1, views, logits.shape[-1]).mean(axis=1, dtype=np.float32)
    return mean
