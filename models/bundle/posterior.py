"""From logits to confidence."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from taillift.models.bundle.arrays import Doubles, Floats
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.schema import GROUPS, Group
from taillift.models.errors import UserError

# The most that an answer may lean toward the rare classes; the least is 0.
MOST_TAIL: Final = 1.0


class Prior(StrEnum):
    """How often the classes are expected when the model is used.

    `uniform`: equally often. `train`: as often as in the training images.
    """

    UNIFORM = "uniform"
    TRAIN = "train"


def log_prior(prior: Prior, counts: Sequence[int]) -> Doubles:
    """Return the natural logarithm [C] of each class's share under `prior`.

    `counts` are the classes' training images.
    """
    return log_shares(counts if prior is Prior.TRAIN else [1] * len(counts))


def leaning(log_prior: Doubles, tail: float, counts: Sequence[int]) -> Doubles:
    """Return a prior [C] times (share of the training images)^-tail, as log shares.

    With the uniform prior the answers are those of a model whose logit-adjusted loss had
    tau = 1 + `tail`: logits - tail * log(share) (Menon et al. 2021, equation 9). `counts` are the
    classes' training images. A `tail` of 0 changes nothing, and a class whose prior is 0 keeps it.
    Raises `UserError` if `tail` is not from 0 to `MOST_TAIL`.
    """
    if not 0 <= tail <= MOST_TAIL:
        raise UserError(f"tail {tail} is not from 0 to {MOST_TAIL:g}")
    if not tail:
        return log_prior
    moved = log_prior - tail * log_shares(counts)
    moved -= moved.max()
    shares: Doubles = moved - np.log(np.exp(moved).sum())
    return shares


def log_shares(weights: Sequence[float]) -> Doubles:
    """Return the natural logarithm [C] of each weight's share of the sum; -inf for a weight of 0.

    The weights are finite and not negative, and at least one is positive.
    """
    scaled = np.asarray(weights, np.float64) / max(weights)
    logs = np.full(len(scaled), -np.inf)
    np.log(scaled / scaled.sum(), out=logs, where=scaled > 0)
    return logs


def among(log_prior: Doubles, indices: Sequence[int]) -> Doubles:
    """Return a prior [C] for images that show one of the classes `indices`: -inf for all others.

    Raises `UserError` if there are fewer than two, or if none of them can occur under `log_prior`.
    """
    if len(set(indices)) < 2:
        raise UserError("classes: name at least two that the answer may be")
    weights = np.zeros(len(log_prior))
    weights[indices] = np.exp(log_prior[indices])
    if not weights.any():
        raise UserError("classes: none of them can occur under the prior, which gives each 0")
    return log_shares(weights.tolist())


def without_prior(logits: Floats, log_carried: npt.NDArray[np.floating]) -> Floats:
    """Return a graph's logits [N, C] less the log prior [C] that they carry.

    The result is a log posterior for equally frequent classes, up to a constant in each row
    (Saerens et al. 2002, equation 4). Logits of a model trained with a logit-adjusted loss are that
    already.
    """
    carried = log_carried.astype(np.float32)
    plain: Floats = logits - (carried - carried.mean())
    return plain


def posterior(
    logits: Floats,
    log_prior: Doubles,
    temperature: float | Doubles = 1.0,
) -> Doubles:
    """Return the probabilities [N, C] of logits [N, C] under a prior [C], by Bayes' rule.

    They are softmax(logits / temperature + log_prior), with one `temperature` or [N]. The logits
    themselves carry no prior: the logit-adjusted loss leaves none (Menon et al. 2021, equation 10),
    and `without_prior` takes out what another loss left. A class whose prior is 0 has probability
    0.
    """
    scores = logits.astype(np.float64) / np.asarray(temperature)[..., None]
    scores += log_prior
    scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores)
    shares: Doubles = weights / weights.sum(axis=-1, keepdims=True)
    return shares


def group_confidence(probabilities: Doubles, manifest: Manifest) -> dict[Group, float]:
    """Sum the probabilities [C] of one image over the classes of each group."""
    sums = dict.fromkeys(GROUPS, 0.0)
    for info, probability in zip(manifest.classes, probabilities, strict=True):
        sums[info.group] += float(probability)
    return sums
