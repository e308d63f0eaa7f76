"""From logits to confidence."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
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


def group_prior(shares: Mapping[Group, float], groups: Sequence[Group]) -> Doubles:
    """Return the log prior [C] that gives each group its share, and its classes equally much.

    `groups` [C] are those of the classes. Groups without classes do not matter.
    """
    sizes, largest = Counter(groups), max(shares.values())
    # Of the largest, because the smallest numbers would become 0 here.
    return log_shares([shares[group] / largest / sizes[group] for group in groups])


def shares_text(shares: Mapping[Group, float]) -> str:
    """Return shares of groups as text, such as many:0.6,medium:0.3,few:0.1."""
    return ",".join(f"{group}:{share:.6g}" for group, share in shares.items())


def group_shares(text: str, groups: Sequence[Group]) -> dict[Group, float]:
    """Return the weights of groups that `shares_text` writes, in any order and with any sum.

    A weight of 0 says that no class of the group can occur. `groups` [C] are those of a bundle's
    classes. Raises `UserError` unless each of these groups has a weight, and no other.
    """
    present = [group for group in GROUPS if group in groups]
    example = shares_text({group: round(1 / len(present), 2) for group in present})
    wrong = UserError(
        f"prior {text[:80]!r}: give each group of the bundle a weight of 0 or more, such as "
        f"{example}"
    )
    weights: dict[Group, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition(":")
        group = next((group for group in present if group == name.strip()), None)
        try:
            number = float(weight)
        except ValueError:
            raise wrong from None
        if group is None or group in weights or not (math.isfinite(number) and number >= 0):
            raise wrong
        weights[group] = number
    if len(weights) < len(present) or not any(weights.values()):
        raise wrong
    return weights


def prior_of(name: str, manifest: Manifest) -> Doubles:
    """Return the log prior [C] of a name of `Prior`, or of weights as `group_shares` reads them.

    Raises `UserError` if it is neither.
    """
    if ":" in name:
        groups = [info.group for info in manifest.classes]
        return group_prior(group_shares(name, groups), groups)
    if name not in set(Prior):
        raise UserError(
            f"prior {name[:80]!r} is not known: choose one of {', '.join(Prior)}, or give weights "
            "of the groups, such as many:0.6,medium:0.3,few:0.1"
        )
    return log_prior(Prior(name), manifest.counts)


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
