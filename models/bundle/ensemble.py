"""Test-time ensembling: several views of one image, one row of logits."""

from enum import StrEnum

import numpy as np
import numpy.typing as npt

from models.bundle.images import VIEWS

Floats = npt.NDArray[np.float32]


class Ensemble(StrEnum):
    """`off`: the centre view. `full`: the mean of all five views' logits (LIFT, section 3.4).

    `adaptive`: the centre view, and the others only where they are worth their cost (`exit`).
    """

    OFF = "off"
    FULL = "full"
    ADAPTIVE = "adaptive"

    @property
    def views(self) -> int:
        """The most views that an image may take."""
        return 1 if self is Ensemble.OFF else VIEWS


def combine(logits: Floats, views: int) -> Floats:
    """Mean logits over each image's views: [images * views, C] to [images, C].

    Raises `ValueError` where the rows are no multiple of `views`.
    """
    mean: Floats = logits.reshape(-1, views, logits.shape[-1]).mean(axis=1, dtype=np.float32)
    return mean
