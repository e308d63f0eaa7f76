"""How often each class is expected to be predicted, and how well that is known."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np

from taillift.models.errors import UserError
from taillift.service.tail.confusion import Confusion
from taillift.service.tail.distributions import Doubles, beta_quantile

# No rate is taken to be known better than to this part of it, however many photos were held out.
KNOWN: Final = 1e-3


class Source(StrEnum):
    """Where a reference's shares of the true classes come from.

    `train`: the training images. `uniform`: all classes equally often. `measured`: the held-out
    images, so that the rates are those with which validation predicted. `own`: the operator's.
    """

    TRAIN = "train"
    UNIFORM = "uniform"
    MEASURED = "measured"
    OWN = "own"


@dataclass(frozen=True)
class Reference:
    """`prior` [C]: the shares of the true classes that are expected; they sum to 1."""

    source: Source
    prior: Doubles


@dataclass(frozen=True)
class Rates:
    """Rates of prediction [K], each known as Beta(a, b)."""

    a: Doubles
    b: Doubles

    @property
    def mean(self) -> Doubles:
        mean: Doubles = self.a / (self.a + self.b)
        return mean

    def of(self, place: int) -> "Rates":
        """The one rate at `place`."""
        return Rates(self.a[[place]], self.b[[place]])

    def band(self, coverage: float) -> tuple[Doubles, Doubles]:
        """Bounds [K] that leave out (1 - coverage) / 2 at either end."""
        beyond = (1 - coverage) / 2
        low, high = beta_quantile(np.array([[beyond], [1 - beyond]]), self.a, self.b)
        return low, high


@dataclass(frozen=True)
class Expected:
    """Under a reference: rates of the classes [C] and groups [G], and what a lost class leaves.

    `mistakes` [C] is the rate at which a class would still be predicted, for images of others,
    if its own images no longer came.
    """

    classes: Rates
    groups: Rates
    mistakes: Doubles


def reference_from(source: Source, counts: Sequence[int], confusion: Confusion) -> Reference:
    """`counts` are the classes' training images.

    Raises `UserError` for `measured` where the bundle was exported without held-out photos.
    """
    match source:
        case Source.TRAIN:
            return Reference(source, _shares(np.asarray(counts, np.float64)))
        case Source.UNIFORM:
            return Reference(source, _shares(np.ones(len(counts))))
        case Source.MEASURED if confusion.held_out.any():
            return Reference(source, _shares(confusion.held_out))
        case Source.MEASURED:
            raise UserError(
                "the bundle has no held-out photos to measure a reference with: choose the "
                "reference train or uniform, or give your own"
            )
        case Source.OWN:
            raise UserError("the reference own needs a file with the columns class,weight")


def own_reference(weights: Mapping[str, float], labels: Sequence[str]) -> Reference:
    """From a weight for every label; a weight of 0 says that no image of the class is expected.

    Raises `UserError` where a label is unknown or missing, or a weight is none.
    """
    known = set(labels)
    for label, weight in weights.items():
        if label not in known:
            raise UserError(f"the reference names the class {label!r}, which the bundle lacks")
        if not 0 <= weight < np.inf:
            raise UserError(f"the reference's weight of {label!r} is {weight}: give 0 or more")
    missing = [label for label in labels if label not in weights]
    if missing:
        raise UserError(
            f"the reference has no weight for {missing[0]!r} ({len(missing)} classes lack one): "
            "add them, with 0 where no image is expected"
        )
    values = np.array([weights[label] for label in labels], np.float64)
    if not values.any():
        raise UserError("every weight of the reference is 0: give some class a share")
    return Reference(Source.OWN, _shares(values))


def read_reference(path: Path, labels: Sequence[str]) -> Reference:
    """From a CSV file with the columns class,weight; raises `UserError`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(row["class"], float(row["weight"])) for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f"the reference {path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} is no reference ({error}): it needs the columns class,weight with numbers"
        ) from error
    weights = dict(rows)
    if len(weights) < len(rows):
        (label, times), *_ = Counter(label for label, _ in rows).most_common(1)
        raise UserError(f"{path} names the class {label!r} {times} times: keep one of them")
    return own_reference(weights, labels)


def expect(reference: Reference, confusion: Confusion) -> Expected:
    """What the reference implies for predictions, through the model's confusions."""
    prior = reference.prior
    squares = prior**2 / (confusion.strength + 1)
    classes = confusion.column_sums(prior)
    doubt = confusion.column_sums(squares) - confusion.column_sums(squares, power=2)
    into = confusion.into_groups
    own = prior * confusion.recall
    return Expected(
        classes=from_moments(classes, doubt),
        groups=from_moments(prior @ into, squares @ (into - into**2)),
        mistakes=(classes - own).clip(0) / (1 - prior).clip(1e-12),
    )


def _shares(weights: Doubles) -> Doubles:
    shares: Doubles = weights / weights.sum()
    return shares


def from_moments(mean: Doubles, variance: Doubles) -> Rates:
    """Beta distributions with these means and variances; a mean of 0 becomes nearly 0."""
    mean = mean.clip(1e-12, 1 - 1e-12)
    least = (KNOWN * np.minimum(mean, 1 - mean)) ** 2
    weight = mean * (1 - mean) / np.maximum(variance, least) - 1
    return Rates(mean * weight, (1 - mean) * weight)
