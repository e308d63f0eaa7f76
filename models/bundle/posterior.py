"""From logits to confidence."""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from models.bundle.ensemble import Floats
from models.bundle.manifest import Manifest
from models.bundle.record import GROUPS, Group

Doubles = npt.NDArray[np.float64]


class Prior(StrEnum):
    """How often the classes are expected where the model is used.

    `uniform`: equally often. `train`: as often as in the training images.
    """

    UNIFORM = "uniform"
    TRAIN = "train"


def log_prior(prior: Prior, counts: Sequence[int]) -> Doubles:
    """[C], natural logarithm of each class's share under `prior`; `counts` are training images."""
    weights = np.asarray(counts, np.float64) if prior is Prior.TRAIN else np.ones(len(counts))
    logs: Doubles = np.log(weights / weights.sum())
    return logs


def posterior(logits: Floats, log_prior: Doubles, temperature: float = 1.0) -> Doubles:
    """Probabilities [N, C] of logits [N, C] under a prior [C].

    The logit-adjusted loss (Menon et al. 2021, equation 10) leaves no training prior in the
    logits, so the prior of the place of use is only added.
    """
    scores = logits.astype(np.float64) / temperature + log_prior
    scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores)
    shares: Doubles = weights / weights.sum(axis=-1, keepdims=True)
    return shares


def group_confidence(probabilities: Doubles, manifest: Manifest) -> dict[Group, float]:
    """The probability [C] of one image summed over the classes of each group."""
    sums = dict.fromkeys(GROUPS, 0.0)
    for info, probability in zip(manifest.classes, probabilities, strict=True):
        sums[info.group] += float(probability)
    return sums
